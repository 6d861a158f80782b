"""`residuum compare`: show what every residual block did to two images, on one scale."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from residuum.cli.blocks import compared_scalars, print_comparison, scalars_of
from residuum.cli.commands.introspect import look_at, print_seen
from residuum.cli.options import (
    artifact_of,
    check_suffix,
    image_options,
    introspect_query,
    open_model,
    query_options,
)
from residuum.cli.output import print_json, write_file

EXAMPLES = """\
  residuum compare a.jpg b.jpg   # about A's top class
  residuum compare a.jpg b.jpg -o both.png --quantities share
  residuum compare a.jpg b.jpg --quantities lens,lesion --target 207"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    formats = "an image: JPEG, PNG, WebP, GIF, TIFF or BMP"
    parser.add_argument("a", type=Path, metavar="A", help=formats)
    parser.add_argument("b", type=Path, metavar="B", help="another; A's top class is the target for both")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="write .png (the blocks of both side by side, on one scale) or .json, by its suffix",
    )
    parser.description = (
        f"{parser.description} Without --quantities: share, ratio and contribution, as far as they exist."
    )
    query_options(parser)
    image_options(parser)


def run(args: argparse.Namespace) -> int:
    from artifact.manifest import read_manifest
    from introspection.document import answer, to_json
    from introspection.pictures.comparison import COMPARED, Subject, compared_maps, comparison_picture
    from introspection.quantities import why_absent
    from introspection.question import Target, resolve

    check_suffix(args.out, ".png", ".json")
    drawn = args.out and args.out.suffix.lower() == ".png"
    manifest = read_manifest(artifact_of(args)[0])
    if not args.quantities:
        existing = [name for name in COMPARED if not why_absent(name, manifest)]
        args.quantities = ",".join(existing or ["residual"])
    question = resolve(introspect_query(args), manifest)
    if drawn:
        compared_maps(question, manifest)  # what it cannot hold fails here and not after all the work
    with closing(open_model(args)) as model:
        a = look_at(args.a, model, question)
        documents = {"a": answer(a, question)}
        if question.target.index is None:
            question = replace(question, target=Target("index", a.values.target))
        b = look_at(args.b, model, question)
        documents["b"] = answer(b, question)
    if drawn:
        pair = (Subject(args.a.name, a), Subject(args.b.name, b))
        write_file(args.out, comparison_picture(pair, question))
    elif args.out:
        write_file(args.out, to_json(documents))
    if args.json:
        print_json(documents)
    else:
        print("A: ", end="")
        print_seen(args.a, a, documents["a"])
        print("B: ", end="")
        print_seen(args.b, b, documents["b"])
        names = compared_scalars(question)
        of_a, of_b = (scalars_of(seen, question, names) for seen in (a, b))
        print_comparison(documents["a"], documents["b"], of_a, of_b)
    if args.out:
        print(f"wrote {args.out}", file=sys.stderr)
    return 0
