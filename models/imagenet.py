"""ImageNet-1k: how its images are normalised, and its 1000 classes.

The classes are WordNet ids, sorted, as every trainer numbers them, with English names.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from artifact.manifest import Label

NUM_CLASSES = 1000
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@cache
def imagenet_labels() -> tuple[Label, ...]:
    """Return name and WordNet id by class index; names are unique."""
    text = (files("models") / "imagenet1k.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return tuple(Label(label=name, wnid=wnid) for wnid, name in rows)
