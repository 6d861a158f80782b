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

from artifact.manifest import CONSTANTS, SCALARS, Manifest, lens_blocks
from introspection.digits import json_number, json_numbers
from introspection.document import (
    NO_LENS,
    NO_REFERENCE,
    NOT_ASKED,
    answer,
    predictions_with_target,
    to_json,
)
from introspection.encoding import decode_codes, decode_map, encode_maps
from introspection.forms import to_npz
from introspection.measure import Values, measure
from introspection.quantities import GROUPS, MAPS, NOT_EXPORTED
from introspection.question import IntrospectQuery, Question, resolve
from introspection.readings import LesionLogits
from introspection.scales import map_range
from introspection.schemas import Introspection
from tests.support.measured import (
    Measured,
    encoded,
    made_reference,
    measured,
    random_blocks,
    resnet50_manifest,
    seen,
)

SHAPES = [(8, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2)]

KEYS = {
    "": "model image target predictions gates blocks decomposition checks reference timing_ms null_reasons",
    "model": "name version variant precision engine",
    "image": "width height model_box input",
    "target": "index label mode probability logit",
    "block": "name stage index shortcut shape stride receptive_field rms std_residual ratio cosine "
    "cosine_centered energy share relu contribution lens lesion outside_band maps",
    "receptive_field": "center0 size",
    "rms": "residual shortcut output",
    "energy": "residual shortcut cross",
    "share": "residual shortcut",
    "relu": "clip_fraction clip_energy erased written",
    "lens": "index label probability target_probability target_logit",
    "lesion": "delta_logit delta_probability kl flipped index label target_delta_logit "
    "target_delta_probability",
    "decomposition": "stem shortcut_biases head_bias blocks sum logit",
    "reference": "dataset num_images num_lesion_images percentiles",
    "map": "shape dtype vmin vmax levels null data",
    "checks": "sum_parity_max_abs completeness_abs_err energy_sum_err map_scalar_err",
}


def options(case: Measured, **given: Any) -> Question:
    return resolve(IntrospectQuery(**given), case.manifest)


def ask(case: Measured, **given: Any) -> dict[str, Any]:
    return document_of(case.values, case.manifest, **given)


def document_of(quantities: Values, manifest: Manifest, /, **given: Any) -> dict[str, Any]:
    document = answer(seen(quantities, manifest), resolve(IntrospectQuery(**given), manifest))
    Introspection.model_validate(document)
    parsed: dict[str, Any] = json.loads(to_json(document))
    return parsed


def with_lesions(case: Measured, *blocks: int, target: int | None = None) -> Values:
    """Each of them removed, and logits made up for it."""
    logits = np.random.default_rng(9).standard_normal((len(blocks) + 1, 12)).astype(np.float32)
    logits[0] = case.logits_K
    return measure(case.manifest, case.outputs, target=target, lesions=LesionLogits(blocks, logits))


@pytest.fixture(scope="module")
def case() -> Measured:
    return random_blocks(SHAPES)


def test_the_keys_are_the_contracts_in_its_order(case: Measured) -> None:
    known = case.manifest.model_copy(update={"reference": made_reference(case.manifest)})
    document = document_of(with_lesions(case, 0, 1, 2, 3), known, lesion=True)
    block = document["blocks"][3]
    objects = {"": document, "block": block, "map": block["maps"]["residual"]}
    of_document = ("model", "image", "target", "checks", "decomposition", "reference")
    objects |= {name: document[name] for name in of_document}
    of_block = ("receptive_field", "rms", "energy", "share", "relu", "lens", "lesion")
    objects |= {name: block[name] for name in of_block}
    assert {name: " ".join(value) for name, value in objects.items()} == KEYS
    assert tuple(block["maps"]) == tuple(MAPS)
    assert document["null_reasons"] == {}


def test_what_must_be_asked_for_says_so(case: Measured) -> None:
    document = ask(case)
    assert list(document["blocks"][0]) == KEYS["block"].split()
    assert [block["lesion"] for block in document["blocks"]] == [None] * 4
    no_reference = {"reference": NO_REFERENCE, "outside_band": NO_REFERENCE}
    assert document["null_reasons"] == {"lesion": GROUPS["lesion"].reminder} | no_reference
    assert (document["reference"], document["blocks"][0]["outside_band"]) == (None, None)

    document = ask(case, quantities="ratio,lens")
    not_asked = {"decomposition": NOT_ASKED, "checks.completeness_abs_err": NOT_ASKED}
    assert document["null_reasons"] == not_asked | no_reference
    assert (document["decomposition"], document["checks"]["completeness_abs_err"]) == (None, None)


def test_contributions_sum_to_the_logit(case: Measured) -> None:
    document = ask(case, maps="f32")
    parts = document["decomposition"]
    assert parts["logit"] == document["target"]["logit"]
    assert sum(parts[name] for name in CONSTANTS) + parts["blocks"] == pytest.approx(parts["sum"], rel=1e-6)
    assert document["checks"]["completeness_abs_err"] == pytest.approx(
        abs(parts["sum"] - parts["logit"]), abs=2e-7
    )
    contributions = [block["contribution"] for block in document["blocks"]]
    assert sum(contributions) == pytest.approx(parts["blocks"], rel=1e-6)
    for block, contribution in zip(document["blocks"], contributions, strict=True):
        assert decode_map(block["maps"]["contribution"]).sum() == pytest.approx(contribution, rel=1e-5)


def test_the_lens_is_where_the_head_fits(case: Measured) -> None:
    quantities = measure(case.manifest, case.outputs, target=2)
    document = document_of(quantities, case.manifest, target="2")
    *others, last = document["blocks"]
    assert [block["lens"] for block in others] == [None] * 3
    best = document["predictions"][0]  # the last block's lens is the network's own answer
    assert last["lens"]["probability"] == best["probability"]
    assert (last["lens"]["index"], last["lens"]["label"]) == (best["index"], best["label"])
    for name in ("probability", "logit"):
        assert last["lens"][f"target_{name}"] == document["target"][name]


def test_lesions_are_told_of_the_blocks_asked_for(case: Measured) -> None:
    document = document_of(with_lesions(case, 1, 3), case.manifest, blocks="stage1.1,stage3", lesion=True)
    assert "lesion" not in document["null_reasons"]
    whole = int(case.logits_K.argmax())
    assert len(document["blocks"]) == 2
    for block in document["blocks"]:
        lesion = block["lesion"]
        assert lesion["flipped"] == (lesion["index"] != whole)
        assert lesion["label"] == f"class {lesion['index']}"
        assert lesion["target_delta_logit"] == lesion["delta_logit"]  # the target is the best one
        assert lesion["kl"] > 0
    other = document_of(
        with_lesions(case, 1, target=3), case.manifest, blocks="stage1.1", lesion=True, target="3"
    )
    [lesion] = [block["lesion"] for block in other["blocks"]]
    assert lesion["delta_logit"] == document["blocks"][0]["lesion"]["delta_logit"]
    assert lesion["target_delta_logit"] != lesion["delta_logit"]


def test_a_lens_that_no_chosen_block_has_is_null_with_the_reason(case: Measured) -> None:
    assert "lens" not in ask(case, blocks="stage2,stage3")["null_reasons"]
    document = ask(case, blocks="stage1,stage2", quantities="lens")
    assert [block["lens"] for block in document["blocks"]] == [None] * 3
    assert document["null_reasons"]["lens"] == NO_LENS
    assert "lens" not in ask(case, blocks="stage1", quantities="ratio")["null_reasons"]


def test_a_picture_lists_the_target_whatever_its_rank(case: Measured) -> None:
    ranks = np.argsort(-case.logits_K).tolist()
    for target, expected in ((ranks[2], ranks[:3]), (ranks[-1], [*ranks[:2], ranks[-1]])):
        quantities = measure(case.manifest, case.outputs, target=target)
        rows = predictions_with_target(seen(quantities, case.manifest), top_k=5, most=3)
        assert [row["index"] for row in rows] == expected
    assert rows[-1]["label"] == f"class {ranks[-1]}"
    assert rows[-1]["logit"] == pytest.approx(case.logits_K.min())
    alone = predictions_with_target(seen(quantities, case.manifest), top_k=1, most=3)
    assert [row["index"] for row in alone] == [ranks[0], ranks[-1]]


def test_a_lesion_that_blew_up_is_null(case: Measured) -> None:
    logits = np.stack([case.logits_K, case.logits_K * np.inf, case.logits_K / 2])
    quantities = measure(case.manifest, case.outputs, lesions=LesionLogits((0, 1), logits))
    document = document_of(quantities, case.manifest, blocks="stage1", quantities="lesion")
    assert document["blocks"][0]["lesion"] is None
    assert document["blocks"][1]["lesion"]["flipped"] is False


def test_what_an_old_artifact_lacks_is_null_with_the_reason(case: Measured) -> None:
    graphs = tuple(graph for graph in case.manifest.graphs if graph.kind != "attribute")
    old = case.manifest.model_copy(update={"graphs": graphs})
    quantities = measure(old, case.introspected)
    document = document_of(quantities, old)
    for name in ("contribution", "lens", "decomposition", "checks.completeness_abs_err"):
        assert document["null_reasons"][name] == NOT_EXPORTED
    for block in document["blocks"]:
        assert (block["contribution"], block["lens"], block["maps"]["contribution"]) == (None, None, None)
    data = to_npz(seen(quantities, old), resolve(IntrospectQuery(maps="u8"), old))
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        assert np.isnan(arrays["scalars/contribution"]).all()
        assert np.isnan(arrays["scalars/lens.probability"]).all()
        assert np.isnan(arrays["maps/stage1.0/contribution"]).all()
        assert "lens_logits" not in arrays


def test_what_is_outside_of_the_band(case: Measured) -> None:
    ratio = case.values.scalars["ratio"][0]
    bands = {
        "ratio": (ratio - 2e-9, ratio - 1e-9, ratio - 1e-9),
        "rms.residual": (1e6, 2e6, 3e6),
        "share.residual": (-1e6, 0.0, 1e6),
        "contribution": (1e6, 2e6, 3e6),
        "lens.target_logit": (1e6, 2e6, 3e6),
        "lens.probability": (2.0, 2.0, 2.0),
    }
    reference = made_reference(case.manifest, bands)
    known = case.manifest.model_copy(update={"reference": reference})
    document = document_of(case.values, known)
    assert document["reference"] == {
        "dataset": "made up",
        "num_images": 100,
        "num_lesion_images": 10,
        "percentiles": [5, 50, 95],
    }
    first, last = document["blocks"][0]["outside_band"], document["blocks"][3]["outside_band"]
    assert first == {"rms.residual": "below", "ratio": "above", "contribution": "below"}
    assert last.items() >= {"lens.probability": "below", "lens.target_logit": "below"}.items()
    # Only of what was asked for; and the reference knows contributions to the best class only.
    document = document_of(case.values, known, quantities="share,rms")
    assert document["blocks"][0]["outside_band"] == {"rms.residual": "below"}
    worst = int(case.logits_K.argmin())
    other = measure(known, case.outputs, target=worst)
    document = document_of(other, known, target=str(worst), quantities="lens,contribution")
    assert document["blocks"][0]["outside_band"] == {}
    assert document["blocks"][3]["outside_band"] == {"lens.probability": "below"}
    unknown = made_reference(known).model_copy(update={"scalars": {"ratio": (None,) * 4}})
    none_known = case.manifest.model_copy(update={"reference": unknown})
    assert document_of(case.values, none_known)["blocks"][0]["outside_band"] == {}


def test_the_header_says_what_was_asked_and_seen(case: Measured) -> None:
    quantities = measure(case.manifest, case.outputs, target=4)
    document = document_of(quantities, case.manifest, target="n00000004", top_k=3, gates="stage2:0.25")
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
    assert list(block) == [*KEYS["block"].split()[:7], "ratio", "relu", "outside_band", "maps"]
    assert list(block["maps"]) == ["residual", "ratio"]
    assert ask(case, maps="none")["blocks"][0]["maps"] == {}


def test_v2_says_null_for_relu() -> None:
    document = ask(random_blocks(SHAPES, variant="v2"))
    assert [block["relu"] for block in document["blocks"]] == [None] * len(SHAPES)


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
    document = document_of(with_lesions(case, 0, 1, 2, 3), case.manifest, maps="none", lesion=True)
    of_logits = [(block.pop("contribution"), block.pop("lens")) for block in document["blocks"]]
    for number in numbers(document["blocks"]):
        assert float(f"{number:.5g}") == number
    assert all(float(f"{number:.8g}") == number for number in numbers(of_logits))


def test_size_of_resnet50() -> None:
    """All scalars of 16 blocks are under 8 kB; names, shapes and nulls around them make it under 11."""
    manifest = resnet50_manifest()
    random = np.random.default_rng(0)
    num_positions = sum(block.shape[1] * block.shape[2] for block in manifest.blocks)
    shapes = {
        "logits": 1000,
        "scalars": (16, len(SCALARS)),
        "maps": (4, num_positions),
        "lens": (len(lens_blocks(manifest.blocks)), 1000),
        "contributions": num_positions,
        "constants": len(CONSTANTS),
    }
    quantities = measure(manifest, {name: random.random(shape) for name, shape in shapes.items()})
    document = document_of(quantities, manifest, maps="none")
    assert len(to_json(document)) < 11_000
    scalars_alone = [
        {name: value for name, value in block.items() if name in GROUPS} for block in document["blocks"]
    ]
    assert len(to_json({"blocks": scalars_alone})) < 8_000


@pytest.mark.parametrize("encoding", ["u8", "f16", "f32"])
@pytest.mark.parametrize("scale", ["image", "stage"])
def test_maps_come_back(case: Measured, encoding: str, scale: str) -> None:
    document = ask(case, maps=encoding, scale=scale)
    quantities = case.values
    for index, block in enumerate(document["blocks"]):
        for quantity in tuple(MAPS):
            entry = block["maps"][quantity]
            values = quantities.maps[quantity][quantities.slices[index]].reshape(entry["shape"])
            step = (entry["vmax"] - entry["vmin"]) / (entry["levels"] or 255)
            tolerance = {"u8": 0.502 * step, "f16": 5e-4 * (np.abs(values) + 1e-3), "f32": 1e-6}[encoding]
            assert entry["dtype"] == encoding
            assert np.all(np.abs(decode_map(entry) - values) <= tolerance), quantity


def test_scales_are_raw_declared_and_shared(case: Measured) -> None:
    """One vmax an image or a stage, whichever blocks were asked for; never a block's own."""
    everything = ask(case)["blocks"]
    for quantity in ("residual", "shortcut", "output"):
        [vmax] = {block["maps"][quantity]["vmax"] for block in everything}
        assert vmax == pytest.approx(case.values.maps[quantity].max(), rel=1e-5)
        assert vmax >= case.values.maps[quantity].max()
        assert ask(case, blocks="stage3")["blocks"][0]["maps"][quantity]["vmax"] == vmax
        [vmin] = {block["maps"][quantity]["vmin"] for block in everything}
        assert vmin == 0
    for quantity, limits in (("share", (0, 1)), ("ratio", (-4, 4)), ("cosine", (-1, 1))):
        assert {(b["maps"][quantity]["vmin"], b["maps"][quantity]["vmax"]) for b in everything} == {limits}
    by_stage = [block["maps"]["residual"]["vmax"] for block in ask(case, scale="stage")["blocks"]]
    assert by_stage[0] == by_stage[1]
    assert len(set(by_stage)) == 3
    second = case.values.maps["residual"][case.values.slices[2]].max()
    assert by_stage[2] == pytest.approx(second, rel=1e-5)
    assert map_range(seen(case.values, case.manifest), "residual", "stage", 2) == (0, by_stage[2])


def test_contribution_is_scaled_around_zero(case: Measured) -> None:
    values, slices = np.abs(case.values.maps["contribution"]), case.values.slices
    peaks = [values[part].max() for part in slices]
    of_stages = [max(peaks[:2]), max(peaks[:2]), *peaks[2:]]
    for scale, expected in (("image", [values.max()] * 4), ("stage", of_stages)):
        entries = [block["maps"]["contribution"] for block in ask(case, scale=scale)["blocks"]]
        assert [entry["vmax"] for entry in entries] == pytest.approx(expected, rel=1e-5)
        assert all(entry["vmin"] == -entry["vmax"] for entry in entries)


def test_a_reference_scale_is_the_same_for_every_image(case: Measured) -> None:
    peaks = {"residual": 0.5, "shortcut": 7.25, "output": 100.0, "contribution": 0.125}
    reference = made_reference(case.manifest, maps=peaks)
    known = case.manifest.model_copy(update={"reference": reference})
    block = document_of(case.values, known, scale="reference")["blocks"][0]
    ranges = {quantity: (entry["vmin"], entry["vmax"]) for quantity, entry in block["maps"].items()}
    assert ranges == {
        "residual": (0, 0.5),
        "shortcut": (0, 7.25),
        "output": (0, 100),
        "share": (0, 1),
        "ratio": (-4, 4),
        "cosine": (-1, 1),
        "contribution": (-0.125, 0.125),
    }
    cut = decode_map(block["maps"]["residual"])
    exact = case.values.maps["residual"][case.values.slices[0]].reshape(cut.shape)
    assert exact.max() > 0.5  # what is beyond the scale is cut to it
    np.testing.assert_allclose(cut, np.minimum(exact, 0.5), atol=0.5 / 255)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(tuple(MAPS)),
    arrays.arrays(np.float64, (3, 4), elements=st.floats(0, 1)),
    st.floats(0.01, 1e6),
    st.booleans(),
)
def test_u8_is_right_to_half_a_step(quantity: str, unit: Any, extent: float, with_null: bool) -> None:
    signed = quantity in ("ratio", "cosine", "contribution")
    vmin, vmax = (-extent, extent) if signed else (0.0, extent)
    values = vmin + unit * (vmax - vmin)
    if with_null and MAPS[quantity].nullable:
        values[1, 2] = np.nan
    entry = encoded(values, quantity, vmin, vmax, "u8")
    decoded = decode_map(entry)
    assert np.array_equal(np.isnan(decoded), np.isnan(values))
    half = (vmax - vmin) / entry["levels"] / 2
    assert np.nanmax(np.abs(decoded - values), initial=0) <= half * (1 + 1e-9)


def test_codes_of_u8() -> None:
    values = np.array([[-1.0, 0.0], [1.0, np.nan]])
    entry = encoded(values, "cosine", -1.0, 1.0, "u8")
    assert decode_codes(entry).tolist() == [[0, 127], [254, 255]]
    assert (entry["levels"], entry["null"]) == (254, 255)
    entry = encoded(np.array([[-2.0, 0.0, 2.0, 9.0]]), "contribution", -2.0, 2.0, "u8")
    assert decode_codes(entry).tolist() == [[0, 127, 254, 254]]
    assert (entry["levels"], entry["null"]) == (254, None)
    flat = encoded(np.zeros((1, 1)), "contribution", 0.0, 0.0, "u8")
    assert (decode_codes(flat).tolist(), decode_map(flat).tolist()) == ([[127]], [[0]])
    entry = encoded(np.array([[0.0, 1.0]]), "share", 0.0, 1.0, "u8")
    assert decode_codes(entry).tolist() == [[0, 255]]
    assert (entry["levels"], entry["null"]) == (255, None)


def test_what_float16_cannot_hold_is_sent_as_float32() -> None:
    entry = encoded(np.array([[1e5]]), "residual", 0.0, 1e5, "f16")
    assert entry["dtype"] == "f32"
    assert decode_map(entry).tolist() == [[1e5]]


@pytest.mark.parametrize("encoding", ["u8", "f16", "f32"])
def test_several_blocks_are_encoded_as_each_by_itself(encoding: Any) -> None:
    shapes, random = [(3, 5), (1, 1), (4, 2)], np.random.default_rng(2)
    parts = {name: [random.normal(0, 0.5, shape) for shape in shapes] for name in ("residual", "cosine")}
    parts["cosine"][0][1, 2] = np.nan
    parts["residual"][1][:] = 1e5  # beyond float16, in one block alone
    bounds = {"residual": (0.0, 1e5), "cosine": (-1.0, 1.0)}
    whole = {name: np.concatenate([part.reshape(-1) for part in blocks]) for name, blocks in parts.items()}
    for index, block in enumerate(encode_maps(whole, bounds, shapes, encoding)):
        assert block == {
            name: encoded(parts[name][index], name, *bounds[name], encoding)
            for name in ("residual", "cosine")
        }


@pytest.mark.parametrize("scale", ["image", "stage"])
def test_blocks_that_are_not_neighbours_keep_their_maps(case: Measured, scale: Any) -> None:
    every = {block["name"]: block for block in ask(case, scale=scale)["blocks"]}
    some = ask(case, scale=scale, blocks="stage1.0,stage3")["blocks"]
    assert [block["name"] for block in some] == ["stage1.0", "stage3.0"]
    assert some == [every[block["name"]] for block in some]


def test_a_column_of_numbers_is_rounded_as_each() -> None:
    values = np.array([0.1234567, 3.0, -0.0, np.nan, np.inf, 1e20, 123456.7, 5e-324])
    assert json_numbers(values, 5) == [json_number(value, 5) for value in values]
    assert json_numbers(values, 5)[:6] == [0.12346, 3, 0, None, None, 1e20]


def test_npz_holds_the_same_answer(case: Measured) -> None:
    resolved = options(case, blocks="stage1.1,stage3", gates="stage2:0.5")
    data = to_npz(seen(case.values, case.manifest), resolved)
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
    assert arrays["scalars/contribution"].tolist() == [
        case.values.scalars["contribution"][index] for index in (1, 3)
    ]
    assert arrays["lens_blocks"].tolist() == ["stage3.0"]
    assert np.array_equal(arrays["lens_logits"], case.outputs["lens"])
    assert np.isnan(arrays["scalars/lens.probability"]).tolist() == [True, False]
    assert "lesion_logits" not in arrays


def test_npz_has_the_logits_without_each_block(case: Measured) -> None:
    quantities = with_lesions(case, 1, 3)
    resolved = options(case, blocks="stage1.1,stage3", quantities="lesion")
    with np.load(io.BytesIO(to_npz(seen(quantities, case.manifest), resolved))) as arrays:
        assert quantities.lesions is not None
        assert np.array_equal(arrays["lesion_logits"], quantities.lesions.logits)
        assert np.array_equal(arrays["lesion_logits"][0], arrays["logits"])
        assert arrays["scalars/lesion.kl"].tolist() == quantities.scalars["lesion.kl"][[1, 3]].tolist()
        assert "lens_logits" not in arrays


def test_npz_without_maps_and_with_codes(case: Measured) -> None:
    for encoding, dtype in (("none", None), ("u8", np.uint8), ("f16", np.float16)):
        resolved = options(case, maps=encoding, quantities="share")
        data = to_npz(seen(case.values, case.manifest), resolved)
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            dtypes = {loaded[name].dtype for name in loaded if name.startswith("maps/")}
        assert dtypes == ({np.dtype(dtype)} if dtype else set())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_has_not_is_an_error(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"label": "NaN", "numbers": [1.0, number]})


def test_a_label_may_look_like_such_a_number() -> None:
    assert to_json({"label": "Infinity, NaN"}) == b'{"label":"Infinity, NaN"}'
