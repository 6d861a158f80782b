"""The server as an ASGI application: what a request passes, routes, middleware, schemas, problems."""
