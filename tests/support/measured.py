"""Networks made up of random tensors: the tensors, and what an introspect graph would report of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import (
    Block,
    Graph,
    GraphKind,
    Label,
    Manifest,
    Parity,
    Preprocessing,
    Provenance,
    ReceptiveField,
    Reference,
    ShortcutKind,
    Tensor,
    Variant,
    lens_blocks,
)
from artifact.preprocess import Preprocessed
from introspection.encoding import MapEncoding, encode_maps
from introspection.measure import Values, measure
from introspection.readings import FloatArray
from introspection.seen import Run, Seen

Array = NDArray[np.float32]

RUN = Run("fp32", "onnxruntime", {"decode": 1.23456, "queue": 0.1, "inference": 22.2, "total": 23.5})
# What the graphs of `made_manifest` give.
OUTPUTS: dict[GraphKind, tuple[str, ...]] = {
    "introspect": ("logits", "scalars", "maps"),
    "attribute": ("logits", "scalars", "maps", "lens", "contributions", "constants"),
}

# Of ResNet-50: blocks a stage, and channels of their output.
RESNET50 = ((3, 256), (4, 512), (6, 1024), (3, 2048))


@dataclass(frozen=True)
class Measured:
    """Blocks by their F, s [C, H, W] in float32, and what the attribute graph gives for them.

    The contributions are made up, but sum to the best logit.
    """

    manifest: Manifest
    residuals: list[Array]
    shortcuts: list[Array]
    logits_K: Array
    scalars_LS: Array
    maps_MP: Array

    @property
    def outputs(self) -> dict[str, Array]:
        random = np.random.default_rng(6)
        num_lenses = len(lens_blocks(self.manifest.blocks))
        lens_MK = random.standard_normal((num_lenses, len(self.logits_K))).astype(np.float32)
        lens_MK[-1] = self.logits_K
        contributions_P = random.standard_normal(self.maps_MP.shape[1]).astype(np.float32)
        rest = float(self.logits_K.max()) - float(contributions_P.sum(dtype=np.float64))
        return self.introspected | {
            "lens": lens_MK,
            "contributions": contributions_P,
            "constants": np.array([rest - 0.5, 0.75, -0.25], np.float32),
        }

    @property
    def introspected(self) -> dict[str, Array]:
        """What the introspect graph gives."""
        return {"logits": self.logits_K, "scalars": self.scalars_LS, "maps": self.maps_MP}

    @property
    def values(self) -> Values:
        return measure(self.manifest, self.outputs)


def measured(residuals: Sequence[Array], shortcuts: Sequence[Array], variant: Variant = "v1") -> Measured:
    """What the graph reports of these branches and shortcuts, reduced in float32 as export/graph.py does."""
    scalars, maps = [], []
    for F, s in zip(residuals, shortcuts, strict=True):
        u = s + F
        y = np.maximum(u, 0) if variant == "v1" else u
        rms = [np.sqrt((part * part).mean(0)) for part in (F, s, u, y)]
        mean_F, mean_s = F.mean((1, 2)), s.mean((1, 2))
        moments = [mean_F.mean(), (mean_F**2).mean(), (mean_s**2).mean(), (mean_F * mean_s).mean()]
        fractions = [(u > 0).mean(), (s > 0).mean(), ((u > 0) & (s > 0)).mean()]
        scalars.append(np.array([*((part * part).mean() for part in (F, s, u, y)), *moments, *fractions]))
        maps.append(np.stack(rms).reshape(4, -1))
    shapes = [F.shape for F in residuals]
    logits = np.random.default_rng(5).standard_normal(12).astype(np.float32)
    return Measured(
        made_manifest(shapes, variant),
        list(residuals),
        list(shortcuts),
        logits,
        np.stack(scalars).astype(np.float32),
        np.concatenate(maps, 1),
    )


def random_blocks(shapes: Sequence[tuple[int, int, int]], seed: int = 0, variant: Variant = "v1") -> Measured:
    """Blocks with branches of very different strength; v1 shortcuts are never negative, as after a ReLU."""
    random = np.random.default_rng(seed)
    residuals, shortcuts = [], []
    for shape in shapes:
        s = random.standard_normal(shape)
        strength = np.exp(random.standard_normal() + random.standard_normal((shape[0], 1, 1)))
        F = strength * (random.standard_normal(shape) + random.standard_normal((shape[0], 1, 1))) - 0.3 * s
        residuals.append(F.astype(np.float32))
        shortcuts.append((np.maximum(s, 0) if variant == "v1" else s).astype(np.float32))
    return measured(residuals, shortcuts, variant)


def made_manifest(
    shapes: Sequence[tuple[int, int, int]],
    variant: Variant = "v1",
    labels: Sequence[Label] | None = None,
    crop: int = 32,
) -> Manifest:
    """A manifest of blocks with these output shapes; a smaller map starts a stage."""
    blocks: list[Block] = []
    for shape in shapes:
        new = not blocks or blocks[-1].shape[1:] != shape[1:]
        stage = len({block.stage for block in blocks}) + new
        kind: ShortcutKind = "projection" if new else "identity"
        blocks.append(
            Block(
                name=f"stage{stage}.{0 if new else blocks[-1].index + 1}",
                stage=stage,
                index=0 if new else blocks[-1].index + 1,
                shortcut=kind,
                shape=shape,
                stride=crop // shape[1],
                receptive_field=ReceptiveField(center0=0.0, size=35),
            )
        )
    labels = labels or [Label(label=f"class {index}", wnid=f"n{index:08}") for index in range(12)]
    return Manifest(
        name="made-up-resnet50",
        version="74b6dc776567",
        architecture="made up",
        variant=variant,
        num_classes=len(labels),
        labels=tuple(labels),
        preprocessing=Preprocessing(resize=crop, crop=crop, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
        provenance=Provenance(source="nowhere", weights_sha256="0" * 64, num_parameters=1),
        blocks=tuple(blocks),
        graphs=tuple(_graph(kind, len(labels)) for kind in OUTPUTS),
        golden_image="golden.png",
        created="2026-01-01",
    )


def made_reference(
    manifest: Manifest,
    scalars: Mapping[str, tuple[float, float, float]] | None = None,
    maps: Mapping[str, float] | None = None,
) -> Reference:
    """The same percentiles for every block."""
    num_blocks = len(manifest.blocks)
    return Reference(
        dataset="made up",
        num_images=100,
        num_lesion_images=10,
        scalars={name: (band,) * num_blocks for name, band in (scalars or {}).items()},
        maps={name: (peak,) * num_blocks for name, peak in (maps or {}).items()},
    )


def _graph(kind: GraphKind, num_classes: int) -> Graph:
    return Graph(
        kind=kind,
        precision="fp32",
        file=f"{kind}.onnx",
        sha256="0" * 64,
        num_bytes=1,
        opset=20,
        inputs=(),
        outputs=tuple(Tensor(name=name, dtype="float32", shape=()) for name in OUTPUTS[kind]),
        parity=Parity(
            num_images=1,
            batch_sizes=(1,),
            max_abs_delta_logit=0.0,
            logit_range=1.0,
            top1_agreement=1.0,
            sum_parity_max_abs=3.5e-6,
        ),
        golden_logits=(0.0,) * num_classes,
        golden_tolerance=1e-3,
    )


def resnet50_manifest() -> Manifest:
    """Sixteen blocks of ResNet-50's shapes at 224 pixels, and 1,000 classes."""
    shapes = [
        (channels, 56 >> stage, 56 >> stage)
        for stage, (depth, channels) in enumerate(RESNET50)
        for _ in range(depth)
    ]
    labels = [Label(label=f"golden retriever {index}", wnid=f"n{index:08}") for index in range(1000)]
    return made_manifest(shapes, labels=labels, crop=224)


def photograph_of(crop: int = 32) -> Preprocessed:
    """A photograph of 50 x 40 pixels of which the model saw the middle."""
    pixels = np.random.default_rng(3).integers(0, 256, (crop, crop, 3), np.uint8)
    return Preprocessed(pixels, "png", 50, 40, (5, 0, 45, 40))


def seen(values: Values, manifest: Manifest) -> Seen:
    """These values as if they had come of a photograph."""
    return Seen(manifest, values, photograph_of(), RUN)


def encoded(
    values_HW: FloatArray, quantity: str, vmin: float, vmax: float, encoding: MapEncoding
) -> dict[str, Any]:
    """The map of one block as the document has it."""
    height, width = values_HW.shape
    [block] = encode_maps(
        {quantity: values_HW.reshape(-1)}, {quantity: (vmin, vmax)}, [(height, width)], encoding
    )
    return block[quantity]
