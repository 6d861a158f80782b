"""The 1000 classes of ImageNet-1k: WordNet ids, sorted, as every trainer numbers them, and English names."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from artifact.manifest import Label

NUM_CLASSES = 1000


@cache
def imagenet_labels() -> tuple[Label, ...]:
    """Class index -> name and WordNet id; every name is there once."""
    text = (files("models") / "imagenet1k.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return tuple(Label(label=name, wnid=wnid) for wnid, name in rows)
