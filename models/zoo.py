"""The residual family as a table: a row is an architecture.

To add one, add a row. `tests/models/test_zoo.py` then builds it, holds its counts against the published ones,
trains a step, fuses and exports it, and `residuum models --zoo` lists it. A new kind of branch, shortcut or
stem goes into the table of `models/branches.py`, `models/shortcuts.py` or `models/stems.py`.
"""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import dataclass, replace
from typing import Literal

from artifact.errors import ResiduumError

HE_2016 = "He et al. 2016, arXiv 1512.03385"
HE_2016_V2 = "He et al. 2016, arXiv 1603.05027"
HE_2016_V2_TIMM = f"{HE_2016_V2}; parameters: timm's model cards"
HE_2016_V2_PYTORCHCV = f"{HE_2016_V2}; parameters: pytorchcv"
TORCHVISION = "torchvision, num_params and _ops of the weights"
TIMM = "timm's model cards on the Hugging Face hub"
HE_2019 = "He et al. 2019, arXiv 1812.01187; parameters: timm's model cards"
HU_2018 = "Hu et al. 2018, arXiv 1709.01507"
XIE_2017 = "Xie et al. 2017, arXiv 1611.05431, table 7"
ZAGORUYKO_2016 = "Zagoruyko and Komodakis 2016, arXiv 1605.07146, table 4"
SRIVASTAVA_2015 = "Srivastava et al. 2015, arXiv 1505.00387, with the shapes of ResNet"
HUANG_2017 = "Huang et al. 2017, arXiv 1608.06993, table 2"
SIMONYAN_2015 = "Simonyan and Zisserman 2015, arXiv 1409.1556, with BatchNorm and a linear head"


@dataclass(frozen=True)
class Architecture:
    """A network, described by what its layers are.

    Attributes:
        depths: number of blocks in each stage.
        branch: a key of `branches.BRANCHES`.
        variant: a key of `blocks.VARIANTS`.
        stem: a key of `stems.STEMS`.
        shortcut: a key of `shortcuts.SHORTCUTS`, used where a block changes the shape.
        width: channels of the first stage's branches (of a dense one: its growth rate); each later stage
            doubles them, up to `max_width`.
        stem_width: channels that the stem gives; None: `width`.
        cardinality, group_width: groups of a bottleneck's 3x3 convolution, and channels of each in the first
            stage; None: `width`.
        se_reduction: squeeze-and-excitation with 1 / this of the channels, rounded to `se_round_to`.
        hidden: channels between the convolutions of every branch, block by block, as pruning leaves them;
            None: what `branch` and `width` say. A grouped convolution keeps the channels of each group and
            has fewer groups.
        dropout: before the last convolution of every branch.
        stochastic_depth: probability that training drops the last branch; those before it less, linearly.
        num_classes: K, the length of the logits.
        input_size: side of the square image, in pixels, that the row is usually run at.
        num_parameters, num_macs: as published, at this row's `num_classes` and `input_size`: 2_800_000 is
            what a paper calls 2.8M, give or take one of its last digit. None where nobody published it.
        source: of those numbers or of the design.
        aliases: other names. All names are found whatever their case, `-` and `_`.
    """

    name: str
    depths: tuple[int, ...]
    branch: Literal["basic", "bottleneck", "conv", "dense"]
    variant: Literal["v1", "v2", "plain", "highway"] = "v1"
    stem: Literal["imagenet", "deep", "3x3", "3x3/2", "3x3/pool"] = "imagenet"
    shortcut: Literal["pad", "pad-after", "projection", "projection-all", "pooled-projection"] = "projection"
    width: int = 64
    stem_width: int | None = None
    max_width: int | None = None
    cardinality: int = 1
    group_width: int | None = None
    se_reduction: int | None = None
    se_round_to: int = 1
    hidden: tuple[tuple[int, ...], ...] | None = None
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    num_classes: int = 1000
    input_size: int = 224
    num_parameters: int | None = None
    num_macs: int | None = None
    source: str = HE_2016
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError if no network has such a number."""
        counts = {"depths": min(self.depths, default=0), "se_round_to": self.se_round_to}
        for name in ("width", "stem_width", "max_width", "cardinality", "group_width", "se_reduction"):
            counts[name] = getattr(self, name)
        counts |= {"num_classes": self.num_classes, "input_size": self.input_size}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be 1 or more")
        for name in ("dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1)")
        if self.stochastic_depth and not self.has_shortcuts:
            raise ValueError("stochastic_depth needs shortcuts: without, it drops the whole signal")
        if self.hidden is not None:
            self._check_hidden(self.hidden)

    def _check_hidden(self, hidden: tuple[tuple[int, ...], ...]) -> None:
        if len(hidden) != sum(self.depths):
            raise ValueError(f"hidden has {len(hidden)} blocks, depths {sum(self.depths)}")
        num_hidden = NUM_CONVS[self.branch] - 1
        stages = [stage for stage, depth in enumerate(self.depths) for _ in range(depth)]
        for stage, widths in zip(stages, hidden, strict=True):
            if len(widths) != num_hidden or min(widths, default=1) < 1:
                raise ValueError(
                    f"hidden must have {num_hidden} width(s) of 1 or more for every "
                    f"{self.branch} block, not {widths}"
                )
            per_group = self.channels_of_group(stage)
            if self.cardinality > 1 and (len(set(widths)) > 1 or widths[0] % per_group):
                raise ValueError(f"hidden widths {widths} must be equal, and whole groups of {per_group}")

    def channels_of_group(self, stage: int) -> int:
        """Return the channels of each group of a bottleneck's 3x3 convolution; `stage` counts from 0."""
        return (self.group_width or self.width) * self.stage_width(stage) // self.width

    def stage_width(self, stage: int) -> int:
        """Return the channels of a stage's branches; `stage` counts from 0."""
        return min(self.width * 2**stage, self.max_width or sys.maxsize)

    @property
    def has_shortcuts(self) -> bool:
        return self.variant != "plain"


# Convolutions of a branch.
NUM_CONVS = {"basic": 2, "bottleneck": 3, "conv": 1, "dense": 2}

LAYERS_18 = (2, 2, 2, 2)
LAYERS_50 = (3, 4, 6, 3)  # 34 too, with two convolutions a block
LAYERS_101 = (3, 4, 23, 3)
LAYERS_152 = (3, 8, 36, 3)


def _imagenet(
    name: str,
    depths: tuple[int, ...],
    branch: str,
    num_parameters: int | None,
    num_macs: int | None,
    source: str = TORCHVISION,
    **fields: object,
) -> Architecture:
    row = Architecture(name, depths, branch, num_parameters=num_parameters, num_macs=num_macs, source=source)
    return replace(row, **fields)  # type: ignore[arg-type]


def _cifar(
    name: str, num_layers: int, branch: str = "basic", num_parameters: int | None = None, **fields: object
) -> Architecture:
    """Three stages of n blocks for 32x32 images: 6n + 2 layers, or 9n + 2 with bottlenecks (section 4.2)."""
    n = (num_layers - 2) // (9 if branch == "bottleneck" else 6)
    row = Architecture(
        name,
        (n, n, n),
        branch,
        stem="3x3",
        shortcut="pad",
        width=16,
        num_classes=10,
        input_size=32,
        num_parameters=num_parameters,
    )
    return replace(row, **fields)  # type: ignore[arg-type]


def _senet(
    name: str, depths: tuple[int, ...], branch: str, num_parameters: int, **fields: object
) -> Architecture:
    row = _imagenet(name, depths, branch, num_parameters, None, f"{HU_2018}; counts: timm's model cards")
    return replace(row, se_reduction=16, se_round_to=8, **fields)  # type: ignore[arg-type]


def _wrn(name: str, num_layers: int, factor: int, num_parameters: int) -> Architecture:
    """6n + 4 layers, `factor` times as wide as a CIFAR ResNet."""
    return _cifar(
        name,
        num_layers - 2,
        num_parameters=num_parameters,
        variant="v2",
        shortcut="projection",
        width=16 * factor,
        stem_width=16,
        dropout=0.3,
        source=ZAGORUYKO_2016,
    )


_V2 = {"variant": "v2", "source": HE_2016_V2}
_PROJECTED = {"shortcut": "projection"}

ROWS: tuple[Architecture, ...] = (
    # v1.5: the stride of a bottleneck is on its 3x3.
    _imagenet("resnet18", LAYERS_18, "basic", 11_689_512, 1_814_000_000),
    _imagenet("resnet34", LAYERS_50, "basic", 21_797_672, 3_664_000_000),
    _imagenet("resnet26", LAYERS_18, "bottleneck", 16_000_000, None, TIMM),
    _imagenet("resnet50", LAYERS_50, "bottleneck", 25_557_032, 4_089_000_000),
    _imagenet("resnet101", LAYERS_101, "bottleneck", 44_549_160, 7_801_000_000),
    _imagenet("resnet152", LAYERS_152, "bottleneck", 60_192_808, 11_514_000_000),
    # ResNet-D: three convolutions as stem, average pool before the projection.
    *(
        _imagenet(name, depths, branch, count, macs, HE_2019, stem="deep", shortcut="pooled-projection")
        for name, depths, branch, count, macs in (
            ("resnet18d", LAYERS_18, "basic", 11_700_000, None),
            ("resnet34d", LAYERS_50, "basic", 21_800_000, None),
            ("resnet26d", LAYERS_18, "bottleneck", 16_000_000, None),
            ("resnet50d", LAYERS_50, "bottleneck", 25_600_000, 4_300_000_000),
            ("resnet101d", LAYERS_101, "bottleneck", 44_600_000, None),
            ("resnet152d", LAYERS_152, "bottleneck", 60_200_000, None),
        )
    ),
    # Wide and ResNeXt: other numbers of groups and channels inside the bottleneck.
    _imagenet("wide_resnet50_2", LAYERS_50, "bottleneck", 68_883_240, 11_398_000_000, group_width=128),
    _imagenet("wide_resnet101_2", LAYERS_101, "bottleneck", 126_886_696, 22_753_000_000, group_width=128),
    *(
        _imagenet(
            name, depths, "bottleneck", count, macs, source, cardinality=groups, group_width=group_width
        )
        for name, depths, groups, group_width, count, macs, source in (
            ("resnext50_32x4d", LAYERS_50, 32, 4, 25_028_904, 4_230_000_000, TORCHVISION),
            ("resnext101_32x4d", LAYERS_101, 32, 4, 44_200_000, None, TIMM),
            ("resnext101_32x8d", LAYERS_101, 32, 8, 88_791_336, 16_414_000_000, TORCHVISION),
            ("resnext101_64x4d", LAYERS_101, 64, 4, 83_455_272, 15_460_000_000, TORCHVISION),
        )
    ),
    _cifar(
        "resnext29_8x64d",
        29,
        "bottleneck",
        34_400_000,
        **_PROJECTED,
        width=64,
        cardinality=8,
        group_width=64,
        source=XIE_2017,
    ),
    _cifar(
        "resnext29_16x64d",
        29,
        "bottleneck",
        68_100_000,
        **_PROJECTED,
        width=64,
        cardinality=16,
        group_width=64,
        source=XIE_2017,
    ),
    # Squeeze-and-excitation; hidden channels rounded to eights, as timm's weights have them.
    _senet("seresnet18", LAYERS_18, "basic", 11_800_000),
    _senet("seresnet34", LAYERS_50, "basic", 22_000_000),
    _senet("seresnet50", LAYERS_50, "bottleneck", 28_100_000),
    _senet("seresnet101", LAYERS_101, "bottleneck", 49_300_000),
    _senet("seresnet152", LAYERS_152, "bottleneck", 66_800_000),
    _senet("seresnext50_32x4d", LAYERS_50, "bottleneck", 27_600_000, cardinality=32, group_width=4),
    _senet("seresnext101_32x4d", LAYERS_101, "bottleneck", 49_000_000, cardinality=32, group_width=4),
    _cifar("seresnet110", 110, **_PROJECTED, se_reduction=16, source=HU_2018),
    _cifar("seresnet164", 164, "bottleneck", **_PROJECTED, se_reduction=16, source=HU_2018),
    # v2: pre-activation.
    *(
        _imagenet(
            f"resnetv2_{layers}",
            depths,
            branch,
            count,
            None,
            HE_2016_V2_TIMM if count else HE_2016_V2,
            variant="v2",
            aliases=(f"resnet{layers}v2",),
        )
        for layers, depths, branch, count in (
            (18, LAYERS_18, "basic", None),
            (34, LAYERS_50, "basic", None),
            (50, LAYERS_50, "bottleneck", 25_500_000),
            (101, LAYERS_101, "bottleneck", 44_500_000),
            (152, LAYERS_152, "bottleneck", 60_200_000),
            (200, (3, 24, 36, 3), "bottleneck", None),
        )
    ),
    _cifar("resnetv2_110", 110, "basic", 1_700_000, **_V2, aliases=("resnet110v2", "preresnet110")),
    _cifar(
        "resnetv2_164",
        164,
        "bottleneck",
        1_700_000,
        **_V2,
        **_PROJECTED,
        aliases=("resnet164v2", "preresnet164"),
    ),
    _cifar(
        "resnetv2_1001",
        1001,
        "bottleneck",
        10_327_706,  # the paper says 10.2M
        **_PROJECTED,
        variant="v2",
        source=HE_2016_V2_PYTORCHCV,
        aliases=("resnet1001v2", "preresnet1001"),
    ),
    # v1 for 32x32 images, with option A's shortcuts.
    _cifar("resnet20", 20, num_parameters=270_000),
    _cifar("resnet32", 32, num_parameters=460_000),
    _cifar("resnet44", 44, num_parameters=660_000),
    _cifar("resnet56", 56, num_parameters=850_000),
    _cifar("resnet110", 110, num_parameters=1_700_000),
    _cifar("resnet1202", 1202, num_parameters=19_400_000),
    # Wide, pre-activation, for 32x32 images.
    _wrn("wrn16_4", 16, 4, 2_800_000),
    _wrn("wrn16_8", 16, 8, 11_000_000),
    _wrn("wrn28_10", 28, 10, 36_500_000),
    _wrn("wrn40_4", 40, 4, 8_900_000),
    # For comparison: the same shapes without shortcuts, and with a learned gate.
    _imagenet("plain18", LAYERS_18, "basic", None, 1_800_000_000, HE_2016, variant="plain"),
    _imagenet("plain34", LAYERS_50, "basic", None, 3_600_000_000, HE_2016, variant="plain"),
    *(_cifar(f"plain{layers}", layers, variant="plain") for layers in (20, 32, 44, 56, 110)),
    *(
        _cifar(f"highway{layers}", layers, variant="highway", **_PROJECTED, source=SRIVASTAVA_2015)
        for layers in (20, 32, 56, 110)
    ),
    Architecture(
        "vgg16-32px",
        (1, 2, 3, 3, 3),
        "conv",
        variant="plain",
        stem="3x3",
        max_width=512,
        num_classes=10,
        input_size=32,
        source=SIMONYAN_2015,
    ),
    Architecture(
        "densenet_bc100_k12",
        (16, 16, 16),
        "dense",
        variant="v2",
        stem="3x3",
        shortcut="pad-after",
        width=12,
        stem_width=24,
        max_width=12,
        num_classes=10,
        input_size=32,
        num_parameters=800_000,
        source=HUANG_2017,
        aliases=("densenet-bc-100-12", "densenet100_k12_bc"),
    ),
    # ResNet-18 for 64x64 photographs at half width: the embedded model.
    Architecture(
        "resnet18-64px",
        LAYERS_18,
        "basic",
        stem="3x3/2",
        width=32,
        num_classes=200,
        input_size=64,
        num_parameters=2_846_440,
        source="this project",
    ),
)

ZOO: dict[str, Architecture] = {row.name: row for row in ROWS}


class UnknownArchitecture(ResiduumError):
    """No row has that name; the message names the nearest names."""


def architecture(name: str, **changes: object) -> Architecture:
    """Return the row of that name, with `changes` to its fields (such as `num_classes=200, width=32`).

    Raises:
        UnknownArchitecture: no such row.
    """
    # ZOO is read at each call, so that a row that was added later is found.
    rows = {_plain(known): row for row in ZOO.values() for known in (row.name, *row.aliases)}
    row = rows.get(_plain(name))
    if row is None:
        near = difflib.get_close_matches(_plain(name), rows, n=3)
        known = " or ".join(dict.fromkeys(rows[found].name for found in near))
        hint = f"did you mean {known}?" if near else "`residuum models --zoo` lists them all"
        raise UnknownArchitecture(f"unknown architecture {name!r}: {hint}")
    return replace(row, **changes)  # type: ignore[arg-type]


def _plain(name: str) -> str:
    return re.sub(r"[-_ .]", "", name.lower())
