"""Fakes, for tests only: stand-ins for device libraries that misbehave on command, for machines without the device.

No setting of the product reaches them: tests install them in their own process, or put ``site`` on the PYTHONPATH of a
child. What they build and run is reported as fake. Not here: anything that a node in use may import.
"""
