"""The two graphs that an artifact holds, as modules and as ONNX.

Both take `images` uint8 [N, H, W, 3] and normalise inside: 1 / (255 std) goes into the first
convolution, the mean stays a subtraction, because the convolution's zero padding must come after it.

A precision is what the weights and activations of the network are: the module is converted, then exported.
Inputs and outputs are the same for all of them: uint8 images, float32 gates, float32 out.

Shapes: N batch, C channels, H W space, K classes, L blocks, S scalars (`manifest.SCALARS`),
P positions of all blocks one after another (`manifest.map_slices`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from export.fuse import fuse_batchnorm
from models.blocks import BlockTaps, ResidualBlock
from models.manifest import GraphKind, Precision, Preprocessing
from models.resnet import ResNet

# bfloat16 convolutions are part of ONNX since opset 22.
OPSETS: dict[Precision, int] = {"fp32": 20, "fp16": 20, "bf16": 22}
OPSET = OPSETS["fp32"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

# Pixels less their mean reach 255, and weights over 255 std (about 58) fall under 6e-5, where fp16 loses
# digits. So fp16 moves 2^6 from one to the other. A power of two changes exponents and nothing else: the one
# rounding, that of the cast, is relative and the same with or without. bf16 has float32's exponents.
INPUT_SCALES: dict[Precision, float] = {"fp32": 1.0, "fp16": 2.0**-6, "bf16": 1.0}
INPUTS: dict[GraphKind, tuple[str, ...]] = {"classify": ("images",), "introspect": ("images", "gates")}
OUTPUTS: dict[GraphKind, tuple[str, ...]] = {
    "classify": ("logits",),
    "introspect": ("logits", "scalars", "maps"),
}

HUGE = 1e30  # times this, whatever counts as positive is past 1


class ClassifyGraph(nn.Module):
    """uint8 [N, H, W, 3] -> float32 logits [N, K], of the fused network in a precision of DTYPES."""

    def __init__(self, model: ResNet, preprocessing: Preprocessing, precision: Precision = "fp32") -> None:
        super().__init__()
        self.dtype = DTYPES[precision]
        self.input_scale = INPUT_SCALES[precision]
        self.model = fuse_batchnorm(model)
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
        self.register_buffer("mean", 255 * mean)
        first = next(layer for layer in self.model.stem.modules() if isinstance(layer, nn.Conv2d))
        first.weight = nn.Parameter(first.weight / (255 * std * self.input_scale))
        self.model.to(self.dtype)
        if self.dtype != torch.float32:
            self.model.head = ExactHead(self.model.head)  # type: ignore[assignment]

    def normalise(self, images_NHW3: Tensor) -> Tensor:
        """In float32 up to one cast: a mean of 123.675 has no fp16 or bf16 number near it."""
        mean = self.mean
        assert isinstance(mean, Tensor)
        x = images_NHW3.permute(0, 3, 1, 2).to(mean.dtype) - mean
        if self.input_scale != 1:
            x = x * self.input_scale
        return x.to(self.dtype)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalise(images))
        return logits


class ExactHead(nn.Module):
    """The head in float32, whatever its input: rounded to bf16, the best two of many logits are often one."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.linear = head.float()

    def forward(self, features_NC: Tensor) -> Tensor:
        logits_NK: Tensor = self.linear(features_NC.float())
        return logits_NK


class IntrospectGraph(ClassifyGraph):
    """uint8 [N, H, W, 3], gates [N, L] -> logits [N, K], scalars [N, L, S], maps [N, 4, P].

    u = s + g F, and what is reported of F is of g F. Engines are fast here if few passes go over the big
    tensors, so every tensor is reduced where it was just made, once even if two blocks have it (an identity
    shortcut is the output before it), and the gate scales what was reduced of F: g F itself goes nowhere but
    into the addition. What that gained is in docs/decisions.md.
    """

    def forward(self, images: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x = self.model.stem(self.normalise(images))
        gates_NL11 = gates[:, :, None, None]
        reduce = Reductions()
        maps: list[Tensor] = []
        mean_squares, moments, fractions = [], [], []
        for _, layer in self.model.named_layers():
            if not isinstance(layer, ResidualBlock):
                x = layer(x)
                continue
            gate_N111 = gates_NL11[:, len(maps) : len(maps) + 1]
            shortcut, residual = layer.paths(x)
            norms = [gate_N111.abs() * reduce.norm(residual)]
            residual_NC11 = gate_N111 * reduce.mean(residual)
            norms.append(torch.zeros_like(norms[0]) if shortcut is None else reduce.norm(shortcut))
            total, x = layer.merge(shortcut, gate_N111.to(self.dtype) * residual)
            norms += [norms[0] if shortcut is None else reduce.norm(total), reduce.norm(x)]
            rms_N4HW = torch.cat(norms, 1) / math.sqrt(x.shape[1])
            maps.append(rms_N4HW.flatten(2))
            mean_squares.append((rms_N4HW * rms_N4HW).mean((2, 3), keepdim=True))
            moments.append(
                _channel_moments(residual_NC11, None if shortcut is None else reduce.mean(shortcut))
            )
            fractions += _fractions(reduce.active(x), None if shortcut is None else reduce.active(shortcut))
        # In the order of `manifest.SCALARS`: 4, 4 and 3 of them.
        parts = zip((mean_squares, moments, fractions), (4, 4, 3), strict=True)
        scalars = [torch.cat(part, 1).reshape(-1, len(maps), width) for part, width in parts]
        return self.model.pool_and_head(x), torch.cat(scalars, 2), torch.cat(maps, 2)


class Reductions:
    """What is read off a tensor [N, C, H, W], in float32 and once a tensor."""

    def __init__(self) -> None:
        # What is squared must be float32 *before*: 2048 channels of 6 pass fp16's 65,504.
        self.exact = cache(lambda tensor_NCHW: tensor_NCHW.float())
        self.norm = cache(self._norm)
        self.mean = cache(self._mean)
        self.active = cache(self._active)

    def _norm(self, tensor_NCHW: Tensor) -> Tensor:
        """Over channels, [N, 1, H, W]: squares written out and then summed cost a third of the throughput."""
        norm: Tensor = torch.linalg.vector_norm(self.exact(tensor_NCHW), dim=1, keepdim=True)
        return norm

    def _mean(self, tensor_NCHW: Tensor) -> Tensor:
        """Of every channel, [N, C, 1, 1]."""
        mean: Tensor = self.exact(tensor_NCHW).mean((2, 3), keepdim=True)
        return mean

    def _active(self, tensor_NCHW: Tensor) -> Tensor:
        """1 where it is positive, else 0: engines make two steps of this, and four of a comparison."""
        active: Tensor = (self.exact(tensor_NCHW) * HUGE).clamp(0, 1)
        return active


def _channel_moments(residual_NC11: Tensor, shortcut_NC11: Tensor | None) -> Tensor:
    """Of the channels' means, [N, 1, 4, 1]: mean F, mean F^2, mean s^2, mean F s."""
    if shortcut_NC11 is None:
        shortcut_NC11 = torch.zeros_like(residual_NC11)
    moments = (
        residual_NC11,
        residual_NC11 * residual_NC11,
        shortcut_NC11 * shortcut_NC11,
        residual_NC11 * shortcut_NC11,
    )
    return torch.cat(moments, 2).mean(1, keepdim=True)


def _fractions(active_NCHW: Tensor, shortcut_NCHW: Tensor | None) -> list[Tensor]:
    """[u > 0], [s > 0] and both, [N, 1, 1, 1] each. Here as elsewhere ReLU(u) > 0 where u > 0."""
    if shortcut_NCHW is None:
        shortcut_NCHW = torch.zeros_like(active_NCHW)
    masks = (active_NCHW, shortcut_NCHW, active_NCHW * shortcut_NCHW)
    return [mask.mean((1, 2, 3), keepdim=True) for mask in masks]


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


def export_graph(
    kind: GraphKind, model: ResNet, preprocessing: Preprocessing, path: Path, precision: Precision = "fp32"
) -> onnx.ModelProto:
    """Fuse, convert, export and write one graph; its opset is OPSETS[precision].

    What `introspect` measures has names such as `stage2.0.residual`.
    """
    # Two rows: an example batch of one would be taken for a constant.
    side = preprocessing.crop
    example: tuple[Tensor, ...] = (torch.zeros(2, side, side, 3, dtype=torch.uint8),)
    module: nn.Module = ClassifyGraph(model, preprocessing, precision)
    if kind == "introspect":
        module = IntrospectGraph(model, preprocessing, precision)
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
            opset_version=OPSETS[precision],
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    if kind == "introspect":
        _name_taps(proto, model)
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
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
    casts = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "Cast"}
    norms = [node.input[0] for node in proto.graph.node if node.op_type == "ReduceL2"]
    norms = [casts.get(name, name) for name in norms]
    renamed = dict(zip(norms, tap_names(model), strict=True))
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for info in proto.graph.value_info:
        info.name = renamed.get(info.name, info.name)


def _strip(proto: onnx.ModelProto) -> None:
    """Without the exporter's notes: stack traces with this machine's paths, half of a small file."""
    graph = proto.graph
    for part in (
        proto,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
