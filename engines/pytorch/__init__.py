"""PyTorch runs the ONNX files of an artifact: the engine, its operators, and CUDA graphs."""
