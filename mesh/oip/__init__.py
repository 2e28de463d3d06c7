"""The Open Inference Protocol v2 as bytes and values: the codec of every door and hop (DESIGN D1).

Not here: HTTP, gRPC and bus framing, the meaning of a model's inputs (the runtimes check those), routing.
"""
