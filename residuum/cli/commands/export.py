"""`residuum export`: turn a checkpoint into an artifact."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from residuum.cli.errors import CommandError, need
from residuum.cli.options import count, precision_options, precision_request
from residuum.cli.tables import print_graphs

EXAMPLES = """\
  residuum export runs/mine/checkpoint.safetensors -o artifacts/mine
  residuum export mine.safetensors --precision int8 --calibration photographs/
  residuum export resnet50 --weights random   # for benchmarks and tests"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        metavar="CHECKPOINT",
        help="what `residuum train` ended with; with --weights random, a row of the zoo",
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="the artifact's folder (default: artifacts/NAME)"
    )
    parser.add_argument("--name", help="the model's name (default: the folder's)")
    parser.add_argument(
        "--weights",
        dest="source",
        choices=("random",),
        help="random ones, for benchmarks and tests: what it answers means nothing",
    )
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="of random weights (default: 0)")
    precision_options(parser)
    smaller = parser.add_argument_group("smaller, at some cost; both train on --data")
    smaller.add_argument(
        "--prune", type=float, metavar="RATIO", help="drop this fraction of the branches' inner channels"
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


def run(args: argparse.Namespace) -> int:
    need("export", "torch", "onnx", "onnxscript", "matplotlib", "tqdm")
    from export.from_checkpoint import check_pruning, from_checkpoint, from_random_weights
    from export.pipeline import check_replaceable, export_artifact
    from export.precisions import Precisions, read_images
    from export.random_weights import RANDOM
    from export.speeds import time_graphs
    from service.reference import measure_reference
    from service.settings import load_settings

    # What can be refused is refused before anything is trained.
    settings = load_settings(max_batch_size=8)
    request = precision_request(args)
    if args.prune or args.qat_epochs:
        need("export", "torch_pruning")
        need("train", "datasets", "lightning_fabric")
    if args.qat_epochs and "int8" not in request.names:
        raise CommandError("--qat-epochs fine-tunes weights for --precision int8: ask for that too")
    if args.source == RANDOM:
        network = from_random_weights(args.weights, args.seed)
    else:
        network = from_checkpoint(Path(args.weights))
    model, metadata, provenance, usual_name = network
    out = args.out or settings.artifacts / (args.name or usual_name)
    name = args.name or out.resolve().name
    check_replaceable(out.resolve())
    if args.prune:
        check_pruning(model, args.prune, args.data)
    calibration, validation = read_images(request, metadata)
    if args.prune:
        from export.training import prune_and_tune

        logs = Path("runs") / f"{name}-pruned-{args.prune:g}"
        model, metadata = prune_and_tune(model, metadata, args.prune, args.prune_epochs, args.data, logs)
        provenance["pruned"] = args.prune
    tuned = None
    if args.qat_epochs and calibration:  # int8 is not asked for without
        from export.training import tune_for_int8

        data = args.data or args.calibration
        tuned = tune_for_int8(model, metadata, calibration, data, args.qat_epochs)
    precisions = Precisions(
        request.names,
        calibration,
        request.allow_loss,
        request.keep_layers,
        tuned,
        args.qat_epochs,
        partial(time_graphs, settings),
        measure_reference,
    )
    manifest = export_artifact(
        model, metadata, name, out, validation=validation, precisions=precisions, **provenance
    )
    print_graphs(manifest)
    print(out)
    return 0
