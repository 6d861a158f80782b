"""Measurements; what is compared is measured in one run. Only the command line imports this package."""
