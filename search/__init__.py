"""From an ONNX model to a measured verdict: graph, candidates, sensitivity, allocation, artifact, evaluation.

A pure library: no web, no database, no queue, no environment variables. `python -m search` runs it alone, and
`search.pipeline` is the whole flow as code.
"""
