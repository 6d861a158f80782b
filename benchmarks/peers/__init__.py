"""Other servers of the same model, each as its documentation says; they run in a venv of their own."""
