"""`residuum train`: train a recipe on a data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from residuum.cli.errors import CommandError, need
from residuum.cli.options import field_values
from residuum.cli.tables import new_table, print_table

if TYPE_CHECKING:
    from models.training.recipe import Recipe

EXAMPLES = """\
  residuum train   # list the recipes
  residuum train cifar10-resnet20 --data cifar10/
  residuum train cifar10-resnet20 --data cifar10/ --set epochs=30"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
        "--no-resume", dest="resume", action="store_false", help="start over in a folder that has a training"
    )


def run(args: argparse.Namespace) -> int:
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
    table = new_table("recipe", "architecture", ">classes", ">epochs", ">batch", ">test pixels")
    for recipe in recipes:
        numbers = (recipe.num_classes, recipe.epochs, recipe.batch_size, recipe.test_crop)
        table.add_row(recipe.name, recipe.architecture, *map(str, numbers))
    print_table(table)
