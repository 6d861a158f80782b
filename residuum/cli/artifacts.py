"""The options and the work that `residuum export` and `residuum pull` share: weights become an artifact."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from residuum.cli.errors import need
from residuum.cli.options import add_setting_flags, count, field_values, given
from residuum.cli.output import print_json, progress_bar
from residuum.cli.tables import print_graphs

if TYPE_CHECKING:
    from export.precisions import PrecisionRequest
    from export.settings import PullSettings
    from export.source import Request

PREPROCESSING = ("resize", "crop", "interpolation", "mean", "std")


def artifact_options(parser: argparse.ArgumentParser) -> None:
    """Add every option but the source itself."""
    from export.settings import PullSettings

    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="the artifact's folder (default: artifacts/NAME)"
    )
    parser.add_argument(
        "--name",
        help="the model's name (default: that of the folder, or else of the architecture, the file or, for a "
        "checkpoint, the folder that it lies in)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="make the artifact again if it is there, and replace that of other weights; a checkpoint and "
        "random weights always do",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    _weights_options(parser)
    _precision_options(parser)
    _training_options(parser)
    add_setting_flags(parser, tuple(PullSettings.model_fields), PullSettings)


def _weights_options(parser: argparse.ArgumentParser) -> None:
    random = parser.add_argument_group("random weights, for benchmarks and tests; their answers mean nothing")
    random.add_argument(
        "--weights",
        dest="kind",
        choices=("random",),
        help="SOURCE is a row of the zoo: residuum models --zoo",
    )
    random.add_argument("--seed", type=count, default=0, metavar="N", help="of the weights (default: 0)")
    images = parser.add_argument_group("preprocessing of published weights and files, if not the usual")
    for name, what in (("resize", "shorter side"), ("crop", "side of the centre crop")):
        images.add_argument(f"--{name}", type=int, metavar="PIXELS", help=f"{what}, in pixels")
    for name in ("mean", "std"):
        images.add_argument(f"--{name}", type=three_numbers, metavar="R,G,B", help="of pixels in [0, 1]")
    images.add_argument(
        "--interpolation", choices=("bilinear", "bicubic", "lanczos"), help="how images are resized"
    )
    parser.add_argument(
        "--scaled-decoding",
        action="store_true",
        help="decode JPEGs at 1/2, 1/4 or 1/8 of their size where they stay much larger than the input: "
        "faster, but not the pixels of torchvision",
    )
    file = parser.add_argument_group("a file of other people's weights")
    file.add_argument("--architecture", metavar="NAME", help="a row of the zoo (default: by the tensors)")
    file.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of it; repeatable"
    )
    file.add_argument("--labels", type=Path, metavar="FILE", help="classes in order: one a line, or JSON")


def _precision_options(parser: argparse.ArgumentParser) -> None:
    from artifact.manifest import Precision

    group = parser.add_argument_group("precisions; every one passes its gates, or nothing is written")
    group.add_argument(
        "--precision",
        action="append",
        default=[],
        choices=get_args(Precision),
        help="add graphs of it; fp32 is always there; repeatable. int8 is for CPUs, int8-trt for TensorRT",
    )
    group.add_argument(
        "--calibration",
        metavar="PATH",
        help="for int8: a data set, or a folder of images like those that will be sent; no labels needed",
    )
    group.add_argument(
        "--num-calibration", type=int, default=512, metavar="N", help="how many images (default: 512)"
    )
    group.add_argument(
        "--keep-layers",
        type=count,
        default=0,
        metavar="N",
        help="leave the N layers that int8 harms most in floating point (default: 0)",
    )
    group.add_argument(
        "--data",
        metavar="PATH",
        help="measure accuracy on its validation split (default: --calibration's, if it has one)",
    )
    group.add_argument(
        "--allow-loss", action="store_true", help="write it even if a precision loses more than it may"
    )


def _training_options(parser: argparse.ArgumentParser) -> None:
    smaller = parser.add_argument_group("smaller, at some cost; both train on --data")
    smaller.add_argument(
        "--prune",
        type=float,
        default=0.0,
        metavar="RATIO",
        help="drop this fraction of the branches' inner channels",
    )
    smaller.add_argument(
        "--prune-epochs", type=count, default=1, metavar="N", help="fine-tune after pruning (default: 1)"
    )
    smaller.add_argument(
        "--qat-epochs",
        type=count,
        default=0,
        metavar="N",
        help="fine-tune int8's weights under its rounding, on 20,000 images an epoch at most (default: 0)",
    )


def three_numbers(text: str) -> tuple[float, ...]:
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected R,G,B such as 0.485,0.456,0.406") from None
    return red, green, blue


def make(args: argparse.Namespace) -> int:
    """Make the artifact of `args.weights`, and print what it holds."""
    need("export", "torch", "onnx", "onnxscript", "matplotlib", "tqdm")
    if args.prune or args.qat_epochs:
        need("train", "datasets", "lightning_fabric")
    from export.make import Fetch, make_artifact
    from export.settings import PullSettings, load_pull_settings
    from export.source import kind_of

    settings = load_pull_settings(**given(args, tuple(PullSettings.model_fields)))
    request = _request(args, settings)
    fetch: Fetch | None = None
    is_published = kind_of(request) == "published"
    with progress_bar() if is_published else nullcontext() as progress:
        if is_published:
            need("pull", "httpx", "platformdirs", "filelock")
            from export.download import default_cache
            from export.from_published import Access
            from export.from_published import fetch as fetch_published

            access = Access(
                settings.pytorch_url,
                settings.hub_url,
                settings.cache or default_cache(),
                settings.timeout,
                settings.offline,
                progress,
            )
            fetch = partial(fetch_published, access=access, say=_say)
        made = make_artifact(request, fetch, _say)
    if args.json:
        document = {"artifact": str(made.path), "made": made.made} | made.manifest.model_dump(
            mode="json", include={"name", "version", "architecture", "preprocessing", "provenance"}
        )
        print_json(document)
        return 0
    if not made.made:
        _say(f"{made.path} is there already, of these weights; --force makes it again")
    print_graphs(made.manifest)
    print(made.path)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _request(args: argparse.Namespace, settings: PullSettings) -> Request:
    from export.reference import measure_reference
    from export.source import Request, Training
    from export.speeds import time_graphs
    from service.settings import load_settings

    return Request(
        args.weights,
        settings.artifacts,
        args.out,
        args.name,
        seed=args.seed if args.kind == "random" else None,
        architecture=args.architecture,
        changes=field_values(args.set),
        labels=args.labels,
        preprocessing=given(args, PREPROCESSING),
        scaled_decoding=args.scaled_decoding,
        precisions=_precision_request(args),
        training=Training(args.prune, args.prune_epochs, args.qat_epochs),
        time_graphs=partial(time_graphs, load_settings(max_batch_size=8)),
        measure_reference=measure_reference,
        force=args.force,
    )


def _precision_request(args: argparse.Namespace) -> PrecisionRequest:
    """Return what --precision and the options beside it ask for."""
    from export.images import is_data_set
    from export.precisions import PrecisionRequest

    if args.data or (args.calibration and is_data_set(args.calibration)):
        need("train", "datasets")
    names = tuple(args.precision)
    return PrecisionRequest(
        names, args.calibration, args.num_calibration, args.data, args.allow_loss, args.keep_layers
    )
