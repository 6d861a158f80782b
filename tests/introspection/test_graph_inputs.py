"""Which rows go through which graph, on a loaded model; and that what was not asked for is not run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifact.manifest import TOP_CLASS, GraphKind, read_manifest
from artifact.preprocess import Preprocessed, preprocess
from introspection.graph_inputs import graph_kind, image_row, lesion_rows
from introspection.quantities import NOT_EXPORTED, why_absent
from introspection.question import IntrospectQuery, Question, resolve
from service.runtime.introspect import BATCHES_A_CHUNK, introspect, lesion_chunks
from service.runtime.loading import load_model
from service.runtime.model import LoadedModel
from service.settings import Settings
from tests.support.images import encode, photograph

PHOTOGRAPH = encode(photograph(40, 40, seed=11), "PNG")
ALONE = Settings(engine="onnxruntime", device="cpu", threads=1, max_batch_size=1)


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[LoadedModel]:
    with closing(load_model(artifact, ALONE)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def old(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    """The same, exported before there was an attribute graph."""
    folder = tmp_path_factory.mktemp("old") / "resnet20"
    shutil.copytree(artifact, folder)
    manifest = read_manifest(artifact)
    graphs = tuple(graph for graph in manifest.graphs if graph.kind != "attribute")
    manifest.model_copy(update={"graphs": graphs}).write(folder)
    with closing(load_model(folder, ALONE)) as loaded:
        yield loaded


def options(model: LoadedModel, **given: Any) -> Question:
    return resolve(IntrospectQuery(**given), model.manifest)


def image(model: LoadedModel) -> Preprocessed:
    return preprocess(PHOTOGRAPH, model.manifest.preprocessing)


def pixels(model: LoadedModel) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return image(model).pixels


@pytest.mark.parametrize(
    ("quantities", "kind"),
    [
        ("", "attribute"),
        ("contribution", "attribute"),
        ("ratio,lens", "attribute"),
        ("ratio,share,output", "introspect"),
        ("lesion", "introspect"),
    ],
)
def test_the_cheapest_graph_that_has_what_is_asked(
    model: LoadedModel, old: LoadedModel, quantities: str, kind: GraphKind
) -> None:
    assert graph_kind(model.manifest, options(model, quantities=quantities)) == kind
    assert graph_kind(old.manifest, options(old, quantities=quantities)) == "introspect"


def test_rows_have_what_the_graph_takes(model: LoadedModel, old: LoadedModel) -> None:
    seen = pixels(model)
    full, cheap = model.graphs["attribute"], model.graphs["introspect"]
    row = image_row(full.graph, seen, options(model))
    assert row.keys() == {"images", "gates", "target"}
    assert (row["target"], row["target"].dtype) == (TOP_CLASS, np.int64)
    assert image_row(full.graph, seen, options(model, target="7"))["target"] == 7
    assert image_row(cheap.graph, seen, options(model, target="7")).keys() == {"images", "gates"}
    assert image_row(old.graphs["introspect"].graph, seen, options(old)).keys() == {"images", "gates"}


def test_one_block_is_removed_a_row_and_gates_stay(model: LoadedModel) -> None:
    gates_L = options(model, gates="stage1.1:0.5,stage2.0:-1").gates_L
    whole, first, second = lesion_rows(pixels(model), gates_L, (1, 8))
    assert np.array_equal(whole["gates"], gates_L)
    assert gates_L[1] == 0.5  # untouched
    for row, removed in ((first, 1), (second, 8)):
        expected = gates_L.copy()
        expected[removed] = 0
        assert np.array_equal(row["gates"], expected)
        assert row["images"] is whole["images"]


@pytest.mark.parametrize(("capacity", "expected"), [(128, [4, 4, 2]), (12, [3, 3, 3, 1]), (3, [1] * 10)])
def test_lesions_leave_room_in_the_queue(
    artifact: Path, model: LoadedModel, capacity: int, expected: list[int]
) -> None:
    """Nine blocks, one image a batch, at most a quarter of the queue; in portions the answer is the same."""
    settings = ALONE.model_copy(update={"queue_capacity": capacity, "max_images": 1})
    asked = options(model, quantities="lesion")
    with closing(load_model(artifact, settings)) as narrow:
        assert [len(rows) for rows in lesion_chunks(narrow, pixels(model), asked)] == expected
        found = introspect(narrow, image(model), asked).values
    assert found.lesions is not None
    whole = introspect(model, image(model), asked).values
    assert whole.lesions is not None
    assert np.array_equal(found.lesions.logits, whole.lesions.logits)
    assert BATCHES_A_CHUNK == 4


def test_contributions_sum_to_the_logit_of_any_class(model: LoadedModel) -> None:
    for target in ("top1", "3"):
        found = introspect(model, image(model), options(model, target=target, gates="stage2.1:0.5")).values
        index = int(found.logits_K.argmax()) if target == "top1" else 3
        parts = found.decomposition
        assert parts is not None
        assert parts.logit == found.logits_K[index]
        assert parts.sum == pytest.approx(parts.logit, abs=1e-4)
        assert abs(parts.blocks) > 0.1


def test_a_lesion_is_a_gate_of_zero(model: LoadedModel) -> None:
    found = introspect(model, image(model), options(model, quantities="lesion", target="3")).values
    assert found.lesions is not None
    np.testing.assert_allclose(found.lesions.logits[0], found.logits_K, atol=1e-5)
    for index, block in enumerate(model.manifest.blocks):
        without = introspect(
            model, image(model), options(model, quantities="rms", gates=f"{block.name}:0")
        ).values
        np.testing.assert_allclose(found.lesions.logits[index + 1], without.logits_K, atol=1e-5)
        expected = without.logits_K[3] - found.logits_K[3]
        assert found.scalars["lesion.target_delta_logit"][index] == pytest.approx(expected, abs=1e-5)
    assert np.abs(found.scalars["lesion.delta_logit"]).min() > 1e-3


def test_only_blocks_asked_for_are_removed(model: LoadedModel) -> None:
    found = introspect(model, image(model), options(model, blocks="stage3", lesion=True)).values
    assert found.lesions is not None
    assert found.lesions.blocks == (6, 7, 8)
    assert found.lesions.logits.shape == (4, 10)
    assert np.isfinite(found.scalars["lesion.kl"]).tolist() == [False] * 6 + [True] * 3


def test_an_old_artifact_has_all_but_what_needs_the_new_graph(old: LoadedModel) -> None:
    found = introspect(old, image(old), options(old, lesion=True)).values
    assert "lesion.kl" in found.scalars
    assert "contribution" not in found.scalars
    for name in ("contribution", "lens", "lens.probability"):
        assert why_absent(name, old.manifest) == NOT_EXPORTED
    assert why_absent("ratio", old.manifest) is None
