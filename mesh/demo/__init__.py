"""The demonstration: real models fetched by package, and requests whose right answers are known.

Belongs here: what is asked and how an answer is judged. Not here: doors, routing, or anything that runs a model; a
workload speaks only of named arrays, so the same one drives a session in this process or a whole mesh.
"""
