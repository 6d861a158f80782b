"""What runs a graph: ONNX Runtime, OpenVINO, TensorRT and torch behind one protocol."""
