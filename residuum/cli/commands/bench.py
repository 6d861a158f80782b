"""`residuum bench`: measure a model's graphs on this machine."""

from __future__ import annotations

import argparse

from residuum.cli.errors import need
from residuum.cli.options import ENGINE_SETTINGS, add_setting_flags, given

EXAMPLES = """\
  residuum bench   # the embedded model and a ResNet-50
  residuum bench --model resnet50 --batch 1 --batch 8 --engine openvino"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help="a name under --artifacts, or a path to an artifact; repeatable (default: embedded, and a "
        "ResNet-50 with random weights, which is made first)",
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="time for each row, about (default: 1)"
    )
    parser.add_argument("--batch", type=int, action="append", default=[], metavar="N", help="repeatable")
    parser.add_argument("--quick", action="store_true", help="less of everything, for a first look")
    add_setting_flags(parser, ENGINE_SETTINGS)


def run(args: argparse.Namespace) -> int:
    need("export", "torch", "onnx", "matplotlib")
    need("pull", "httpx", "platformdirs", "filelock")
    from benchmarks.engines import bench_engines
    from service.settings import load_settings

    settings = load_settings(**given(args, ENGINE_SETTINGS))
    bench_engines(args.model, settings, seconds=args.seconds, batches=args.batch, quick=args.quick)
    return 0
