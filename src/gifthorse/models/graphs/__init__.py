"""Nets that a file describes as a graph of operations, such as ONNX, as modules of torch."""
