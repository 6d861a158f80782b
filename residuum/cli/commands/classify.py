"""`residuum classify`: label images, without a server."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from residuum.cli.blocks import print_predictions
from residuum.cli.errors import CommandError, in_words
from residuum.cli.options import check_top_k, image_options, open_model
from residuum.cli.output import print_error, print_json, read_file

if TYPE_CHECKING:
    from service.runtime.model import LoadedModel

EXAMPLES = """\
  residuum classify photograph.jpg
  residuum classify *.jpg --model resnet50 --top-k 3
  residuum classify photograph.jpg --json | jq .results"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="JPEG, PNG, WebP, GIF, TIFF or BMP"
    )
    image_options(parser)


def run(args: argparse.Namespace) -> int:
    from artifact.postprocess import top_predictions
    from artifact.preprocess import ImageError, preprocess

    failed = 0
    results = []
    with closing(open_model(args)) as model:
        check_top_k(args, model)
        for path in args.images:
            try:
                image = preprocess(read_file(path), model.manifest.preprocessing)
            except (ImageError, CommandError) as error:
                failed += 1
                where = f"{path}: " if isinstance(error, ImageError) else ""
                print_error(where + in_words(error))
                continue
            (future,) = model.classify.submit([{"images": image.pixels}])
            best = top_predictions(future.result().outputs["logits"], model.manifest.labels, args.top_k)
            about = {"format": image.format, "width": image.width, "height": image.height}
            predictions = [asdict(prediction) for prediction in best]
            results.append({"file": str(path), "predictions": predictions, "image": about})
            if not args.json:
                print(f"{path} ({image.format}, {image.width} x {image.height})")
                print_predictions(predictions)
        if args.json:
            print_json(about_model(model) | {"results": results})
    return 2 if failed else 0


def about_model(model: LoadedModel) -> dict[str, Any]:
    return {
        "model": model.name,
        "version": model.manifest.version,
        "precision": model.precision,
        "engine": model.engine.name,
    }
