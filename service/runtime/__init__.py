"""Loaded models and what runs images through them."""
