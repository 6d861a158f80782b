"""Entries -> batches -> futures, and the scheduler of a device. This package knows no HTTP and no models."""
