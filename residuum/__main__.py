"""`python -m residuum`: the command line."""

import sys

from residuum.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
