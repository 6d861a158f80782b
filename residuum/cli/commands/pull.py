"""`residuum pull`: turn published weights, or a file of them, into an artifact."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from residuum.cli.errors import need
from residuum.cli.options import (
    add_setting_flags,
    field_values,
    given,
    precision_options,
    precision_request,
    three_numbers,
)
from residuum.cli.output import print_json, progress_bar
from residuum.cli.tables import new_table, print_graphs, print_table

EXAMPLES = """\
  residuum pull            # list what can be pulled
  residuum pull resnet50   # -> artifacts/resnet50
  residuum pull timm/resnet50.a1_in1k --name a1 --precision fp16
  residuum pull ./weights.pth --labels classes.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from service.settings import PullSettings

    parser.add_argument(
        "weights",
        nargs="?",
        metavar="NAME[:WEIGHTS]",
        help="resnet50, resnet50:v1, timm/resnet50.a1_in1k, microsoft/resnet-50, or a file such as "
        "./weights.pth; without it, what can be pulled is listed",
    )
    parser.add_argument("--name", help="the model's name (default: the architecture's, or the file's)")
    parser.add_argument("--force", action="store_true", help="make the artifact again even if it is there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    for name, what in (("resize", "shorter side to"), ("crop", "pixels of the centre crop")):
        parser.add_argument(f"--{name}", type=int, metavar="PIXELS", help=f"{what} (default: the weights')")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=three_numbers, metavar="R,G,B", help="of pixels in [0, 1], likewise"
        )
    parser.add_argument("--interpolation", choices=("bilinear", "bicubic", "lanczos"), help="likewise")
    local = parser.add_argument_group("of a file")
    local.add_argument("--architecture", metavar="NAME", help="a row of the zoo (default: by the tensors)")
    local.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of it; repeatable"
    )
    local.add_argument("--labels", type=Path, metavar="FILE", help="classes in order: one a line, or JSON")
    precision_options(parser)
    add_setting_flags(parser, tuple(PullSettings.model_fields), PullSettings)


def run(args: argparse.Namespace) -> int:
    if args.weights is None:
        print_pretrained(args.json)
        return 0
    need("pull", "torch", "onnx", "onnxscript", "httpx", "platformdirs", "filelock")
    from export.pull import Access, Request, pull
    from export.speeds import time_graphs
    from models.download import default_cache
    from service.reference import measure_reference
    from service.settings import PullSettings, load_pull_settings, load_settings

    settings = load_pull_settings(**given(args, tuple(PullSettings.model_fields)))
    request = Request(
        args.weights,
        settings.artifacts,
        name=args.name,
        architecture=args.architecture,
        changes=field_values(args.set),
        labels=args.labels,
        preprocessing=given(args, ("resize", "crop", "interpolation", "mean", "std")),
        precisions=precision_request(args),
        time_graphs=partial(time_graphs, load_settings(max_batch_size=8)),
        measure_reference=measure_reference,
        force=args.force,
    )
    cache = settings.cache or default_cache()
    with progress_bar() as progress:
        access = Access(
            settings.pytorch_url, settings.hub_url, cache, settings.timeout, settings.offline, progress
        )
        pulled = pull(request, access, lambda line: print(line, file=sys.stderr))
    if args.json:
        document = {"artifact": str(pulled.path), "made": pulled.made} | pulled.manifest.model_dump(
            mode="json", include={"name", "version", "architecture", "preprocessing", "provenance"}
        )
        print_json(document)
        return 0
    if not pulled.made:
        print(f"{pulled.path} is there already, of these weights; --force makes it again", file=sys.stderr)
    print_graphs(pulled.manifest)
    print(pulled.path)
    return 0


def print_pretrained(as_json: bool) -> None:
    """The table of published weights, each architecture's default first and marked."""
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
