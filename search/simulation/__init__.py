"""Running a graph in float32 with any assembly applied: in torch, or in ONNX Runtime forwards only."""
