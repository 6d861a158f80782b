"""The two graphs that an artifact holds, as modules and as ONNX.

Both take `images` uint8 [N, H, W, 3] and normalise inside: 1 / (255 std) goes into the first
convolution, the mean stays a subtraction, because the convolution's zero padding must come after it.

Shapes: N batch, C channels, H W space, K classes, L blocks, S scalars (`manifest.SCALARS`),
P positions of all blocks one after another (`manifest.map_slices`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
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
        first = next(layer for layer in self.model.stem.modules() if isinstance(layer, nn.Conv2d))
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
        norms = {id(tensor): _root_mean_square(tensor) for tensor in measured(taps).values()}
        maps, scalars = [], []
        for tap in taps.values():
            rms = [norms[id(t)] if t is not None else torch.zeros_like(norms[id(tap.total)]) for t in tap]
            scalars.append(_scalars(tap, rms))
            maps.append(torch.stack(rms, 1).flatten(2))
        return logits, torch.stack(scalars, 1), torch.cat(maps, 2)


def measured(taps: Mapping[str, BlockTaps]) -> dict[str, Tensor]:
    """The different tensors among the taps, by name: an identity shortcut, for one, is the output before it.

    Names are such as `stage2.0.residual`, in the order residual, shortcut, sum, output.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    for block, tap in taps.items():
        for part, tensor in zip(("residual", "shortcut", "sum", "output"), tap, strict=True):
            if tensor is not None:
                found.setdefault(id(tensor), (f"{block}.{part}", tensor))
    return dict(found.values())


def _root_mean_square(tensor_NCHW: Tensor) -> Tensor:
    """Per position, over channels: [N, H, W]."""
    norm: Tensor = torch.linalg.vector_norm(tensor_NCHW, dim=1)
    return norm / math.sqrt(tensor_NCHW.shape[1])


def _scalars(tap: BlockTaps, rms: list[Tensor]) -> Tensor:
    """[N, S] in the order of `manifest.SCALARS`."""
    mean_squares = [(m * m).mean((1, 2)) for m in rms]
    shortcut = tap.shortcut if tap.shortcut is not None else torch.zeros_like(tap.residual)
    residual_NC, shortcut_NC = tap.residual.mean((2, 3)), shortcut.mean((2, 3))
    channel_moments = [
        residual_NC.mean(1),
        (residual_NC * residual_NC).mean(1),
        (shortcut_NC * shortcut_NC).mean(1),
        (residual_NC * shortcut_NC).mean(1),
    ]
    active, shortcut_active = tap.total > 0, shortcut > 0
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


@torch.no_grad()
def tap_names(model: ResNet, size: int = 32) -> list[str]:
    """The measured tensors in the order of the graph."""
    dtype = next(model.parameters()).dtype
    was_training = model.training
    _, taps = model.eval().forward_taps(torch.zeros(1, 3, size, size, dtype=dtype))
    model.train(was_training)
    return list(measured(taps))


def _name_taps(proto: onnx.ModelProto, model: ResNet) -> None:
    """Give the inputs of the norms names, so that anyone can ask an engine for the tensors themselves."""
    norms = [node.input[0] for node in proto.graph.node if node.op_type == "ReduceL2"]
    renamed = dict(zip(norms, tap_names(model), strict=True))
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for info in proto.graph.value_info:
        info.name = renamed.get(info.name, info.name)
