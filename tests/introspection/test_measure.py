"""Every quantity against float64 on the very tensors, and what happens where a quantity does not exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from artifact.errors import NotFiniteError
from artifact.manifest import SCALARS, Variant, lens_blocks, read_manifest
from artifact.postprocess import softmax
from introspection.mean_squares import COSINE_ERROR_LIMIT
from introspection.measure import Values, measure
from introspection.quantities import MAPS
from introspection.readings import LesionLogits
from models.resnet import build
from tests.support.measured import Measured, measured, random_blocks
from tests.support.networks import liven

Float64 = NDArray[np.float64]

SHAPES = [(64, 8, 6), (64, 8, 6), (300, 4, 3), (512, 2, 2)]


def reference_scalars(F: Float64, s: Float64, variant: Variant) -> dict[str, float]:
    """One block's scalars from its tensors [C, H, W], as docs/introspection.md defines them."""
    u = s + F
    y = np.maximum(u, 0) if variant == "v1" else u
    centred_F = F - F.mean((1, 2), keepdims=True)
    centred_s = s - s.mean((1, 2), keepdims=True)
    energy = (u * u).sum()
    scalars = {
        "rms.residual": np.sqrt((F * F).mean()),
        "rms.shortcut": np.sqrt((s * s).mean()),
        "rms.output": np.sqrt((y * y).mean()),
        "std_residual": F.std(),
        "ratio": np.linalg.norm(F) / np.linalg.norm(s),
        "cosine": (F * s).sum() / (np.linalg.norm(F) * np.linalg.norm(s)),
        "cosine_centered": (centred_F * centred_s).sum()
        / (np.linalg.norm(centred_F) * np.linalg.norm(centred_s)),
        "energy.residual": (F * F).sum() / energy,
        "energy.shortcut": (s * s).sum() / energy,
        "energy.cross": 2 * (F * s).sum() / energy,
        "share.residual": (F * u).sum() / energy,
        "share.shortcut": (s * u).sum() / energy,
    }
    relu = {
        "relu.clip_fraction": (u <= 0).mean(),
        "relu.clip_energy": (np.minimum(u, 0) ** 2).sum() / energy,
        "relu.erased": ((s > 0) & (u <= 0)).mean(),
        "relu.written": ((s <= 0) & (u > 0)).mean(),
    }
    return {name: float(value) for name, value in (scalars | (relu if variant == "v1" else {})).items()}


def reference_maps(F: Float64, s: Float64, variant: Variant) -> dict[str, Float64]:
    """One block's maps [H, W] from its tensors [C, H, W]."""
    u = s + F
    y = np.maximum(u, 0) if variant == "v1" else u
    rms_F, rms_s, rms_y = (np.sqrt((part * part).mean(0)) for part in (F, s, y))
    epsilon = 1e-6 * np.sqrt((u * u).mean())
    return {
        "residual": rms_F,
        "shortcut": rms_s,
        "output": rms_y,
        "share": rms_F**2 / (rms_F**2 + rms_s**2),
        "ratio": np.clip(np.log2((rms_F + epsilon) / (rms_s + epsilon)), -4, 4),
        "cosine": (F * s).mean(0) / (rms_F * rms_s),
    }


def tensors(case: Measured, index: int) -> tuple[Float64, Float64]:
    return case.residuals[index].astype(np.float64), case.shortcuts[index].astype(np.float64)


def block_maps(case: Measured, quantities: Values, index: int) -> dict[str, Float64]:
    shape = case.manifest.blocks[index].shape[1:]
    return {
        name: quantities.maps[name][quantities.slices[index]].reshape(shape)
        for name in tuple(MAPS)
        if name != "contribution"
    }


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("seed", range(3))
def test_scalars_are_those_of_the_tensors(variant: Variant, seed: int) -> None:
    case = random_blocks(SHAPES, seed, variant)
    scalars = case.values.scalars
    for index in range(len(SHAPES)):
        for name, expected in reference_scalars(*tensors(case, index), variant).items():
            # With four positions, little is left of a variance when the channels' means are taken off.
            tolerance = 2e-5 if name == "cosine_centered" else 2e-6
            assert scalars[name][index] == pytest.approx(expected, rel=2e-6, abs=tolerance), (name, index)


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("seed", range(3))
def test_maps_are_those_of_the_tensors(variant: Variant, seed: int) -> None:
    case = random_blocks(SHAPES, seed, variant)
    quantities = case.values
    for index in range(len(SHAPES)):
        ours = block_maps(case, quantities, index)
        for name, expected in reference_maps(*tensors(case, index), variant).items():
            np.testing.assert_allclose(ours[name], expected, rtol=2e-6, atol=1e-5, err_msg=f"{name} {index}")


@pytest.mark.parametrize("strength", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-7])
def test_a_branch_that_is_tiny_beside_the_shortcut(strength: float) -> None:
    """|u|^2 - |F|^2 - |s|^2 cancels; what is left is within the stated bound, or null."""
    random = np.random.default_rng(1)
    shape = (256, 14, 14)
    s = random.random(shape).astype(np.float32)
    F = (strength * (random.standard_normal(shape) + 0.5 * s)).astype(np.float32)
    # The network adds in float32, so that is the sum which the reference must split.
    F = (s + F) - s if strength < 1e-3 else F
    case = measured([F], [s])
    quantities = case.values
    expected = reference_scalars(*tensors(case, 0), "v1")
    assert quantities.scalars["ratio"][0] == pytest.approx(expected["ratio"], rel=1e-6)
    assert quantities.scalars["energy.residual"][0] == pytest.approx(expected["energy.residual"], rel=1e-6)
    maps = block_maps(case, quantities, 0)
    truth = reference_maps(*tensors(case, 0), "v1")
    np.testing.assert_allclose(maps["share"], truth["share"], rtol=1e-5)
    np.testing.assert_allclose(maps["ratio"], truth["ratio"], atol=1e-5)
    known = np.isfinite(maps["cosine"])
    bound = 2**-24 * np.sqrt(shape[0]) / expected["ratio"]
    assert known.all() if bound < COSINE_ERROR_LIMIT else not known.any()
    np.testing.assert_allclose(maps["cosine"][known], truth["cosine"][known], atol=2 * bound)
    if known.all():
        tolerance = 4e-7 / expected["ratio"]
        assert quantities.scalars["cosine"][0] == pytest.approx(expected["cosine"], abs=tolerance)
    else:
        assert np.isnan(quantities.scalars["cosine"][0])


def test_a_dead_branch() -> None:
    """F = 0, as a gate of 0 makes it: nothing is added, and no direction can be given."""
    s = np.random.default_rng(0).random((8, 4, 4)).astype(np.float32)
    quantities = measured([np.zeros_like(s)], [s]).values
    values = {name: float(array[0]) for name, array in quantities.scalars.items()}
    assert values["ratio"] == values["rms.residual"] == values["std_residual"] == 0
    assert values["energy.residual"] == 0
    assert values["energy.shortcut"] == pytest.approx(1)
    assert values["share.residual"] == pytest.approx(0, abs=1e-7)
    assert np.isnan([values["cosine"], values["cosine_centered"]]).all()
    assert (quantities.maps["share"] == 0).all()
    assert (quantities.maps["ratio"] == -4).all()
    assert np.isnan(quantities.maps["cosine"]).all()


def test_a_block_without_any_signal() -> None:
    zeros = np.zeros((8, 4, 4), np.float32)
    quantities = measured([zeros], [zeros]).values
    assert (quantities.maps["share"] == 0.5).all()
    assert (quantities.maps["ratio"] == 0).all()
    for name in ("ratio", "cosine", "cosine_centered", "energy.cross", "share.residual", "relu.clip_energy"):
        assert np.isnan(quantities.scalars[name][0]), name
    assert quantities.energy_sum_err == quantities.map_scalar_err == 0


def test_a_branch_that_undoes_the_shortcut() -> None:
    """u = 0 although F and s are not: the energies have no denominator, the cosine is -1."""
    s = np.random.default_rng(0).random((8, 4, 4)).astype(np.float32)
    quantities = measured([-s], [s]).values
    assert np.isnan(quantities.scalars["energy.residual"][0])
    assert quantities.scalars["cosine"][0] == -1
    assert quantities.maps["cosine"] == pytest.approx(-1)
    assert (quantities.maps["ratio"] == 0).all()


def test_one_position_has_no_centred_cosine() -> None:
    case = random_blocks([(64, 1, 1)])
    assert np.isnan(case.values.scalars["cosine_centered"][0])
    assert np.isfinite(case.values.scalars["cosine"][0])


def test_v2_has_no_relu_figures() -> None:
    scalars = random_blocks(SHAPES, variant="v2").values.scalars
    relu = [values for name, values in scalars.items() if name.startswith("relu.")]
    assert len(relu) == 4
    assert np.isnan(relu).all()


@settings(max_examples=40, deadline=None)
# The squares of activations smaller than these would underflow float32, in which the graph measures.
@given(st.integers(0, 2**32 - 1), st.just(0.0) | st.floats(-4, -1e-6) | st.floats(1e-6, 4), st.floats(-6, 6))
def test_sums_and_ranges_hold(seed: int, gate: float, magnitude: float) -> None:
    base = random_blocks([(16, 4, 4), (32, 2, 2)], seed)
    scale = np.float32(10**magnitude)
    residuals = [np.float32(gate) * scale * F for F in base.residuals]
    case = measured(residuals, [scale * s for s in base.shortcuts])
    quantities = case.values
    scalars, maps = quantities.scalars, quantities.maps
    energies = scalars["energy.residual"] + scalars["energy.shortcut"] + scalars["energy.cross"]
    np.testing.assert_allclose(energies, 1, atol=1e-9)
    np.testing.assert_allclose(scalars["share.residual"] + scalars["share.shortcut"], 1)
    assert np.all((maps["share"] >= 0) & (maps["share"] <= 1))
    assert np.all(np.abs(maps["ratio"]) <= 4)
    assert np.nanmax(np.abs(maps["cosine"]), initial=0) <= 1
    assert quantities.map_scalar_err < 1e-5


def test_the_checks_are_small_and_notice_what_is_wrong() -> None:
    case = random_blocks(SHAPES)
    assert case.values.energy_sum_err < 1e-5
    assert case.values.map_scalar_err < 1e-6

    wrong = case.scalars_LS.copy()
    wrong[1, SCALARS.index("sum_mean_square")] *= 1.01
    noticed = measure(case.manifest, case.introspected | {"scalars": wrong})
    assert noticed.energy_sum_err > 5e-3
    assert noticed.map_scalar_err == pytest.approx(0.01, rel=1e-2)

    shifted = np.roll(case.maps_MP, 7, axis=1)  # as if the blocks lay elsewhere along the axis
    assert measure(case.manifest, case.introspected | {"maps": shifted}).map_scalar_err > 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("output", ["logits", "maps", "lens", "contributions", "constants"])
def test_outputs_that_are_not_finite_are_refused(output: str, bad: float) -> None:
    case = random_blocks(SHAPES)
    outputs = case.outputs
    outputs[output] = outputs[output].copy()
    outputs[output].flat[2] = bad
    with pytest.raises(NotFiniteError):
        measure(case.manifest, outputs)


def test_contributions_are_summed_by_block() -> None:
    case = random_blocks(SHAPES)
    quantities, contributions_P = case.values, case.outputs["contributions"].astype(np.float64)
    assert np.array_equal(quantities.maps["contribution"], contributions_P)
    expected = [contributions_P[part].sum() for part in quantities.slices]
    assert quantities.scalars["contribution"] == pytest.approx(expected)
    parts = quantities.decomposition
    assert parts is not None
    assert (parts.shortcut_biases, parts.head_bias) == (0.75, -0.25)
    assert parts.blocks == pytest.approx(sum(expected))
    assert parts.sum == pytest.approx(parts.stem + 0.75 - 0.25 + parts.blocks)
    assert parts.logit == case.logits_K.max() == pytest.approx(parts.sum, abs=1e-5)


def test_a_target_is_what_lens_and_decomposition_are_about() -> None:
    case = random_blocks(SHAPES)
    quantities = measure(case.manifest, case.outputs, target=3)
    assert quantities.target == 3
    assert quantities.decomposition is not None
    assert quantities.decomposition.logit == case.logits_K[3]
    lens_MK = case.outputs["lens"]
    with_lens = lens_blocks(case.manifest.blocks)
    assert with_lens == [len(SHAPES) - 1]  # only there the shape is the head's
    for row, index in zip(lens_MK, with_lens, strict=True):
        assert quantities.classes["lens"][index] == row.argmax()
        assert quantities.scalars["lens.probability"][index] == pytest.approx(softmax(row).max())
        assert quantities.scalars["lens.target_probability"][index] == pytest.approx(softmax(row)[3])
        assert quantities.scalars["lens.target_logit"][index] == row[3]
    without = np.delete(np.arange(len(SHAPES)), with_lens)
    for name in ("lens.probability", "lens.target_probability", "lens.target_logit"):
        assert np.isnan(quantities.scalars[name][without]).all()
    assert (quantities.classes["lens"][without] == -1).all()


def test_what_was_not_measured_is_not_there() -> None:
    case = random_blocks(SHAPES)
    quantities = measure(case.manifest, case.introspected)
    assert not {"contribution", "lens.probability", "lesion.kl"} & quantities.scalars.keys()
    assert "contribution" not in quantities.maps
    assert (quantities.lens_MK, quantities.decomposition, quantities.lesions) == (None, None, None)
    assert quantities.classes == {}


def test_lesions_are_differences_of_logits_and_probabilities() -> None:
    case = random_blocks(SHAPES)
    logits = np.random.default_rng(2).standard_normal((4, 12)).astype(np.float32)
    quantities = measure(case.manifest, case.outputs, target=5, lesions=LesionLogits((0, 2, 3), logits))
    scalars, best = quantities.scalars, int(case.logits_K.argmax())
    assert best != logits[0].argmax(), "a graph of other rounding may prefer another class than the answer's"
    exact = logits.astype(np.float64)
    whole = softmax(exact[0])
    for row, index in enumerate((0, 2, 3), 1):
        removed = softmax(exact[row])
        expected = {
            "delta_logit": exact[row, best] - exact[0, best],
            "delta_probability": removed[best] - whole[best],
            "kl": (whole * np.log(whole / removed)).sum(),
            "target_delta_logit": exact[row, 5] - exact[0, 5],
            "target_delta_probability": removed[5] - whole[5],
        }
        ours = {name: scalars[f"lesion.{name}"][index] for name in expected}
        assert ours == pytest.approx(expected, rel=1e-9)
        assert quantities.classes["lesion"][index] == logits[row].argmax()
    assert np.isnan(scalars["lesion.kl"][1])
    assert quantities.classes["lesion"][1] == -1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_lesion_without_finite_logits_is_null_and_harms_no_other(bad: float) -> None:
    case = random_blocks(SHAPES)
    logits = np.random.default_rng(2).standard_normal((3, 12)).astype(np.float32)
    fine = measure(case.manifest, case.outputs, lesions=LesionLogits((1, 2), logits)).scalars["lesion.kl"]
    logits[1, 7] = bad
    quantities = measure(case.manifest, case.outputs, lesions=LesionLogits((1, 2), logits))
    assert np.isnan(quantities.scalars["lesion.kl"][1])
    assert quantities.scalars["lesion.kl"][2] == fine[2]
    assert quantities.classes["lesion"].tolist() == [-1, -1, logits[2].argmax(), -1]
    logits[0, 0] = bad  # nothing to compare with
    quantities = measure(case.manifest, case.outputs, lesions=LesionLogits((1, 2), logits))
    assert np.isnan(quantities.scalars["lesion.kl"]).all()


def test_the_exported_graph_against_the_network(artifact: Path) -> None:
    """Through ONNX, fused, in float32, with gates; against the unfused network in float64."""
    manifest = read_manifest(artifact)
    graph = manifest.graph("introspect")
    assert graph is not None
    images = np.asarray(Image.open(artifact / manifest.golden_image).convert("RGB"))[None]
    gates = np.ones((1, len(manifest.blocks)), np.float32)
    gates[0, [2, 5]] = 0.5, -1.5
    session = onnxruntime.InferenceSession(artifact / graph.file, providers=["CPUExecutionProvider"])
    names = ["logits", "scalars", "maps"]
    outputs = session.run(names, {"images": images, "gates": gates})
    quantities = measure(manifest, {name: rows[0] for name, rows in zip(names, outputs, strict=True)})

    spec = manifest.preprocessing
    pixels = (images / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    network = liven(build("resnet20", seed=1)).double()
    with torch.no_grad():
        _, taps = network.forward_taps(
            torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(gates).double()
        )
    for index, tap in enumerate(taps.values()):
        F, s = tap.residual[0].numpy(), tap.shortcut[0].numpy()
        for name, expected in reference_scalars(F, s, "v1").items():
            # A figure that is exactly 0 in one precision need not be in the other, for a fraction of ReLUs.
            tolerance = 2e-3 if name.startswith("relu.") else 2e-5
            assert quantities.scalars[name][index] == pytest.approx(expected, rel=1e-4, abs=tolerance), name
        for name, truth in reference_maps(F, s, "v1").items():
            ours = quantities.maps[name][quantities.slices[index]].reshape(truth.shape)
            both = np.isfinite(ours)
            np.testing.assert_allclose(ours[both], truth[both], rtol=1e-4, atol=1e-4, err_msg=name)
    assert quantities.energy_sum_err < 1e-5
    assert quantities.map_scalar_err < 1e-5
