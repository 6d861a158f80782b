"""The HTTP calls, one file a resource; a route translates and does not compute."""
