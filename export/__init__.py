"""A source of weights -> graphs, verified and measured -> an artifact on disk."""
