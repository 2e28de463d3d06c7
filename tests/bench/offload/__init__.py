"""A discrete-event simulation of a mesh in virtual time, to compare ways of choosing the node that serves a request.

It drives the product's own deciding code: balancer, estimator, batching, latencies. Not here: real nodes, real time.
"""
