"""The Open Inference Protocol v2: read requests of JSON and bytes, write answers. It knows no engine."""
