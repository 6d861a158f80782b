"""The family as a table: a row is an architecture.

To add one, add a row; `tests/test_zoo.py` then builds it, counts its parameters against
`num_parameters`, trains a step and fuses it. A new kind of branch, shortcut or stem goes into
its table in `models/blocks.py`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

HE_2016 = "He et al. 2016, arXiv 1512.03385"
TORCHVISION = "torchvision, ResNet weights' num_params"


@dataclass(frozen=True)
class Architecture:
    """What a ResNet is.

    Attributes:
        depths: number of residual blocks in each stage.
        branch: a key of `blocks.BRANCHES`.
        stem: a key of `blocks.STEMS`.
        shortcut: a key of `blocks.SHORTCUTS`, used where a block changes the shape.
        width: channels of the first stage's branches; each later stage doubles them.
        num_classes: K, the length of the logits.
        input_size: side of the square image, in pixels, that the row is usually run at.
        num_parameters: as published, at this row's `num_classes`; None where nobody published it.
        source: where that number or the design comes from.
    """

    name: str
    depths: tuple[int, ...]
    branch: str
    stem: str = "imagenet"
    shortcut: str = "projection"
    width: int = 64
    num_classes: int = 1000
    input_size: int = 224
    num_parameters: int | None = None
    source: str = HE_2016


def _imagenet(name: str, depths: tuple[int, ...], branch: str, num_parameters: int) -> Architecture:
    return Architecture(name, depths, branch, num_parameters=num_parameters, source=TORCHVISION)


def _cifar(num_layers: int, num_parameters: int) -> Architecture:
    """6n + 2 layers for 32x32 images, option A shortcuts (He et al. 2016, section 4.2)."""
    n = (num_layers - 2) // 6
    return Architecture(
        f"resnet{num_layers}",
        (n, n, n),
        "basic",
        stem="3x3",
        shortcut="pad",
        width=16,
        num_classes=10,
        input_size=32,
        num_parameters=num_parameters,
    )


ZOO: dict[str, Architecture] = {
    row.name: row
    for row in (
        _imagenet("resnet18", (2, 2, 2, 2), "basic", 11_689_512),
        _imagenet("resnet34", (3, 4, 6, 3), "basic", 21_797_672),
        _imagenet("resnet50", (3, 4, 6, 3), "bottleneck", 25_557_032),
        _imagenet("resnet101", (3, 4, 23, 3), "bottleneck", 44_549_160),
        _imagenet("resnet152", (3, 8, 36, 3), "bottleneck", 60_192_808),
        _cifar(20, 269_722),
        _cifar(32, 464_154),
        _cifar(44, 658_586),
        _cifar(56, 853_018),
        _cifar(110, 1_727_962),
        # ResNet-18 for 64x64 photographs at half width: the embedded model.
        Architecture(
            "resnet18-64px",
            (2, 2, 2, 2),
            "basic",
            stem="3x3/2",
            width=32,
            num_classes=200,
            input_size=64,
            num_parameters=2_846_440,
            source="this project",
        ),
    )
}


class UnknownArchitecture(Exception):
    """No row has that name; the message names the nearest ones."""


def architecture(name: str, **changes: object) -> Architecture:
    """The row of that name, with `changes` to its fields (such as `num_classes=200, width=32`).

    Raises:
        UnknownArchitecture: no such row.
    """
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(ZOO)}"
        raise UnknownArchitecture(f"unknown architecture {name!r}: {hint}")
    return replace(ZOO[name], **changes)  # type: ignore[arg-type]
