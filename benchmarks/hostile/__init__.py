"""Hostile requests: damaged and huge images, malformed forms, invalid inference requests."""
