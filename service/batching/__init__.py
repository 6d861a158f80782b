"""Entries to batches to futures, and the scheduler of a device. Knows nothing of HTTP or models."""
