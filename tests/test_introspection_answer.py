"""The JSON and NPZ answers: the contract's keys in their order, maps to half a step, sizes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.manifest import SCALARS
from service.introspection import MAP_QUANTITIES, MapQuantity, measure
from service.introspection_answer import (
    NULLABLE,
    Run,
    answer,
    decode_codes,
    decode_map,
    encode_map,
    map_range,
    to_json,
    to_npz,
)
from service.introspection_query import IntrospectQuery, Options, resolve
from service.introspection_schemas import Introspection
from tests.measured import Measured, measured, random_blocks, resnet50_manifest, seen

SHAPES = [(8, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2)]
RUN = Run("fp32", "onnxruntime", {"decode": 1.23456, "queue": 0.1, "inference": 22.2, "total": 23.5})

# INTROSPECTION.md's example, in its order; what is ours beyond it stands at the end of its object.
KEYS = {
    "": "model image target predictions gates blocks checks timing_ms null_reasons",
    "model": "name version variant precision engine",
    "image": "width height model_box input",
    "target": "index label mode probability logit",
    "block": "name stage index shortcut shape stride receptive_field rms std_residual ratio cosine "
    "cosine_centered energy share relu contribution lens lesion maps",
    "receptive_field": "center0 size",
    "rms": "residual shortcut output",
    "energy": "residual shortcut cross",
    "share": "residual shortcut",
    "relu": "clip_fraction clip_energy erased written",
    "map": "shape dtype vmin vmax levels null data",
    "checks": "sum_parity_max_abs completeness_abs_err energy_sum_err map_scalar_err",
}


def options(case: Measured, **given: Any) -> Options:
    return resolve(IntrospectQuery(**given), case.manifest)


def ask(case: Measured, **given: Any) -> dict[str, Any]:
    document = answer(case.quantities, case.manifest, options(case, **given), seen(), RUN)
    parsed: dict[str, Any] = json.loads(to_json(document))
    return parsed


@pytest.fixture(scope="module")
def case() -> Measured:
    return random_blocks(SHAPES)


def test_the_keys_are_the_contracts_in_its_order(case: Measured) -> None:
    document = ask(case)
    block = document["blocks"][1]
    objects = {"": document, "block": block, "map": block["maps"]["residual"]}
    objects |= {name: document[name] for name in ("model", "image", "target", "checks")}
    objects |= {name: block[name] for name in ("receptive_field", "rms", "energy", "share", "relu")}
    assert {name: " ".join(value) for name, value in objects.items()} == KEYS
    assert tuple(block["maps"]) == MAP_QUANTITIES
    assert [block[name] for name in ("contribution", "lens", "lesion")] == [None] * 3
    nulls = ("contribution", "lens", "lesion", "checks.completeness_abs_err")
    assert document["null_reasons"] == dict.fromkeys(nulls, "not computed by this version")
    Introspection.model_validate(document)


def test_the_header_says_what_was_asked_and_seen(case: Measured) -> None:
    document = ask(case, target="n00000004", top_k=3, gates="stage2:0.25")
    assert document["model"] == {
        "name": "made-up-resnet50",
        "version": "74b6dc776567",
        "variant": "v1",
        "precision": "fp32",
        "engine": "onnxruntime",
    }
    assert document["image"] == {"width": 50, "height": 40, "model_box": [5, 0, 45, 40], "input": [32, 32]}
    best = np.argsort(-case.logits_K)[:3].tolist()
    assert [prediction["index"] for prediction in document["predictions"]] == best
    target = document["target"]
    assert (target["index"], target["label"], target["mode"]) == (4, "class 4", "label")
    assert target["logit"] == pytest.approx(case.logits_K[4], rel=1e-5)
    assert ask(case)["target"]["index"] == best[0]
    assert document["gates"] == [1, 1, 0.25, 1]
    assert document["checks"]["sum_parity_max_abs"] == 3.5e-6
    assert document["timing_ms"] == {"decode": 1.235, "queue": 0.1, "inference": 22.2, "total": 23.5}


def test_what_was_not_asked_for_is_absent(case: Measured) -> None:
    document = ask(case, blocks="stage2", quantities="ratio,residual,relu")
    [block] = document["blocks"]
    assert block["name"] == "stage2.0"
    assert list(block) == [*KEYS["block"].split()[:7], "ratio", "relu", "maps"]
    assert list(block["maps"]) == ["residual", "ratio"]
    Introspection.model_validate(document)
    assert ask(case, maps="none")["blocks"][0]["maps"] == {}


def test_v2_says_null_for_relu() -> None:
    document = ask(random_blocks(SHAPES, variant="v2"))
    assert [block["relu"] for block in document["blocks"]] == [None] * len(SHAPES)
    Introspection.model_validate(document)


def test_dead_blocks_make_sound_json() -> None:
    s = np.random.default_rng(0).random((8, 4, 4)).astype(np.float32)
    zeros = np.zeros_like(s)
    document = ask(measured([zeros, zeros], [s, zeros]))
    dead, empty = document["blocks"]
    assert (dead["ratio"], dead["cosine"], dead["energy"]["residual"]) == (0, None, 0)
    assert (empty["ratio"], empty["energy"]) == (None, {"residual": None, "shortcut": None, "cross": None})
    assert np.isnan(decode_map(dead["maps"]["cosine"])).all()
    assert (decode_map(dead["maps"]["residual"]) == 0).all()
    assert decode_map(empty["maps"]["share"]) == pytest.approx(0.5, abs=1 / 510)
    Introspection.model_validate(document)


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for member in value.values():
            yield from numbers(member)
    elif isinstance(value, list):
        for member in value:
            yield from numbers(member)
    elif isinstance(value, float):
        yield value


def test_numbers_are_short(case: Measured) -> None:
    document = ask(case, maps="none")
    for number in numbers(document["blocks"]):
        assert float(f"{number:.5g}") == number


def test_size_of_resnet50() -> None:
    """All scalars of 16 blocks are under 8 kB; names, shapes and nulls around them make it under 10."""
    manifest = resnet50_manifest()
    random = np.random.default_rng(0)
    maps = random.random((4, sum(block.shape[1] * block.shape[2] for block in manifest.blocks)))
    scalars = random.random((16, len(SCALARS)))
    quantities = measure(
        manifest,
        random.standard_normal(1000).astype(np.float32),
        scalars.astype(np.float32),
        maps.astype(np.float32),
    )
    resolved = resolve(IntrospectQuery(maps="none"), manifest)
    document = answer(quantities, manifest, resolved, seen(), RUN)
    assert len(to_json(document)) < 10_000
    scalars_alone = [
        {name: block[name] for name in KEYS["block"].split()[7:15]} for block in document["blocks"]
    ]
    assert len(to_json({"blocks": scalars_alone})) < 8_000


@pytest.mark.parametrize("encoding", ["u8", "f16", "f32"])
@pytest.mark.parametrize("scale", ["image", "stage"])
def test_maps_come_back(case: Measured, encoding: str, scale: str) -> None:
    document = ask(case, maps=encoding, scale=scale)
    quantities = case.quantities
    for index, block in enumerate(document["blocks"]):
        for quantity in MAP_QUANTITIES:
            entry = block["maps"][quantity]
            values = quantities.maps[quantity][quantities.slices[index]].reshape(entry["shape"])
            step = (entry["vmax"] - entry["vmin"]) / 255
            tolerance = {"u8": 0.502 * step, "f16": 5e-4 * (np.abs(values) + 1e-3), "f32": 1e-6}[encoding]
            assert entry["dtype"] == encoding
            assert np.all(np.abs(decode_map(entry) - values) <= tolerance), quantity


def test_scales_are_raw_declared_and_shared(case: Measured) -> None:
    """One vmax an image or a stage, whichever blocks were asked for; never a block's own."""
    everything = ask(case)["blocks"]
    for quantity in ("residual", "shortcut", "output"):
        [vmax] = {block["maps"][quantity]["vmax"] for block in everything}
        assert vmax == pytest.approx(case.quantities.maps[quantity].max(), rel=1e-5)
        assert vmax >= case.quantities.maps[quantity].max()
        assert ask(case, blocks="stage3")["blocks"][0]["maps"][quantity]["vmax"] == vmax
        [vmin] = {block["maps"][quantity]["vmin"] for block in everything}
        assert vmin == 0
    for quantity, limits in (("share", (0, 1)), ("ratio", (-4, 4)), ("cosine", (-1, 1))):
        assert {(b["maps"][quantity]["vmin"], b["maps"][quantity]["vmax"]) for b in everything} == {limits}
    by_stage = [block["maps"]["residual"]["vmax"] for block in ask(case, scale="stage")["blocks"]]
    assert by_stage[0] == by_stage[1]
    assert len(set(by_stage)) == 3
    second = case.quantities.maps["residual"][case.quantities.slices[2]].max()
    assert by_stage[2] == pytest.approx(second, rel=1e-5)
    assert map_range(case.quantities, case.manifest, "residual", 2) == (0, by_stage[2])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(MAP_QUANTITIES),
    arrays.arrays(np.float64, (3, 4), elements=st.floats(0, 1)),
    st.floats(0.01, 1e6),
    st.booleans(),
)
def test_u8_is_right_to_half_a_step(quantity: MapQuantity, unit: Any, extent: float, with_null: bool) -> None:
    vmin, vmax = (-extent, extent) if quantity in ("ratio", "cosine") else (0.0, extent)
    values = vmin + unit * (vmax - vmin)
    if with_null and quantity in NULLABLE:
        values[1, 2] = np.nan
    entry = encode_map(values, quantity, vmin, vmax, "u8")
    decoded = decode_map(entry)
    assert np.array_equal(np.isnan(decoded), np.isnan(values))
    half = (vmax - vmin) / entry["levels"] / 2
    assert np.nanmax(np.abs(decoded - values), initial=0) <= half * (1 + 1e-9)


def test_codes_of_u8() -> None:
    values = np.array([[-1.0, 0.0], [1.0, np.nan]])
    entry = encode_map(values, "cosine", -1.0, 1.0, "u8")
    assert decode_codes(entry).tolist() == [[0, 127], [254, 255]]
    assert (entry["levels"], entry["null"]) == (254, 255)
    entry = encode_map(np.array([[0.0, 1.0]]), "share", 0.0, 1.0, "u8")
    assert decode_codes(entry).tolist() == [[0, 255]]
    assert (entry["levels"], entry["null"]) == (255, None)


def test_what_float16_cannot_hold_is_sent_as_float32() -> None:
    entry = encode_map(np.array([[1e5]]), "residual", 0.0, 1e5, "f16")
    assert entry["dtype"] == "f32"
    assert decode_map(entry).tolist() == [[1e5]]


def test_npz_holds_the_same_answer(case: Measured) -> None:
    resolved = options(case, blocks="stage1.1,stage3", gates="stage2:0.5")
    data = to_npz(case.quantities, case.manifest, resolved, seen(), RUN)
    with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
        arrays = dict(loaded)
    metadata = json.loads(str(arrays["metadata"]))
    expected = ask(case, blocks="stage1.1,stage3", gates="stage2:0.5", maps="f32")
    for block in expected["blocks"]:
        for quantity, entry in block["maps"].items():
            loaded_map = arrays[f"maps/{block['name']}/{quantity}"]
            assert loaded_map.dtype == np.float32
            assert np.array_equal(loaded_map, decode_codes(entry), equal_nan=True)
            del entry["data"]
    assert metadata == expected
    Introspection.model_validate(metadata)
    assert np.array_equal(arrays["logits"], case.logits_K)
    assert arrays["gates"].tolist() == [1, 1, 0.5, 1]
    assert arrays["gate_names"].tolist() == ["stage1.0", "stage1.1", "stage2.0", "stage3.0"]
    assert arrays["block_names"].tolist() == ["stage1.1", "stage3.0"]
    energies = [arrays[f"scalars/energy.{part}"] for part in ("residual", "shortcut", "cross")]
    assert sum(energies) == pytest.approx([1, 1])


def test_npz_without_maps_and_with_codes(case: Measured) -> None:
    for encoding, dtype in (("none", None), ("u8", np.uint8), ("f16", np.float16)):
        resolved = options(case, maps=encoding, quantities="share")
        data = to_npz(case.quantities, case.manifest, resolved, seen(), RUN)
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            dtypes = {loaded[name].dtype for name in loaded if name.startswith("maps/")}
        assert dtypes == ({np.dtype(dtype)} if dtype else set())
