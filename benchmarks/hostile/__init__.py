"""Requests that mean no good: damaged and huge images, odd forms, wrong inference requests."""
