"""The quantity `top_channels`: exact against the unfused network in float64, and null where it is lacking."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifact.manifest import WITHOUT_CONTRIBUTIONS, Manifest, Tensor
from export.graph import OUTPUTS, export_graph
from export.verify import open_session, synthetic_images
from introspection.attribution import NUM_TOP_CHANNELS
from introspection.document import answer
from introspection.forms import to_npz
from introspection.measure import Values, measure
from introspection.pictures.block import block_picture
from introspection.quantities import NOT_EXPORTED, why_absent
from introspection.question import IntrospectQuery, resolve
from introspection.schemas import Introspection
from introspection.steps import finish
from models.pixels import normalised
from models.resnet import ResNet, build
from residuum.cli.blocks import print_blocks
from tests.export.test_hooks import hooked, manifest_of
from tests.support.frozen import ROWS, FrozenNetwork
from tests.support.measured import random_blocks, seen
from tests.support.networks import liven, metadata_for

SIZE = 33
TARGET = 4


def network(row: str) -> ResNet:
    name, changes = ROWS[row]
    return liven(build(name, seed=3, **changes))


def exported(manifest: Manifest) -> Manifest:
    """As if its attribute graph had been exported with all that it gives now."""
    outputs = tuple(Tensor(name=name, dtype="float32", shape=()) for name in OUTPUTS["attribute"])
    graphs = [
        graph.model_copy(update={"outputs": outputs}) if graph.kind == "attribute" else graph
        for graph in manifest.graphs
    ]
    return manifest.model_copy(update={"graphs": tuple(graphs)})


def looked(row: str, folder: Path) -> tuple[ResNet, Manifest, np.ndarray[Any, Any], dict[str, Any]]:
    """A small network, what its exported attribute graph gives for one image, and that image."""
    model, images = network(row), synthetic_images(1, SIZE, seed=5)
    preprocessing = metadata_for(model, SIZE).preprocessing
    export_graph("attribute", model, preprocessing, folder / "attribute.onnx")
    session, names = open_session(folder / "attribute.onnx"), OUTPUTS["attribute"]
    manifest = exported(manifest_of(model, SIZE))
    gates = np.ones((1, len(manifest.blocks)), np.float32)
    outputs = session.run(names, {"images": images, "gates": gates, "target": np.array([TARGET])})
    return model, manifest, images, {name: rows[0] for name, rows in zip(names, outputs, strict=True)}


@pytest.mark.parametrize("row", ["D", "option A", "v2"])
def test_the_sums_are_those_of_the_network_in_float64(row: str, tmp_path: Path) -> None:
    """Gradients by autograd through the frozen network, F by hooks on the modules that make it."""
    model, manifest, images, outputs = looked(row, tmp_path)
    values = measure(manifest, outputs, target=TARGET)
    x_NCHW = normalised(images, metadata_for(model, SIZE).preprocessing, torch.float64)
    frozen = FrozenNetwork(model, x_NCHW, torch.ones(1, len(manifest.blocks), dtype=torch.float64))
    logits_NK, _ = frozen(frozen.leaves)
    gradients = torch.autograd.grad(logits_NK[0, TARGET], frozen.leaves[1:])
    branches = [F for F, _ in hooked(model.double(), x_NCHW)]
    start = 0
    for index, (F, gradient) in enumerate(zip(branches, gradients, strict=True)):
        expected_C = (gradient[0].numpy() * F).sum((1, 2))
        stop = start + len(expected_C)
        np.testing.assert_allclose(outputs["channels"][start:stop], expected_C, rtol=1e-4, atol=1e-4)
        whole = values.scalars["contribution"][index]
        assert outputs["channels"][start:stop].sum(dtype=np.float64) == pytest.approx(whole, abs=1e-5)
        best = values.ranked["top_channels.channel"][index].astype(int)
        sums = values.ranked["top_channels.sum"][index]
        assert np.array_equal(sums, outputs["channels"][start:stop].astype(np.float64)[best])
        assert sums[0] == outputs["channels"][start:stop].max()
        assert (np.diff(sums) <= 0).all()
        np.testing.assert_allclose(np.sort(expected_C)[::-1][: len(best)], sums, rtol=1e-4, atol=1e-4)
        start = stop
    assert start == outputs["channels"].size


SHAPES = [(8, 8, 8), (3, 8, 8), (16, 4, 4)]


@pytest.fixture(scope="module")
def measured() -> tuple[Values, Manifest]:
    case = random_blocks(SHAPES)
    sums = np.random.default_rng(7).standard_normal(sum(shape[0] for shape in SHAPES))
    return measure(case.manifest, case.outputs | {"channels": sums}), exported(case.manifest)


def test_every_form_has_them_if_they_are_named(measured: tuple[Values, Manifest]) -> None:
    values, manifest = measured
    found, question = (
        seen(values, manifest),
        resolve(IntrospectQuery(quantities="top_channels,share"), manifest),
    )
    document = answer(found, question)
    Introspection.model_validate(document)
    lengths = [len(block["top_channels"]) for block in document["blocks"]]
    assert lengths == [NUM_TOP_CHANNELS, 3, NUM_TOP_CHANNELS]  # the second block has three channels
    first = document["blocks"][0]["top_channels"][0]
    assert first["channel"] == values.ranked["top_channels.channel"][0, 0]
    assert first["sum"] == pytest.approx(values.ranked["top_channels.sum"][0, 0], rel=1e-7)
    with np.load(io.BytesIO(to_npz(found, question)), allow_pickle=False) as arrays:
        assert arrays["scalars/top_channels.sum"].shape == (3, NUM_TOP_CHANNELS)
        assert np.isnan(arrays["scalars/top_channels.sum"][1, 3:]).all()
    without = resolve(IntrospectQuery(quantities="share"), manifest)
    assert finish(block_picture(found, question, 0)) != finish(block_picture(found, without, 0))


def test_answers_without_the_name_do_not_have_them(measured: tuple[Values, Manifest]) -> None:
    values, manifest = measured
    document = answer(seen(values, manifest), resolve(IntrospectQuery(), manifest))
    assert "top_channels" not in json.dumps(document)


def test_an_older_artifact_says_that_it_lacks_them() -> None:
    case = random_blocks(SHAPES)
    assert why_absent("top_channels", case.manifest) == NOT_EXPORTED
    question = resolve(IntrospectQuery(quantities="top_channels"), case.manifest)
    found = seen(case.values, case.manifest)
    document = answer(found, question)
    assert document["null_reasons"]["top_channels"] == NOT_EXPORTED
    assert [block["top_channels"] for block in document["blocks"]] == [None] * 3
    with np.load(io.BytesIO(to_npz(found, question)), allow_pickle=False) as arrays:
        assert np.isnan(arrays["scalars/top_channels.sum"]).all()


@pytest.mark.parametrize("variant", WITHOUT_CONTRIBUTIONS)
def test_networks_without_contributions_have_another_reason(variant: Any) -> None:
    case = random_blocks(SHAPES, variant=variant)
    reason = why_absent("top_channels", case.manifest)
    assert reason == why_absent("contribution", case.manifest) != NOT_EXPORTED


def test_the_terminal_shows_the_best(
    measured: tuple[Values, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    values, manifest = measured
    document = answer(
        seen(values, manifest), resolve(IntrospectQuery(quantities="top_channels,share"), manifest)
    )
    print_blocks(document, {})
    printed = capsys.readouterr().out
    best = document["blocks"][0]["top_channels"][0]
    assert f"{best['channel']}: {best['sum']:+.2f}" in printed
    assert "top channels: the channels that add most" in printed
