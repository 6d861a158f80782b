"""`residuum export`: turn a checkpoint, or other weights, into an artifact."""

from __future__ import annotations

import argparse

from residuum.cli.artifacts import artifact_options, make

EXAMPLES = """\
  residuum export runs/mine/checkpoint.safetensors -o artifacts/mine
  residuum export mine.safetensors --precision int8 --calibration photographs/
  residuum export resnet50 --weights random   # for benchmarks and tests"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        metavar="SOURCE",
        help="a checkpoint of `residuum train`, or what `residuum pull` takes: a file of other people's "
        "weights, or published ones by name; with --weights random, a row of the zoo",
    )
    artifact_options(parser)


def run(args: argparse.Namespace) -> int:
    return make(args)
