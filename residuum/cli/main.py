"""The command line: its commands, and what becomes of their errors.

A command is a module of `residuum.cli.commands`. Only the module of the command that is named is imported,
and each command imports what it needs when it runs: `residuum --help` is quick, and `residuum serve` never
loads torch.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import residuum
from artifact.errors import ResiduumError
from residuum.cli.errors import in_words
from residuum.cli.output import print_error
from residuum.cli.parser import Parser

SHELLS = ("bash", "zsh", "fish", "tcsh")
EXAMPLES = """\
  residuum pull resnet50                 # published weights, as an artifact
  residuum serve --model resnet50        # http://127.0.0.1:8000
  residuum introspect photograph.jpg     # what every residual block did
  residuum COMMAND --help                # more about a command"""
COMMANDS = Path(__file__).with_name("commands")


class Command(Protocol):
    """A module of `residuum.cli.commands`; its first line says what the command does."""

    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def command_summaries() -> dict[str, str]:
    """Return what each command does, by its name: the first line of its module, which is not imported."""
    summaries = {}
    for file in sorted(COMMANDS.glob("[!_]*.py")):
        with file.open(encoding="utf-8") as module:
            _, _, summaries[file.stem] = module.readline().strip('"\n.').partition(": ")
    return summaries


def make_parser(*loaded: str) -> Parser:
    """Return a parser of all commands' names, with the arguments of the commands that are `loaded`."""
    parser = Parser(
        prog="residuum",
        description="Serve pretrained ResNets, and show what their residual blocks do.",
        epilog=f"examples:\n{EXAMPLES}",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--print-completion", choices=SHELLS, help="print a script that completes commands")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in command_summaries().items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.set_defaults(parser=command)
        if name in loaded:
            loaded_command: Command = import_module(f"residuum.cli.commands.{name}")
            command.epilog = f"examples:\n{loaded_command.EXAMPLES}"
            loaded_command.add_arguments(command)
            command.complete_files()
            command.set_defaults(run=loaded_command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    Raises:
        SystemExit: help was asked for, or the arguments cannot be read.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without the letters of bars and labels
        sys.stdout.reconfigure(errors="replace")
    arguments = sys.argv[1:] if arguments is None else arguments
    named = next((argument for argument in arguments if not argument.startswith("-")), "")
    parser = make_parser(named)
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        (args.parser if "parser" in args else parser).refuse(unknown)
    if args.version:
        print(f"residuum {residuum.__version__}")
        return 0
    if args.print_completion:
        print_completion(args.print_completion)
        return 0
    if "run" not in args:
        parser.print_help()
        return 0
    return guarded(args.run, args)


def guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command and return its exit code; an error that the user can act on is printed as one line."""
    try:
        return run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `residuum models | head`; what Python still has to write goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a disk that is full, a folder that cannot be written
        print_error(str(error))
        return 2
    except ResiduumError as error:
        print_error(in_words(error))
        return 2


def print_completion(shell: str) -> None:
    """Print the script that makes a shell complete commands, options, choices and files."""
    import shtab

    print(shtab.complete(make_parser(*command_summaries()), shell))
