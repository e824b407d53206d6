"""The deployable artifact: quantized ONNX with its session options and bit plan, and the audit of what really runs."""
