"""Checkpoint -> fused graph -> ONNX -> an artifact on disk, the only contact with `service`."""
