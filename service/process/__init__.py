"""The server as processes: one or several, signals, sockets."""
