"""One module a command, with `add_arguments(parser)` and `run(args)`, which returns the exit code."""
