"""The implementations that people trust, to hold ours against; dev dependencies, never needed to run.

torchvision's compiled operators are built for another torch than a CPU-only one, and its import fails where
two of them are not known by name: they are declared here, before anything imports it. None is ever called.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch

OPERATORS = ("nms", "qnms")


@cache
def _declare_operators() -> torch.library.Library | None:
    try:
        library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # the real ones are there
        return None
    return library  # kept: they go with it


def torchvision() -> ModuleType:
    _declare_operators()
    return importlib.import_module("torchvision")


def timm() -> ModuleType:
    _declare_operators()
    return importlib.import_module("timm")


def transformers() -> ModuleType:
    _declare_operators()
    return importlib.import_module("transformers")


def pytorchcv() -> ModuleType:
    _declare_operators()
    importlib.import_module("pytorchcv.model_provider")
    return importlib.import_module("pytorchcv")
