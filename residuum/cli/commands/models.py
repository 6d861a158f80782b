"""`residuum models`: list the models that can be served."""

from __future__ import annotations

import argparse
from typing import Any

from residuum.cli.errors import CommandError, need
from residuum.cli.options import add_setting_flags, given
from residuum.cli.output import print_error, print_json
from residuum.cli.tables import new_table, print_table

ZOO_ORDERS = {"name": "name", "parameters": "num_parameters", "macs": "num_macs", "pixels": "input_size"}

EXAMPLES = """\
  residuum models                     # what serve --model takes
  residuum models --zoo --sort macs   # architectures and their cost"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--zoo", action="store_true", help="list the architectures that can be built instead")
    parser.add_argument(
        "--sort", choices=ZOO_ORDERS, help="with --zoo: by this column (default: the order of the table)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_setting_flags(parser, ("artifacts",))


def run(args: argparse.Namespace) -> int:
    from artifact.manifest import ManifestError, read_manifest
    from artifact.store import EMBEDDED, artifacts_in, find_artifact
    from service.settings import load_settings

    if args.zoo:
        print_zoo(args.sort, args.json)
        return 0
    if args.sort:
        raise CommandError("--sort goes with --zoo")
    settings = load_settings(**given(args, ("artifacts",)))
    folders = artifacts_in(settings.artifacts)
    rows: list[dict[str, Any]] = []
    for folder in [find_artifact(EMBEDDED, settings.artifacts), *folders]:
        try:
            manifest = read_manifest(folder, verify=False)
        except ManifestError as error:
            print_error(str(error))
            continue
        graph = manifest.graph("classify")
        accuracy = graph.accuracy.top1 if graph and graph.accuracy else None
        rows.append(
            {
                "model": EMBEDDED if folder not in folders else folder.name,
                "name": manifest.name,
                "version": manifest.version,
                "architecture": manifest.architecture,
                "num_classes": manifest.num_classes,
                "num_parameters": manifest.provenance.num_parameters,
                "precisions": sorted({graph.precision for graph in manifest.graphs}),
                "top1": accuracy,
            }
        )
    if args.json:
        print_json(rows)
        return 0
    table = new_table(
        "--model", "name", "version", "architecture", ">classes", ">parameters", "precisions", ">top-1"
    )
    for row in rows:
        top1 = "" if row["top1"] is None else f"{100 * row['top1']:.2f} %"
        numbers = (f"{row['num_classes']:,}", f"{row['num_parameters']:,}", " ".join(row["precisions"]), top1)
        table.add_row(row["model"], row["name"], row["version"], row["architecture"], *numbers)
    print_table(table)
    return 0


def print_zoo(order: str | None, as_json: bool) -> None:
    """Print every architecture and its cost, counted from its layers; a test compares it with `published`."""
    need("export", "torch")
    from dataclasses import asdict

    from models.count import count
    from models.zoo import ZOO

    rows = []
    for architecture in ZOO.values():
        cost = count(architecture)._asdict()
        published = {f"published_{name}": getattr(architecture, name) for name in cost}
        rows.append(asdict(architecture) | published | cost)
    if order:
        rows.sort(key=lambda row: row[ZOO_ORDERS[order]])
    if as_json:
        print_json(rows)
        return
    columns = (">parameters", ">published", ">MACs", ">published", ">pixels", ">classes")
    table = new_table("name", "variant", *columns, "source")
    for row in rows:
        table.add_row(
            row["name"],
            row["variant"],
            f"{row['num_parameters']:,}",
            as_published(row["published_num_parameters"], 1e6, "M"),
            f"{row['num_macs'] / 1e9:.3f} G",
            as_published(row["published_num_macs"], 1e9, "G"),
            str(row["input_size"]),
            str(row["num_classes"]),
            row["source"],
        )
    print_table(table)


def as_published(value: int | None, unit: float, letter: str) -> str:
    return "" if value is None else f"{value / unit:.8g} {letter}"
