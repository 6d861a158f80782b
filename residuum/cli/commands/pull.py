"""`residuum pull`: turn published weights, or a file of weights, into an artifact."""

from __future__ import annotations

import argparse

from residuum.cli.artifacts import artifact_options, make
from residuum.cli.output import print_json
from residuum.cli.tables import new_table, print_table

EXAMPLES = """\
  residuum pull            # list what can be pulled
  residuum pull resnet50   # -> artifacts/resnet50
  residuum pull timm/resnet50.a1_in1k --name a1 --precision fp16
  residuum pull ./weights.pth --labels classes.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        nargs="?",
        metavar="SOURCE",
        help="published weights by name: resnet50, resnet50:v1, timm/resnet50.a1_in1k, microsoft/resnet-50; "
        "or a file of weights such as ./weights.pth, or a checkpoint of `residuum train`; without it, the "
        "published weights are listed",
    )
    artifact_options(parser)


def run(args: argparse.Namespace) -> int:
    if args.weights is None:
        print_pretrained(args.json)
        return 0
    return make(args)


def print_pretrained(as_json: bool) -> None:
    """Print the published weights; each architecture's default comes first and is marked."""
    from models.pretrained import PRETRAINED, weights_of

    names = list(dict.fromkeys(row.architecture for row in PRETRAINED))
    rows = [(row, index == 0) for name in names for index, row in enumerate(weights_of(name))]
    if as_json:
        print_json([row.describe() | {"default": default} for row, default in rows])
        return
    table = new_table("NAME:WEIGHTS", "", "source", ">parameters", ">top-1", ">at pixels", "licence")
    for row, default in rows:
        top1 = (f"{100 * row.published.top1:.2f} %", str(row.published.pixels)) if row.published else ("", "")
        name = f"{row.architecture}:{row.weights}"
        table.add_row(name, "default" * default, row.key, f"{row.num_parameters:,}", *top1, row.licence)
    print_table(table)
