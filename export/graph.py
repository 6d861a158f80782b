"""The graphs of an artifact, as modules and as ONNX.

All take `images` uint8 [N, H, W, 3] and normalise inside: 1 / (255 std) goes into the first convolution. The
mean stays a subtraction, because the convolution's zero padding must come after it.

A precision is the type of the network's weights and activations: the module is converted, then exported.
Inputs and outputs are the same in every precision: uint8 images, float32 gates, float32 outputs.

Shapes: N batch, C channels, H W space, K classes, L blocks, S scalars (`manifest.SCALARS`),
P positions of all blocks one after another (`manifest.map_slices`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx.utils
import torch
from torch import Tensor, nn

from artifact.manifest import TOP_CLASS, WITHOUT_CONTRIBUTIONS, GraphKind, Precision, Preprocessing
from export.attribution import Attributed, LayerTaps, attribute
from export.fuse import fuse_batchnorm
from export.reductions import Reductions, active_fractions, channel_moments
from models.blocks import BlockTaps, ResidualBlock
from models.resnet import ResNet

# bfloat16 convolutions are part of ONNX since opset 22.
OPSETS: dict[Precision, int] = {"fp32": 20, "fp16": 20, "bf16": 22}

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

# Pixels minus their mean reach 255, and weights divided by 255 std (about 58) fall below 6e-5, where fp16
# loses digits. So fp16 moves a factor of 2^6 from the pixels to the weights. A power of two changes exponents
# only, so the rounding of the cast stays the same. bf16 has float32's exponents and needs no factor.
INPUT_SCALES: dict[Precision, float] = {"fp32": 1.0, "fp16": 2.0**-6, "bf16": 1.0}
INPUTS: dict[GraphKind, tuple[str, ...]] = {
    "classify": ("images",),
    "introspect": ("images", "gates"),
    "attribute": ("images", "gates", "target"),
}
# Tracing a batch of unknown size takes torch three times as long as one of a known size. So the graph is
# traced with this number of images, which no other dimension has, and the number becomes "batch" in the file.
TRACED_BATCH = 1_000_003
OUTPUTS: dict[GraphKind, tuple[str, ...]] = {
    "classify": ("logits",),
    "introspect": ("logits", "scalars", "maps"),
    "attribute": ("logits", "scalars", "maps", "lens", *Attributed._fields),
}


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
        """Normalise in float32 and cast once: no fp16 or bf16 number is near a mean of 123.675."""
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
    """The head in float32 in every precision: in bf16 the best two of many logits are often equal."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(head.weight.float())
        self.bias = nn.Parameter(head.bias.float())

    def forward(self, features_NC: Tensor) -> Tensor:
        return nn.functional.linear(features_NC.float(), self.weight, self.bias)


class IntrospectGraph(ClassifyGraph):
    """uint8 [N, H, W, 3], gates [N, L] -> logits [N, K], scalars [N, L, S], maps [N, 4, P].

    u = s + g F, and all figures of F are those of g F. Engines are fast if few passes go over large tensors.
    So each tensor is reduced once, right after it was computed, even if two blocks have it (an identity
    shortcut is the output of the block before). The gate scales the reductions of F; only the addition reads
    g F itself. docs/decisions.md says what this gained.
    """

    def forward(self, images: Tensor, gates: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.forward_taps(images, gates)[0]

    def forward_taps(self, images: Tensor, gates: Tensor) -> tuple[tuple[Tensor, ...], list[LayerTaps]]:
        """Return the outputs of `forward`, and the input and output of every layer between stem and head."""
        x = self.model.stem(self.normalise(images))
        gates_NL11 = gates[:, :, None, None]
        reduce = Reductions()
        layers: list[LayerTaps] = []
        maps: list[Tensor] = []
        mean_squares, moments, fractions = [], [], []
        for _, layer in self.model.named_layers():
            if not isinstance(layer, ResidualBlock):
                layers.append(LayerTaps(layer, x, None))
                x = layer(x)
                continue
            gate_N111 = gates_NL11[:, len(maps) : len(maps) + 1]
            shortcut, residual = layer.paths(x)
            norms = [gate_N111.abs() * reduce.norm(residual)]
            residual_NC11 = gate_N111 * reduce.mean(residual)
            norms.append(0 * norms[0] if shortcut is None else reduce.norm(shortcut))
            gated = gate_N111.to(self.dtype) * residual
            total, output = layer.merge(shortcut, gated)
            layers.append(LayerTaps(layer, x, BlockTaps(gated, shortcut, total, output)))
            x = output
            norms += [norms[0] if shortcut is None else reduce.norm(total), reduce.norm(x)]
            rms_N4HW = torch.cat(norms, 1) / math.sqrt(x.shape[1])
            maps.append(rms_N4HW.flatten(2))
            mean_squares.append((rms_N4HW * rms_N4HW).mean((2, 3), keepdim=True))
            moments.append(
                channel_moments(residual_NC11, None if shortcut is None else reduce.mean(shortcut))
            )
            fractions += active_fractions(
                reduce.active(x), None if shortcut is None else reduce.active(shortcut)
            )
        # In the order of `manifest.SCALARS`: 4, 4 and 3 of them.
        parts = zip((mean_squares, moments, fractions), (4, 4, 3), strict=True)
        scalars = [torch.cat(part, 1).reshape(-1, len(maps), width) for part, width in parts]
        outputs = (self.model.pool_and_head(x), torch.cat(scalars, 2), torch.cat(maps, 2))
        return outputs, layers


class AttributeGraph(IntrospectGraph):
    """uint8 [N, H, W, 3], gates [N, L], target [N] -> introspect's outputs, lens, contributions, constants.

    target: a class, or `manifest.TOP_CLASS` for the most probable one.
    lens [N, M, K]: the logits, had the network stopped at a block, for `manifest.lens_blocks`.
    Then the parts of the target's logit (`Attributed`): contributions [N, P], a block's contribution if
    summed over its positions; constants [N, 3], what else adds to that logit (`manifest.CONSTANTS`).

    It is a separate graph, because it takes 12 to 41 % longer and keeps every F until the head has run: who
    does not ask for contributions does not pay. Networks WITHOUT_CONTRIBUTIONS lack `target` and the outputs
    of `Attributed`.
    """

    def forward(self, images: Tensor, gates: Tensor, target: Tensor | None = None) -> tuple[Tensor, ...]:  # type: ignore[override]
        outputs, layers = self.forward_taps(images, gates)
        ends = [layer.taps.output for layer in layers if layer.taps is not None]
        lens = [self.model.pool_and_head(x) for x in ends if x.shape[1:] == ends[-1].shape[1:]]
        outputs += (torch.stack(lens, 1),)
        if target is None:
            return outputs
        target_N = torch.where(target < 0, outputs[0].argmax(1), target)
        return outputs + attribute(self.model, layers, target_N)


def distinct_tensors(taps: Mapping[str, BlockTaps]) -> dict[str, Tensor]:
    """Return each tensor among the taps once, under its first name.

    One tensor may have two names: an identity shortcut is the output of the block before. Names are such as
    `stage2.0.residual`, in the order residual, shortcut, sum, output.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    for block, tap in taps.items():
        for part, tensor in zip(("residual", "shortcut", "sum", "output"), tap, strict=True):
            if tensor is not None:
                found.setdefault(id(tensor), (f"{block}.{part}", tensor))
    return dict(found.values())


GRAPHS: dict[GraphKind, type[ClassifyGraph]] = {
    "classify": ClassifyGraph,
    "introspect": IntrospectGraph,
    "attribute": AttributeGraph,
}


def export_graph(
    kind: GraphKind, model: ResNet, preprocessing: Preprocessing, path: Path, precision: Precision = "fp32"
) -> onnx.ModelProto:
    """Fuse, convert, export and write one graph; its opset is OPSETS[precision].

    The tensors that `introspect` measures have names such as `stage2.0.residual`.
    """
    side = preprocessing.crop
    example: tuple[Tensor, ...] = (torch.zeros(1, side, side, 3, dtype=torch.uint8),)
    module = GRAPHS[kind](model, preprocessing, precision)
    if kind != "classify":
        example += (torch.ones(1, len(list(model.named_blocks()))),)
    inputs, outputs = INPUTS[kind], OUTPUTS[kind]
    if kind == "attribute":
        if model.variant in WITHOUT_CONTRIBUTIONS:
            inputs, outputs = inputs[:-1], outputs[: -len(Attributed._fields)]
        else:
            example += (torch.tensor([TOP_CLASS]),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inside the exporter
        program = torch.onnx.export(
            module.eval(),
            tuple(row.expand(TRACED_BATCH, *row.shape[1:]) for row in example),
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSETS[precision],
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _name_batch(proto)
    if kind != "classify":
        _name_taps(proto, model)
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return proto


def _name_batch(proto: onnx.ModelProto) -> None:
    """Replace the traced number of images by any number: a name in types, -1 in the shapes of Reshape.

    The number must not be anywhere else: modules use no constants of the batch's size, as `torch.zeros_like`
    and `expand` would make. The gates run the file with other batches.
    """
    graph = proto.graph
    for info in (*graph.input, *graph.output, *graph.value_info):
        dims = info.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == TRACED_BATCH:
            dims[0].dim_param = "batch"
    for tensor in graph.initializer:
        users = {node.op_type for node in graph.node if tensor.name in node.input}
        is_of_it = TRACED_BATCH in tensor.dims
        if tensor.data_type == onnx.TensorProto.INT64 and users & {"Reshape", "Expand"}:
            shape = onnx.numpy_helper.to_array(tensor).copy()
            if users == {"Reshape"}:
                shape[shape == TRACED_BATCH] = -1
                tensor.CopyFrom(onnx.numpy_helper.from_array(shape, tensor.name))
            is_of_it |= TRACED_BATCH in shape
        assert not is_of_it, f"{tensor.name} is for {TRACED_BATCH} images, however many there are"


def cut_introspect(attribute: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Write the introspect graph, which is a part of the attribute graph: a second export is not needed."""
    part = onnx.utils.Extractor(attribute)
    proto = part.extract_model(list(INPUTS["introspect"]), list(OUTPUTS["introspect"]))
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return proto


@torch.no_grad()
def tap_names(model: ResNet, size: int = 32) -> list[str]:
    """Return the names of the tensors that `introspect` measures, in the order of the graph."""
    dtype = next(model.parameters()).dtype
    was_training = model.training
    _, taps = model.eval().forward_taps(torch.zeros(1, 3, size, size, dtype=dtype))
    model.train(was_training)
    return list(distinct_tensors(taps))


def _name_taps(proto: onnx.ModelProto, model: ResNet) -> None:
    """Name the inputs of the norms, so that an engine can be asked for the tensors themselves."""
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
    """Remove the exporter's notes: stack traces with paths of this machine, half of a small file."""
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
