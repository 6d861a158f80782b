"""`residuum introspect`: show what every residual block did to an image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from residuum.cli.blocks import print_blocks, print_predictions, shown_scalars
from residuum.cli.errors import CommandError
from residuum.cli.options import (
    artifact_of,
    check_suffix,
    image_options,
    introspect_query,
    open_model,
    query_options,
)
from residuum.cli.output import print_json, read_file, write_file

if TYPE_CHECKING:
    from artifact.preprocess import Preprocessed
    from introspection.measure import Quantities
    from introspection.question import Options
    from introspection.rows import Run
    from service.runtime.model import LoadedModel

EXAMPLES = """\
  residuum introspect photograph.jpg                # a table of the blocks
  residuum introspect photograph.jpg -o sheet.png   # maps of every block
  residuum introspect photograph.jpg --lesion --target 207
  residuum introspect photograph.jpg --gates stage2.1:0 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="JPEG, PNG, WebP, GIF, TIFF or BMP")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="write .png (a sheet of the blocks; of one block all maps), .npz, .json or .zip, by its suffix",
    )
    query_options(parser)
    image_options(parser)


def run(args: argparse.Namespace) -> int:
    from artifact.manifest import read_manifest
    from introspection.forms import Form, shown, written
    from introspection.question import resolve

    forms: dict[str, Form] = {".png": "png", ".npz": "npz", ".json": "json", ".zip": "zip"}
    check_suffix(args.out, *forms)
    form = forms[args.out.suffix.lower()] if args.out else "json"
    manifest = read_manifest(artifact_of(args)[0])
    options = resolve(introspect_query(args), manifest)
    shown(form, options, manifest)  # what it cannot hold fails here and not after all the work
    with closing(open_model(args)) as model:
        seen = look_at(args.image, model, options, shown_scalars(options, manifest))
    if args.out:
        write_file(args.out, written(form, seen.quantities, manifest, options, seen.image, seen.run))
    if args.json:
        print_json(seen.document)
    else:
        print_seen(args.image, seen)
        print_blocks(seen.document, seen.shown)
    if args.out:
        print(f"wrote {args.out}", file=sys.stderr)
    return 0


class Seen(NamedTuple):
    """One image, and what its blocks did."""

    image: Preprocessed
    quantities: Quantities
    run: Run
    document: dict[str, Any]
    shown: dict[str, list[float]]  # scalars for the table, by name


def look_at(path: Path, model: LoadedModel, options: Options, names: Sequence[str]) -> Seen:
    """Introspect an image file, for a table of the scalars `names`."""
    from artifact.preprocess import ImageError, preprocess
    from introspection.document import answer
    from service.runtime.introspect import introspect as run_introspection

    if model.introspect is None:
        raise CommandError(f"{model.name} has no introspect graph: export it again")
    try:
        image = preprocess(read_file(path), model.manifest.preprocessing, keep_original=True)
    except ImageError as error:
        raise CommandError(f"{path}: {error}") from error
    quantities, run = run_introspection(model, image.pixels, options)
    document = answer(quantities, model.manifest, options, image, run)
    scalars, chosen = quantities.scalars, list(options.blocks)
    shown = {name: scalars[name][chosen].tolist() for name in names if name in scalars}
    return Seen(image, quantities, run, document, shown)


def print_seen(path: Path, seen: Seen) -> None:
    print(f"{path} ({seen.image.format}, {seen.image.width} x {seen.image.height})")
    print_predictions(seen.document["predictions"])
