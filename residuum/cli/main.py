"""The command line: `residuum serve | classify | introspect | compare | models | pull | train | export |
bench`.

Each command imports what it needs when it runs, so `residuum serve` never loads torch. An error that the
user can mend goes to stderr in one line, with exit code 2; `--json` prints for programs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import BaseModel

    from export.precisions import PrecisionRequest
    from models.checkpoint import CheckpointMetadata
    from models.manifest import Manifest, Speed
    from models.preprocess import Preprocessed
    from models.resnet import ResNet
    from models.training.recipe import Recipe
    from service import introspection_answer, introspection_query
    from service.introspection import Quantities
    from service.introspection_query import IntrospectQuery
    from service.loading import LoadedModel
    from service.settings import Settings

# What runs a graph, of the server's settings; the other settings are about serving.
ENGINE_SETTINGS = ("artifacts", "engine", "device", "precision", "threads", "engine_cache")
OUR_PACKAGES = ("models", "export", "service", "benchmarks", "residuum")
SPEED_BAR = 20  # columns
QUERY_FLAGS = (
    "target",
    "blocks",
    "quantities",
    "maps",
    "scale",
    "gates",
    "lesion",
    "render",
    "colormap",
    "alpha",
)
ZOO_ORDERS = {"name": "name", "parameters": "num_parameters", "macs": "num_macs", "pixels": "input_size"}


class CommandError(Exception):
    """What was asked cannot be done; the message says why."""


# --- serve ----------------------------------------------------------------------------------------


def serve_options(parser: argparse.ArgumentParser) -> None:
    from service.settings import Settings

    add_setting_flags(parser, tuple(Settings.model_fields))


def serve(args: argparse.Namespace) -> int:
    # Of another server's workers, perhaps; whether this one has any, --workers says.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    from service.running import serve as run_server
    from service.settings import Settings, load_settings

    run_server(load_settings(**given(args, tuple(Settings.model_fields))))
    return 0


def add_setting_flags(
    parser: argparse.ArgumentParser, names: Sequence[str], kind: type[BaseModel] | None = None
) -> None:
    """A flag for each setting of `kind`, or the server's; what it says is in `service.settings` only."""
    from service.settings import ENV_PREFIX, Settings, flag_of

    group = parser.add_argument_group("settings", f"each also as an environment variable, {ENV_PREFIX}NAME")
    for name in names:
        field = (kind or Settings).model_fields[name]
        default = field.default
        if isinstance(default, tuple):
            default = ", ".join(default) or "none"
        options: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if field.annotation is not bool:
            action = "append" if isinstance(field.default, tuple) else "store"
            options = {"action": action, "metavar": name.rsplit("_", 1)[-1].upper()}
        help_text = f"{field.description} (default: {default})".replace("%", "%%")
        group.add_argument(flag_of(name), dest=name, help=help_text, **options)


def given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The flags that were given; the environment and the defaults decide the rest."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


# --- classify and introspect, without a server -----------------------------------------------------


def image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="a name under --artifacts, or a path to an artifact (default: embedded)"
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="how many predictions (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON, in the form that the server answers")
    add_setting_flags(parser, ENGINE_SETTINGS)


def classify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="JPEG, PNG, WebP, GIF, TIFF or BMP"
    )
    image_options(parser)


def classify(args: argparse.Namespace) -> int:
    from models.preprocess import ImageError, preprocess
    from service.postprocess import top_predictions
    from service.terminal import print_predictions

    failed = 0
    results = []
    with closing(open_model(args)) as model:
        check_top_k(args, model)
        for path in args.images:
            try:
                image = preprocess(read_file(path), model.manifest.preprocessing)
            except (ImageError, CommandError) as error:
                failed += 1
                print_error(f"{path}: {error}" if isinstance(error, ImageError) else str(error))
                continue
            (future,) = model.classify.submit([{"images": image.pixels}])
            best = top_predictions(future.result().outputs["logits"], model.manifest.labels, args.top_k)
            about = {"format": image.format, "width": image.width, "height": image.height}
            predictions = [prediction.model_dump() for prediction in best]
            results.append({"file": str(path), "predictions": predictions, "image": about})
            if not args.json:
                print(f"{path} ({image.format}, {image.width} x {image.height})")
                print_predictions(predictions)
        if args.json:
            print_json(about_model(model) | {"results": results})
    return 2 if failed else 0


def introspect_options(parser: argparse.ArgumentParser) -> None:
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


def introspect(args: argparse.Namespace) -> int:
    from models.manifest import read_manifest
    from service.introspection_forms import Form, shown, written
    from service.introspection_query import resolve
    from service.terminal import print_blocks, shown_scalars

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


def compare_options(parser: argparse.ArgumentParser) -> None:
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
    parser.epilog = "Without --quantities: share, ratio and contribution, as far as they exist."
    query_options(parser)
    image_options(parser)


def compare(args: argparse.Namespace) -> int:
    from models.manifest import read_manifest
    from service.comparison_picture import COMPARED, Subject, compared_maps, comparison_picture
    from service.introspection import why_absent
    from service.introspection_answer import to_json
    from service.introspection_query import Target, resolve
    from service.terminal import compared_scalars, print_comparison

    check_suffix(args.out, ".png", ".json")
    drawn = args.out and args.out.suffix.lower() == ".png"
    manifest = read_manifest(artifact_of(args)[0])
    if not args.quantities:
        existing = [name for name in COMPARED if not why_absent(name, manifest)]
        args.quantities = ",".join(existing or ["residual"])
    options = resolve(introspect_query(args), manifest)
    if drawn:
        compared_maps(options, manifest)  # what it cannot hold fails here and not after all the work
    with closing(open_model(args)) as model:
        a = look_at(args.a, model, options, compared_scalars(options))
        if options.target.index is None:
            options = replace(options, target=Target("index", a.quantities.target))
        b = look_at(args.b, model, options, compared_scalars(options))
    documents = {"a": a.document, "b": b.document}
    if drawn:
        pair = (
            Subject(args.a.name, a.image, a.quantities),
            Subject(args.b.name, b.image, b.quantities),
        )
        write_file(args.out, comparison_picture(pair, manifest, options))
    elif args.out:
        write_file(args.out, to_json(documents))
    if args.json:
        print_json(documents)
    else:
        print("A: ", end="")
        print_seen(args.a, a)
        print("B: ", end="")
        print_seen(args.b, b)
        print_comparison(a.document, b.document, a.shown, b.shown)
    if args.out:
        print(f"wrote {args.out}", file=sys.stderr)
    return 0


def query_options(parser: argparse.ArgumentParser) -> None:
    """A flag for each parameter of `POST /introspect`, whose text is in service.introspection_query only."""
    from service.introspection_query import IntrospectQuery

    group = parser.add_argument_group("what is asked", "as the parameters of POST /introspect")
    for name in QUERY_FLAGS:
        field = IntrospectQuery.model_fields[name]
        if field.annotation is bool:
            group.add_argument(f"--{name}", action="store_true", default=None, help=field.description)
        else:
            default = f" (default: {field.default})" if field.default else ""
            group.add_argument(f"--{name}", metavar=name.upper(), help=f"{field.description}{default}")


def introspect_query(args: argparse.Namespace) -> IntrospectQuery:
    from pydantic import ValidationError

    from service.introspection_query import IntrospectQuery

    try:
        return IntrospectQuery(**given(args, (*QUERY_FLAGS, "top_k")))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise CommandError(f"--{name} {first['input']}: {first['msg']}") from error


class Seen(NamedTuple):
    """One image, and what its blocks did."""

    image: Preprocessed
    quantities: Quantities
    run: introspection_answer.Run
    document: dict[str, Any]
    shown: dict[str, list[float]]  # scalars for the table, by name


def look_at(
    path: Path, model: LoadedModel, options: introspection_query.Options, names: Sequence[str]
) -> Seen:
    """Introspect an image file, for a table of the scalars `names`."""
    from models.preprocess import ImageError, preprocess
    from service.introspecting import introspect as run_introspection
    from service.introspection_answer import answer

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
    from service.terminal import print_predictions

    print(f"{path} ({seen.image.format}, {seen.image.width} x {seen.image.height})")
    print_predictions(seen.document["predictions"])


def check_suffix(out: Path | None, *suffixes: str) -> None:
    if out and out.suffix.lower() not in suffixes:
        raise CommandError(f"-o {out}: the suffix must be {', '.join(suffixes[:-1])} or {suffixes[-1]}")


def artifact_of(args: argparse.Namespace) -> tuple[Path, Settings]:
    """The directory of the model asked for, and how to run it: one image at a time."""
    from service.loading import find_artifact
    from service.settings import load_settings

    settings = load_settings(**given(args, ENGINE_SETTINGS), max_batch_size=1)
    return find_artifact(args.model or settings.model[0], settings.artifacts), settings


def open_model(args: argparse.Namespace) -> LoadedModel:
    """The model asked for, verified and ready."""
    from service.loading import load_model

    return load_model(*artifact_of(args))


def check_top_k(args: argparse.Namespace, model: LoadedModel) -> None:
    if not 1 <= args.top_k <= model.manifest.num_classes:
        raise CommandError(f"--top-k {args.top_k}: {model.name} has {model.manifest.num_classes} classes")


def about_model(model: LoadedModel) -> dict[str, Any]:
    return {
        "model": model.name,
        "version": model.manifest.version,
        "precision": model.precision,
        "engine": model.engine.name,
    }


# --- models, train, export, bench -------------------------------------------------------------------


def models_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--zoo", action="store_true", help="list the architectures that can be built instead")
    parser.add_argument(
        "--sort", choices=ZOO_ORDERS, help="with --zoo: by this column (default: the order of the table)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_setting_flags(parser, ("artifacts",))


def models(args: argparse.Namespace) -> int:
    from models.manifest import MANIFEST_FILE, ManifestError, read_manifest
    from service.loading import find_artifact
    from service.settings import EMBEDDED, load_settings
    from service.terminal import new_table, print_table

    if args.zoo:
        print_zoo(args.sort, args.json)
        return 0
    if args.sort:
        raise CommandError("--sort goes with --zoo")
    settings = load_settings(**given(args, ("artifacts",)))
    folders = [path.parent for path in sorted(settings.artifacts.glob(f"*/{MANIFEST_FILE}"))]
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
    """Every architecture and what it costs, counted; `published` is held against that by a test."""
    need("export", "torch")
    from dataclasses import asdict

    from models.count import count
    from models.zoo import ZOO
    from service.terminal import new_table, print_table

    rows = []
    for row in ZOO.values():
        cost = count(row)._asdict()
        published = {f"published_{name}": getattr(row, name) for name in cost}
        rows.append(asdict(row) | published | cost)
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


def pull_options(parser: argparse.ArgumentParser) -> None:
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


def count(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text}: 0 or more is expected")
    return number


def three_numbers(text: str) -> tuple[float, ...]:
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected R,G,B such as 0.485,0.456,0.406") from None
    return red, green, blue


def pull(args: argparse.Namespace) -> int:
    if args.weights is None:
        print_pretrained(args.json)
        return 0
    need("pull", "torch", "onnx", "onnxscript", "httpx", "platformdirs", "filelock")
    from export.pull import Access, Request, pull
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


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """What a download tells its progress to: a bar on standard error, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        tasks: dict[str, Any] = {}

        def tell(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name)
            progress.update(tasks[name], completed=done, total=total)

        yield tell


def print_pretrained(as_json: bool) -> None:
    """The table of published weights, each architecture's default first and marked."""
    from models.pretrained import PRETRAINED, weights_of
    from service.terminal import new_table, print_table

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


def field_values(items: Sequence[str]) -> dict[str, str]:
    """Of `--set FIELD=VALUE`."""
    if malformed := [item for item in items if "=" not in item]:
        raise CommandError(f"--set {malformed[0]}: expected FIELD=VALUE, such as epochs=30")
    return dict(item.split("=", 1) for item in items)


def train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a name; without one, the recipes are listed"
    )
    parser.add_argument(
        "--data", metavar="PATH", help="folder of Parquet shards or of class folders, or a hub id"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="logs and checkpoint (default: runs/RECIPE)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe; repeatable",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N images of each split")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument(
        "--no-resume", dest="resume", action="store_false", help="start anew in a used folder"
    )


def train(args: argparse.Namespace) -> int:
    from models.training.recipe import RECIPES, get_recipe

    if args.recipe is None:
        print_recipes(list(RECIPES.values()))
        return 0
    if args.data is None:
        raise CommandError("--data is needed: a folder of Parquet shards or of class folders, or a hub id")
    recipe = get_recipe(args.recipe, field_values(args.set))
    need("train", "torch", "lightning_fabric", "datasets")
    from models.training.data import load_images
    from models.training.loop import train as run_training

    served = recipe.preprocessing()
    stored = served.model_copy(update={"resize": recipe.store_size, "crop": recipe.store_size})
    train_set = load_images(args.data, "train", stored, args.limit)
    valid_set = load_images(args.data, "valid", served, args.limit)
    out = args.out or Path("runs") / recipe.name
    print(run_training(recipe, train_set, valid_set, out, resume=args.resume, accelerator=args.device))
    return 0


def print_recipes(recipes: Sequence[Recipe]) -> None:
    from service.terminal import new_table, print_table

    table = new_table("recipe", "architecture", ">classes", ">epochs", ">batch", ">test pixels")
    for recipe in recipes:
        numbers = (recipe.num_classes, recipe.epochs, recipe.batch_size, recipe.test_crop)
        table.add_row(recipe.name, recipe.architecture, *map(str, numbers))
    print_table(table)


def export_options(parser: argparse.ArgumentParser) -> None:
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


def precision_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("precisions; every one passes its gates, or nothing is written")
    group.add_argument(
        "--precision",
        action="append",
        default=[],
        choices=("fp32", "bf16", "fp16", "int8", "int8-trt"),
        help="add graphs of it; fp32 is always there; repeatable. int8 is for CPUs, int8-trt for TensorRT",
    )
    group.add_argument(
        "--calibration",
        metavar="PATH",
        help="for int8: a data set, or a folder of images like those that will be sent; no labels needed",
    )
    group.add_argument(
        "--num-calibration", type=int, default=512, metavar="N", help="so many of them (default: 512)"
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


def export(args: argparse.Namespace) -> int:
    need("export", "torch", "onnx", "onnxscript", "matplotlib", "tqdm")
    from export.pipeline import check_replaceable, export_artifact
    from export.precisions import Precisions, read_images
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
    model, metadata, provenance, usual_name = source_of(args)
    out = args.out or settings.artifacts / (args.name or usual_name)
    name = args.name or out.resolve().name
    check_replaceable(out.resolve())
    if args.prune:
        check_pruning(model, args)
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


def source_of(args: argparse.Namespace) -> tuple[ResNet, CheckpointMetadata, dict[str, Any], str]:
    """The network, what is known of it, where it came from, and what to call it."""
    from export.random_weights import RANDOM, random_model, sha256_of_weights
    from models.checkpoint import load_checkpoint
    from models.manifest import sha256_of

    if args.source == RANDOM:
        model, metadata = random_model(args.weights, args.seed)
        sha256 = sha256_of_weights(model)
        source = f"random weights, seed {args.seed}"
        return (
            model,
            metadata,
            {"source": source, "weights": RANDOM, "weights_sha256": sha256},
            model.spec.name,
        )
    path = Path(args.weights)
    if not path.is_file():
        raise CommandError(
            f"{path}: no such checkpoint (--weights random takes a row of the zoo; "
            "residuum pull takes published weights)"
        )
    model, metadata = load_checkpoint(path)
    recipe = metadata.recipe or {}
    source = f"residuum train {recipe['name']}" if "name" in recipe else f"checkpoint {path.name}"
    return model, metadata, {"source": source, "weights_sha256": sha256_of(path)}, path.resolve().parent.name


def check_pruning(model: ResNet, args: argparse.Namespace) -> None:
    from export.prune import check_prunable

    if args.data is None:
        raise CommandError("--prune fine-tunes and is measured on --data: give it")
    check_prunable(model.spec, args.prune)


def precision_request(args: argparse.Namespace) -> PrecisionRequest:
    """What --precision and the flags beside it ask for."""
    from export.images import is_data_set
    from export.precisions import PrecisionRequest

    if args.data or (args.calibration and is_data_set(args.calibration)):
        need("train", "datasets")
    names = tuple(args.precision)
    return PrecisionRequest(
        names, args.calibration, args.num_calibration, args.data, args.allow_loss, args.keep_layers
    )


def time_graphs(settings: Settings, folder: Path, manifest: Manifest) -> dict[str, tuple[Speed, ...]]:
    """How fast this machine's engines run each graph; those that give wrong answers here are left out."""
    from models.manifest import Speed
    from service.engines.machine import describe_machine, gpu_name
    from service.selection import try_graph

    speeds: dict[str, tuple[Speed, ...]] = {}
    for graph in manifest.graphs:
        speeds[graph.file] = tuple(
            Speed(
                engine=trial.engine,
                mode=trial.mode or "",
                machine=(gpu_name() if trial.device == "cuda" else None) or describe_machine(),
                batch=settings.max_batch_size,
                images_per_s=1000 / trial.loaded_ms[trial.instances],
            )
            for trial in try_graph(folder, manifest, graph, settings)
            if trial.problem is None
        )
    return speeds


def print_graphs(manifest: Manifest) -> None:
    """What was exported, how far it is from its source, and what each precision costs and brings."""
    from export.report import HEADINGS, fastest, rows
    from service.terminal import bar, new_table, print_table

    table = new_table("graph", "precision", ">max |Δlogit|", *(f">{name}" for name in HEADINGS[2:]), "speed")
    best = max((speed.images_per_s for g in manifest.graphs if (speed := fastest(g))), default=0)
    for graph, row in zip(manifest.graphs, rows(manifest), strict=True):
        speed = fastest(graph)
        length = bar(speed.images_per_s / best, SPEED_BAR) if speed else ""
        table.add_row(*row[:2], f"{graph.parity.max_abs_delta_logit:.1e}", *row[2:], length)
    print_table(table)
    for graph in manifest.graphs:
        if graph.verdict:
            print(f"{graph.kind}: {graph.verdict}")


def bench_options(parser: argparse.ArgumentParser) -> None:
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


def bench(args: argparse.Namespace) -> int:
    need("export", "torch", "onnx", "matplotlib")
    need("pull", "httpx", "platformdirs", "filelock")
    from benchmarks.engines import bench_engines
    from service.settings import load_settings

    settings = load_settings(**given(args, ENGINE_SETTINGS))
    bench_engines(args.model, settings, seconds=args.seconds, batches=args.batch, quick=args.quick)
    return 0


# --- printing -----------------------------------------------------------------------------------------


def print_json(document: object) -> None:
    """Letters as they are, or escaped where the output may not have them all."""
    unicode = "utf" in (sys.stdout.encoding or "utf-8").lower()
    print(json.dumps(document, indent=1, ensure_ascii=not unicode))


def print_error(message: str) -> None:
    print(f"residuum: {message}", file=sys.stderr)


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error


def write_file(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error


def need(extra: str, *packages: str) -> None:
    """Raise where packages of an extra are not installed, saying how to get them."""
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise CommandError(f"{', '.join(missing)} not installed: in a checkout, pip install -e '.[{extra}]'")


# --- the parser ---------------------------------------------------------------------------------------

Options = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]

COMMANDS: dict[str, tuple[str, Options, Run]] = {
    "serve": ("answer over HTTP", serve_options, serve),
    "classify": ("label images, without a server", classify_options, classify),
    "introspect": ("show what every residual block did to an image", introspect_options, introspect),
    "compare": ("show what every residual block did to two images, on one scale", compare_options, compare),
    "models": ("list the models that can be served", models_options, models),
    "pull": ("turn published weights, or a file of them, into an artifact", pull_options, pull),
    "train": ("train a recipe on a data set", train_options, train),
    "export": ("turn a checkpoint into an artifact", export_options, export),
    "bench": ("measure a model's graphs on this machine", bench_options, bench),
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="residuum",
        description="Serve pretrained ResNets, and show what their residual blocks do.",
        epilog="residuum COMMAND --help says more.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (summary, options, run) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        options(command)
        command.set_defaults(run=run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without the letters of bars and labels
        sys.stdout.reconfigure(errors="replace")
    args = make_parser().parse_args(arguments)
    try:
        return args.run(args)  # type: ignore[no-any-return]
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `residuum models | head`; what Python still has to write goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a disk that is full, a folder that cannot be written
        print_error(str(error))
        return 2
    except Exception as error:
        # An error that one of our packages defines is for the user; any other is a bug, with its traceback.
        if type(error).__module__.split(".")[0] not in OUR_PACKAGES:
            raise
        print_error(" ".join(str(error).split()))
        return 2


if __name__ == "__main__":
    sys.exit(main())
