"""The command line: the table of commands, and what becomes of their errors.

Only the module of the command that is named is imported, and each command imports what it needs when it runs:
`residuum --help` is quick, and `residuum serve` never loads torch.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from residuum.cli.errors import is_ours
from residuum.cli.output import print_error

# Name: what the command does, and the module with its `add_arguments(parser)` and `run(args)`.
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("answer over HTTP", "residuum.cli.commands.serve"),
    "classify": ("label images, without a server", "residuum.cli.commands.classify"),
    "introspect": ("show what every residual block did to an image", "residuum.cli.commands.introspect"),
    "compare": (
        "show what every residual block did to two images, on one scale",
        "residuum.cli.commands.compare",
    ),
    "models": ("list the models that can be served", "residuum.cli.commands.models"),
    "pull": ("turn published weights, or a file of them, into an artifact", "residuum.cli.commands.pull"),
    "train": ("train a recipe on a data set", "residuum.cli.commands.train"),
    "export": ("turn a checkpoint into an artifact", "residuum.cli.commands.export"),
    "bench": ("measure a model's graphs on this machine", "residuum.cli.commands.bench"),
}


def make_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser that knows every command's name, and the options of the command that is asked for."""
    parser = argparse.ArgumentParser(
        prog="residuum",
        description="Serve pretrained ResNets, and show what their residual blocks do.",
        epilog="residuum COMMAND --help says more.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, (summary, module_name) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == asked:
            module = import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without the letters of bars and labels
        sys.stdout.reconfigure(errors="replace")
    arguments = sys.argv[1:] if arguments is None else arguments
    args = make_parser(arguments).parse_args(arguments)
    try:
        return args.run(args)  # type: ignore[no-any-return]
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `residuum models | head`; what Python still has to write goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a disk that is full, a folder that cannot be written
        print_error(str(error))
        return 2
    except Exception as error:
        if not is_ours(error):
            raise
        print_error(" ".join(str(error).split()))
        return 2


if __name__ == "__main__":
    sys.exit(main())
