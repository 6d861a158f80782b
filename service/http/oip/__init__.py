"""The Open Inference Protocol v2: bodies of bytes and JSON -> what to run, and back. Knows no engine."""
