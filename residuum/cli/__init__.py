"""The command line of Residuum: `main.py` has the table of commands, `commands/` one module a command."""
