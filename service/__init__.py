"""The HTTP server: an artifact -> engines -> batches -> answers."""
