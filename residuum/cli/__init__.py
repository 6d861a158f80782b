"""The command line of Residuum: `main.py` finds the commands, `commands/` has one module a command."""
