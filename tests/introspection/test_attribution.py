"""Contributions against autograd on the frozen network, and the lens against the head.

Ours are of the fused network, in float32 and without gradients; the oracle is in `tests/support/frozen.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from artifact.manifest import lens_blocks, map_slices
from engines.engine import EngineName, EngineOptions
from engines.registry import open_engine
from export.graph import OUTPUTS, AttributeGraph, ClassifyGraph, export_graph
from export.verify import synthetic_images
from models.pixels import normalised
from models.resnet import ResNet, build, describe_blocks
from tests.support.frozen import ROWS, Attribution, FrozenNetwork
from tests.support.networks import liven, metadata_for

Outputs = Mapping[str, NDArray[np.float32]]
NUM_IMAGES = 3
TARGETS = torch.tensor([-1, 4, 0])


@cache
def network(row: str) -> ResNet:
    name, changes = ROWS[row]
    return liven(build(name, seed=3, **changes))


def gates_for(model: ResNet, seed: int = 0) -> NDArray[np.float32]:
    """Between -0.5 and 1.5, and all ones for the last image."""
    num_blocks = len(list(model.named_blocks()))
    gates = np.random.default_rng(seed).uniform(-0.5, 1.5, (NUM_IMAGES, num_blocks)).astype(np.float32)
    gates[-1] = 1
    return gates


@torch.no_grad()
def graph_outputs(model: ResNet, images: NDArray[np.uint8], gates: NDArray[np.float32]) -> Outputs:
    """Of the fused module in float32."""
    graph = AttributeGraph(model, metadata_for(model, images.shape[1]).preprocessing)
    outputs = graph(torch.from_numpy(images), torch.from_numpy(gates), TARGETS)
    return {name: tensor.numpy() for name, tensor in zip(OUTPUTS["attribute"], outputs, strict=True)}


def oracle(model: ResNet, images: NDArray[np.uint8], gates: NDArray[np.float32]) -> Attribution:
    x_NCHW = normalised(images, metadata_for(model, images.shape[1]).preprocessing, torch.float64)
    frozen = FrozenNetwork(model, x_NCHW, torch.from_numpy(gates).double())
    return frozen.attribute(torch.where(TARGETS < 0, frozen.logits_NK.argmax(1), TARGETS))


def assert_attributed(outputs: Outputs, truth: Attribution) -> None:
    """Maps, blocks and constants to 1e-4 of the logit, or of 1 where that is smaller; and they add up."""
    unit_N = truth.logit_N.abs().clamp(min=1).numpy()
    logit_N = truth.logit_N.numpy()
    maps_NP, constants_N3 = outputs["contributions"].astype(np.float64), outputs["constants"]
    truth_NP = torch.cat([residual.flatten(1) for residual in truth.residuals], 1).numpy()
    assert np.abs((maps_NP - truth_NP) / unit_N[:, None]).max() < 1e-4
    start = 0
    for number, residual in enumerate(truth.residuals):
        stop = start + residual[0].numel()
        error_N = maps_NP[:, start:stop].sum(1) - residual.sum((1, 2)).numpy()
        assert np.abs(error_N / unit_N).max() < 1e-4, number
        start = stop
    assert np.abs((constants_N3 - truth.constants_N3.numpy()) / unit_N[:, None]).max() < 1e-4
    assert np.abs((maps_NP.sum(1) + constants_N3.sum(1) - logit_N) / unit_N).max() < 1e-4


@pytest.mark.parametrize("size", [32, 33, 65])
@pytest.mark.parametrize("row", ROWS)
def test_contributions_are_gradient_times_branch(row: str, size: int) -> None:
    """Odd sizes have cells at the edge of which a stride sees only a part."""
    model, images = network(row), synthetic_images(NUM_IMAGES, size, seed=5)
    gates = gates_for(model)
    assert_attributed(graph_outputs(model, images, gates), oracle(model, images, gates))


# --- the file, through engines ----------------------------------------------------------------------------


Export = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """export(row, size) -> the attribute graph's file, made the first time that it is asked for."""
    folder = tmp_path_factory.mktemp("attribute")

    @cache
    def make(row: str, size: int) -> Path:
        path = folder / f"{row}.{size}.onnx"
        export_graph("attribute", network(row), metadata_for(network(row), size).preprocessing, path)
        return path

    return make


def engine_outputs(
    engine: EngineName, path: Path, images: NDArray[np.uint8], gates: NDArray[np.float32]
) -> Outputs:
    opened = open_engine(engine, path, "fp32", EngineOptions("cpu", threads=1, batch_sizes=(NUM_IMAGES,)))
    try:
        return opened.run({"images": images, "gates": gates, "target": TARGETS.numpy()})
    finally:
        opened.close()


ENGINES: list[tuple[str, int, EngineName]] = [
    ("D", 33, "onnxruntime"),
    ("D", 33, "openvino"),
    ("D", 33, "torch"),
    ("v2, option A", 33, "onnxruntime"),
    ("v2, option A", 33, "openvino"),
    ("dense", 33, "onnxruntime"),
    ("dense", 33, "openvino"),
]


@pytest.mark.parametrize(("row", "size", "engine"), ENGINES)
def test_engines_give_the_same_contributions(row: str, size: int, engine: EngineName, export: Export) -> None:
    pytest.importorskip(engine)
    model, images = network(row), synthetic_images(NUM_IMAGES, size, seed=5)
    gates = gates_for(model)
    outputs = engine_outputs(engine, export(row, size), images, gates)
    assert_attributed(outputs, oracle(model, images, gates))
    expected = graph_outputs(model, images, gates)
    for name in expected:
        np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-3, atol=2e-3, err_msg=name)


# --- what follows from the definition ----------------------------------------------------------------------


@pytest.mark.parametrize(("row", "depth"), [("bottleneck", 2), ("option A", 1)])
def test_the_last_stage_and_what_it_was_given_are_the_class_activation_map(row: str, depth: int) -> None:
    """Position by position, in v1, with identities after the stage's first block.

    So with one block it is that block's map and its shortcut's share, and not the block's map alone.
    """
    model, images = network(row), synthetic_images(NUM_IMAGES, 65, seed=6)
    gates = gates_for(model)
    truth = oracle(model, images, gates)
    cells = truth.cam[0].numel()
    maps = graph_outputs(model, images, gates)["contributions"][:, -depth * cells :]
    cam = maps.reshape(NUM_IMAGES, depth, *truth.cam.shape[1:]).sum(1) + truth.shortcuts[-depth].numpy()
    np.testing.assert_allclose(cam, truth.cam.numpy(), rtol=0, atol=1e-5)


def test_the_lens_is_the_head_on_every_block_s_output() -> None:
    model, images = network("option C"), synthetic_images(NUM_IMAGES, 32, seed=7)
    gates = gates_for(model)
    source = copy.deepcopy(model).double()
    x_NCHW = normalised(images, metadata_for(model).preprocessing, torch.float64)
    with torch.no_grad():
        _, taps = source.forward_taps(x_NCHW, torch.from_numpy(gates).double())
        expected = [source.pool_and_head(taps[name].output) for name in ("stage2.0", "stage2.1")]
    lens_NMK = graph_outputs(model, images, gates)["lens"]
    np.testing.assert_allclose(lens_NMK, torch.stack(expected, 1), rtol=0, atol=1e-4)
    assert lens_blocks(describe_blocks(model, 32)) == [2, 3]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(ROWS)),
    st.integers(0, 2**16),
    st.sampled_from([32, 33, 47]),
    st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6),
)
def test_parts_add_up_and_a_closed_gate_adds_nothing(
    row: str, seed: int, size: int, strengths: list[float]
) -> None:
    """Whatever the weights and the gates; with gates of 1 the logits are those of classify."""
    name, changes = ROWS[row]
    model = liven(build(name, seed=seed, **changes), seed)
    blocks = describe_blocks(model, size)
    images = synthetic_images(NUM_IMAGES, size, seed)
    gates = np.tile(np.array(strengths[: len(blocks)], np.float32), (NUM_IMAGES, 1))
    gates[1, seed % len(blocks)] = 0
    gates[2] = 1
    outputs = graph_outputs(model, images, gates)
    logits = np.where(
        TARGETS < 0, outputs["logits"].max(1), outputs["logits"][np.arange(NUM_IMAGES), TARGETS]
    )
    total = outputs["contributions"].sum(1, dtype=np.float64) + outputs["constants"].sum(1)
    parts = np.abs(outputs["contributions"]).sum(1) + np.abs(outputs["constants"]).sum(1)
    assert np.all(np.abs(total - logits) < 1e-5 * np.maximum(1, parts))
    assert not outputs["contributions"][1, map_slices(blocks)[seed % len(blocks)]].any()
    with torch.no_grad():
        plain = ClassifyGraph(model, metadata_for(model, size).preprocessing)(torch.from_numpy(images[2:]))
    np.testing.assert_allclose(outputs["logits"][2:], plain.numpy(), rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(ROWS)), st.floats(-2, 2), st.floats(-2, 2))
def test_contributions_are_linear_in_the_head(row: str, first: float, second: float) -> None:
    """A class whose weights are a mixture of two others' has their contributions, mixed."""
    model = copy.deepcopy(network(row))
    mixture = torch.tensor([first, second])
    with torch.no_grad():
        for tensor in (model.head.weight, model.head.bias):
            tensor[2] = torch.tensordot(mixture, tensor[:2], dims=1)
    images = np.repeat(synthetic_images(1, 33, seed=8), 3, 0)
    graph = AttributeGraph(model, metadata_for(model, 33).preprocessing)
    gates = torch.from_numpy(gates_for(model)[:1].repeat(3, 0))
    with torch.no_grad():
        *_, maps, constants = graph(torch.from_numpy(images), gates, torch.arange(3))
    for parts in (maps, constants):
        expected = torch.tensordot(mixture, parts[:2], dims=1)
        torch.testing.assert_close(parts[2], expected, rtol=1e-4, atol=1e-5 * float(parts.abs().max()))
