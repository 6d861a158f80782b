"""Artifact -> engine -> batches -> HTTP."""
