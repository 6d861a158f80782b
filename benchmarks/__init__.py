"""Measurements, side by side in one run. Nothing imports them but the command line."""
