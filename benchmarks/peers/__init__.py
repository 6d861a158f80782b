"""Servers of other projects with the same model, each set up as its documentation says, in their own venv."""
