"""Policies on real processes beside the same in the simulator: what the offload benchmark's figures are worth.

Not here: the policies and the simulator (``tests.bench.offload``).
"""
