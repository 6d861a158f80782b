"""`residuum introspect`: show what every residual block did to an image."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from residuum.cli.blocks import Document, print_blocks, print_predictions, scalars_of, shown_scalars
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
    from introspection.question import Question
    from introspection.seen import Seen
    from service.runtime.model import LoadedModel

EXAMPLES = """\
  residuum introspect photograph.jpg                # a table of the blocks
  residuum introspect photograph.jpg -o sheet.png   # maps of every block
  residuum introspect photograph.jpg --lesion --target 207
  residuum introspect photograph.jpg --gates stage2.1:0 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from introspection.forms import BY_SUFFIX

    parser.add_argument("image", type=Path, metavar="IMAGE", help="JPEG, PNG, WebP, GIF, TIFF or BMP")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="write, by its suffix: "
        + "; ".join(f"{suffix} ({form.description or 'the answer'})" for suffix, form in BY_SUFFIX.items()),
    )
    query_options(parser)
    image_options(parser)


def run(args: argparse.Namespace) -> int:
    from artifact.manifest import read_manifest
    from introspection.document import answer
    from introspection.forms import BY_SUFFIX, JSON
    from introspection.question import resolve

    check_suffix(args.out, *BY_SUFFIX)
    form = BY_SUFFIX[args.out.suffix.lower()] if args.out else JSON
    manifest = read_manifest(artifact_of(args)[0])
    question = resolve(introspect_query(args), manifest)
    form.shown(question, manifest)  # what the form cannot hold fails here and not after all the work
    with closing(open_model(args)) as model:
        seen = look_at(args.image, model, question)
    if args.out:
        write_file(args.out, form.written(seen, question))
    document = answer(seen, question)
    if args.json:
        print_json(document)
    else:
        print_seen(args.image, seen, document)
        print_blocks(document, scalars_of(seen, question, shown_scalars(question, manifest)))
    if args.out:
        print(f"wrote {args.out}", file=sys.stderr)
    return 0


def look_at(path: Path, model: LoadedModel, question: Question) -> Seen:
    """Introspect an image file."""
    from artifact.preprocess import ImageError, preprocess
    from service.runtime.introspect import introspect as run_introspection

    if model.introspect is None:
        raise CommandError(f"{model.name} has no introspect graph: export it again")
    try:
        image = preprocess(read_file(path), model.manifest.preprocessing, keep_original=True)
    except ImageError as error:
        raise CommandError(f"{path}: {error.detail}", error.hint) from error
    return run_introspection(model, image, question)


def print_seen(path: Path, seen: Seen, document: Document) -> None:
    print(f"{path} ({seen.image.format}, {seen.image.width} x {seen.image.height})")
    print_predictions(document["predictions"])
