"""The two graphs that an artifact holds, as modules and as ONNX.

Both take `images` uint8 [N, H, W, 3] and normalise inside: 1 / (255 std) goes into the first
convolution, the mean stays a subtraction, because the convolution's zero padding must come after it.

Shapes: N batch, C channels, H W space, K classes, L blocks, S scalars (`manifest.SCALARS`),
P positions of all blocks one after another (`manifest.map_slices`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from export.fuse import fuse_batchnorm
from models.blocks import BlockTaps
from models.manifest import GraphKind, Preprocessing
from models.resnet import ResNet

OPSET = 20
INPUTS: dict[GraphKind, tuple[str, ...]] = {"classify": ("images",), "introspect": ("images", "gates")}
OUTPUTS: dict[GraphKind, tuple[str, ...]] = {
    "classify": ("logits",),
    "introspect": ("logits", "scalars", "maps"),
}


class ClassifyGraph(nn.Module):
    """uint8 [N, H, W, 3] -> logits [N, K], of the fused network."""

    def __init__(self, model: ResNet, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = fuse_batchnorm(model)
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
        self.register_buffer("mean", 255 * mean)
        first = self.model.stem.conv
        assert isinstance(first, nn.Conv2d)
        first.weight = nn.Parameter(first.weight / (255 * std))

    def normalise(self, images_NHW3: Tensor) -> Tensor:
        mean = self.mean
        assert isinstance(mean, Tensor)
        return images_NHW3.permute(0, 3, 1, 2).to(mean.dtype) - mean

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalise(images))
        return logits


class IntrospectGraph(ClassifyGraph):
    """uint8 [N, H, W, 3], gates [N, L] -> logits [N, K], scalars [N, L, S], maps [N, 4, P].

    u = s + g F, and what is reported of F is of g F. Maps are sqrt(sum_c t_c^2 / C), one reduction
    over each tensor as it stands: squares written out and then summed cost a third of the throughput.
    """

    def forward(self, images: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        logits, taps = self.model.forward_taps(self.normalise(images), gates)
        maps, scalars = [], []
        before: Tensor | None = None
        for (_, block), tap in zip(self.model.named_blocks(), taps.values(), strict=True):
            # An identity shortcut is the block before it: its norm is known already.
            shortcut_rms = before if before is not None and isinstance(block.shortcut, nn.Identity) else None
            rms = _root_mean_square(tap, shortcut_rms)
            before = rms[-1]
            scalars.append(_scalars(tap, rms))
            maps.append(torch.stack(rms, 1).flatten(2))
        return logits, torch.stack(scalars, 1), torch.cat(maps, 2)


def _root_mean_square(tap: BlockTaps, shortcut_rms_NHW: Tensor | None) -> list[Tensor]:
    """Per position, over channels: of F, s, u and y, each [N, H, W]."""
    scale = 1 / math.sqrt(tap.residual.shape[1])
    return [
        shortcut_rms_NHW
        if name == "shortcut" and shortcut_rms_NHW is not None
        else torch.linalg.vector_norm(tensor, dim=1) * scale
        for name, tensor in tap._asdict().items()
    ]


def _scalars(tap: BlockTaps, rms: list[Tensor]) -> Tensor:
    """[N, S] in the order of `manifest.SCALARS`."""
    mean_squares = [(m * m).mean((1, 2)) for m in rms]
    residual_NC, shortcut_NC = tap.residual.mean((2, 3)), tap.shortcut.mean((2, 3))
    channel_moments = [
        residual_NC.mean(1),
        (residual_NC * residual_NC).mean(1),
        (shortcut_NC * shortcut_NC).mean(1),
        (residual_NC * shortcut_NC).mean(1),
    ]
    active, shortcut_active = tap.total > 0, tap.shortcut > 0
    fractions = [
        t.to(residual_NC.dtype).mean((1, 2, 3)) for t in (active, shortcut_active, active & shortcut_active)
    ]
    return torch.stack([*mean_squares, *channel_moments, *fractions], 1)


def export_graph(kind: GraphKind, model: ResNet, preprocessing: Preprocessing, path: Path) -> onnx.ModelProto:
    """Fuse, export and write one graph; what `introspect` measures has names such as `stage2.0.residual`."""
    # Two rows: an example batch of one would be taken for a constant.
    side = preprocessing.crop
    example: tuple[Tensor, ...] = (torch.zeros(2, side, side, 3, dtype=torch.uint8),)
    module: nn.Module = ClassifyGraph(model, preprocessing)
    if kind == "introspect":
        module = IntrospectGraph(model, preprocessing)
        example += (torch.ones(2, len(list(model.named_blocks()))),)
    batch = torch.export.Dim("batch", min=1, max=65_536)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own inside
        program = torch.onnx.export(
            module.eval(),
            example,
            input_names=INPUTS[kind],
            output_names=OUTPUTS[kind],
            dynamic_shapes=tuple({0: batch} for _ in example),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    if kind == "introspect":
        _name_taps(proto, model)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return proto


def tap_names(model: ResNet) -> Iterator[str]:
    """The measured tensors in the order of the graph: an identity shortcut is the output before it."""
    for number, (name, block) in enumerate(model.named_blocks()):
        yield f"{name}.residual"
        if number == 0 or not isinstance(block.shortcut, nn.Identity):
            yield f"{name}.shortcut"
        yield f"{name}.sum"
        yield f"{name}.output"


def _name_taps(proto: onnx.ModelProto, model: ResNet) -> None:
    """Give the inputs of the norms names, so that anyone can ask an engine for the tensors themselves."""
    measured = [node.input[0] for node in proto.graph.node if node.op_type == "ReduceL2"]
    renamed = dict(zip(measured, tap_names(model), strict=True))
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for info in proto.graph.value_info:
        info.name = renamed.get(info.name, info.name)
