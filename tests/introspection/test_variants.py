"""Small exported nets of every variant, through the engine: what exists is right, the rest gives a reason."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from artifact.errors import ParameterError
from artifact.manifest import Manifest, Variant
from artifact.preprocess import preprocess
from export.pipeline import export_artifact
from introspection.document import NO_REFERENCE, NOT_ASKED, answer, to_json
from introspection.encoding import decode_map
from introspection.forms import to_npz
from introspection.measure import Values
from introspection.pictures.sheet import contact_sheet
from introspection.quantities import (
    GROUPS,
    MAPS,
    NO_RELU,
    NO_SHORTCUT,
    NOT_DIRECT,
    NOT_LINEAR,
    OUTPUTS,
    lacking,
    why_absent,
)
from introspection.question import IntrospectQuery, resolve
from introspection.schemas import Introspection
from introspection.seen import Run, Seen
from introspection.steps import finish
from models.blocks import BlockTaps
from models.resnet import ResNet, build
from residuum.cli.main import main
from service.runtime.introspect import introspect
from service.runtime.loading import load_model
from service.settings import Settings
from tests.introspection.test_measure import reference_maps, reference_scalars
from tests.support.images import encode, photograph
from tests.support.live import live_server
from tests.support.networks import liven, network_of

PHOTOGRAPH = encode(photograph(60, 44, seed=7), "PNG")
RUN = Run("fp32", "onnxruntime", {"inference": 1.0})
NETWORKS: dict[str, tuple[str, tuple[int, ...], Variant]] = {
    "plain": ("plain20", (1, 1, 1), "plain"),
    "highway": ("highway20", (1, 1, 1), "highway"),
    "pre-activation": ("resnetv2_164", (1, 1, 1), "v2"),
    "dense": ("densenet_bc100_k12", (1, 1, 1), "v2"),
}
NO_REFERENCE_REASONS = {"reference": NO_REFERENCE, "outside_band": NO_REFERENCE}
NOT_ASKED_REASONS = dict.fromkeys(("decomposition", "checks.completeness_abs_err"), NOT_ASKED)
SUMS = ("contribution", "decomposition", "checks.completeness_abs_err")
RELU_REASONS = {"relu": NO_RELU}
PLAIN_REASONS = dict.fromkeys(
    [
        *("rms.shortcut", "ratio", "cosine", "cosine_centered", "energy", "share"),
        *("relu.erased", "relu.written", "shortcut"),
    ],
    NO_SHORTCUT,
)
REASONS: dict[Variant, dict[str, str]] = {
    "v2": RELU_REASONS,
    "highway": RELU_REASONS | dict.fromkeys(SUMS, NOT_LINEAR),
    "plain": PLAIN_REASONS | dict.fromkeys(SUMS, NOT_DIRECT),
}
PLAIN_MAPS = ("residual", "output")


@dataclass(frozen=True)
class Case:
    """An artifact, its network, and what its graphs measured of PHOTOGRAPH with one branch halved."""

    artifact: Path
    variant: Variant
    network: ResNet
    manifest: Manifest
    seen: Seen
    gates: str

    @property
    def values(self) -> Values:
        return self.seen.values

    def ask(self, **given: Any) -> dict[str, Any]:
        options = resolve(IntrospectQuery(gates=self.gates, **given), self.manifest)
        document = answer(self.seen, options)
        Introspection.model_validate(document)
        parsed: dict[str, Any] = json.loads(to_json(document))
        return parsed

    def sheet(self, **given: Any) -> NDArray[np.uint8]:
        options = resolve(IntrospectQuery(gates=self.gates, **given), self.manifest)
        data = finish(contact_sheet(self.seen, options))
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            return np.asarray(picture)


def run(name: str, out: Path) -> Case:
    """Export a row of NETWORKS and introspect PHOTOGRAPH with it, as the server does."""
    row, depths, variant = NETWORKS[name]
    network = liven(build(row, seed=2, depths=depths))
    export_artifact(network_of(network), name, out)
    with closing(
        load_model(out, Settings(engine="onnxruntime", device="cpu", threads=1, max_batch_size=1))
    ) as model:
        gates = f"{model.manifest.blocks[1].name}:0.5"
        image = preprocess(PHOTOGRAPH, model.manifest.preprocessing, keep_original=True)
        options = resolve(IntrospectQuery(gates=gates, lesion=True), model.manifest)
        seen = introspect(model, image, options)
        return Case(out, variant, network, model.manifest, replace(seen, run=RUN), gates)


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """A row of NETWORKS, exported the first time that it is asked for."""
    folder = tmp_path_factory.mktemp("variants")
    return cache(lambda name: run(name, folder / name))


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest, case_of: Callable[[str], Case]) -> Case:
    return case_of(request.param)


@pytest.fixture
def plain(case_of: Callable[[str], Case]) -> Case:
    return case_of("plain")


def taps_in_float64(case: Case) -> list[BlockTaps]:
    """Every block's parts from the unfused network."""
    spec = case.manifest.preprocessing
    pixels = (case.seen.image.pixels / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    gates = resolve(IntrospectQuery(gates=case.gates), case.manifest).gates_L
    network = liven(case.network).double()
    with torch.no_grad():
        _, taps = network.forward_taps(
            torch.from_numpy(pixels).permute(2, 0, 1)[None], torch.from_numpy(gates).double()[None]
        )
    network.float()
    return list(taps.values())


def references(tap: BlockTaps, variant: Variant) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """One block's scalars and maps that exist for the variant."""
    F, y = tap.residual[0].numpy(), tap.output[0].numpy()
    if tap.shortcut is not None:
        s = tap.shortcut[0].numpy()
        return reference_scalars(F, s, variant), reference_maps(F, s, variant)
    scalars = {
        "rms.residual": np.sqrt((F * F).mean()),
        "rms.output": np.sqrt((y * y).mean()),
        "std_residual": F.std(),
        "relu.clip_fraction": (F <= 0).mean(),
        "relu.clip_energy": (np.minimum(F, 0) ** 2).sum() / (F * F).sum(),
    }
    maps = {"residual": np.sqrt((F * F).mean(0)), "output": np.sqrt((y * y).mean(0))}
    return {name: float(value) for name, value in scalars.items()}, maps


def test_every_quantity_is_right_or_null(case: Case) -> None:
    """Against the unfused network in float64."""
    assert case.manifest.variant == case.variant
    quantities = case.values
    for index, tap in enumerate(taps_in_float64(case)):
        scalars, maps = references(tap, case.variant)
        for name, values in quantities.scalars.items():
            if name.partition(".")[0] in ("contribution", "lens", "lesion"):
                continue
            if name in scalars:
                tolerance = 2e-3 if name.startswith("relu.") else 5e-5
                assert values[index] == pytest.approx(scalars[name], rel=1e-4, abs=tolerance), (name, index)
            else:
                assert np.isnan(values[index]), (name, index)
        for quantity in set(MAPS) - {"contribution"}:
            ours = quantities.maps[quantity][quantities.slices[index]]
            if quantity in maps:
                truth = maps[quantity].reshape(-1)
                known = np.isfinite(ours)
                assert known.all() or quantity == "cosine"
                np.testing.assert_allclose(ours[known], truth[known], rtol=1e-4, atol=1e-4, err_msg=quantity)
            else:
                assert np.isnan(ours).all(), (quantity, index)
    assert quantities.energy_sum_err < 1e-5
    assert quantities.map_scalar_err < 1e-5


def test_what_the_logit_is_made_of(case: Case) -> None:
    """Contributions sum to it where they exist; without them the artifact still has lens and lesions."""
    quantities = case.values
    parts = quantities.decomposition
    assert (parts is None) == (case.variant in ("plain", "highway"))
    if parts is not None:
        assert parts.sum == pytest.approx(parts.logit, abs=1e-4)
        assert parts.logit == quantities.logits_K.max()
        assert np.abs(quantities.scalars["contribution"]).min() > 1e-3
    assert quantities.scalars["lens.target_logit"][-1] == pytest.approx(quantities.logits_K.max(), abs=1e-5)
    assert np.isfinite(quantities.scalars["lesion.kl"]).all()
    document = case.ask(lesion=True, quantities="lens,lesion")
    assert all(block["lesion"] for block in document["blocks"])
    assert document["blocks"][-1]["lens"]["index"] == document["predictions"][0]["index"]


def test_a_lesion_is_the_network_without_the_block(case: Case) -> None:
    """Against the unfused network in float64; the halved branch stays halved elsewhere."""
    lesions, spec = case.values.lesions, case.manifest.preprocessing
    assert lesions is not None
    pixels = (case.seen.image.pixels / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    gates_RL = np.tile(resolve(IntrospectQuery(gates=case.gates), case.manifest).gates_L, (4, 1))
    gates_RL[[1, 2, 3], [0, 1, 2]] = 0
    network = liven(case.network).double()
    with torch.no_grad():
        x = torch.from_numpy(pixels).permute(2, 0, 1).expand(4, -1, -1, -1)
        expected, _ = network.forward_taps(x, torch.from_numpy(gates_RL).double())
    network.float()
    np.testing.assert_allclose(lesions.logits[:4], expected.numpy(), rtol=1e-4, atol=1e-4)
    assert np.abs(lesions.logits[1:4] - lesions.logits[0]).max(1).min() > 1e-2


def test_json_says_why_each_null_is_null(case: Case) -> None:
    document = case.ask()
    expected = REASONS[case.variant] | NO_REFERENCE_REASONS | {"lesion": GROUPS["lesion"].reminder}
    assert document["null_reasons"] == expected
    for block in document["blocks"]:
        assert tuple(block["maps"]) == tuple(MAPS)
        nulls = {
            name
            for name in ("ratio", "cosine", "cosine_centered", "energy", "share", "contribution")
            if block[name] is None
        }
        nulls |= {name for name, entry in block["maps"].items() if entry is None}
        for group in ("rms", "relu"):
            members = block[group]
            nulls |= {group} if members is None else {f"{group}.{m}" for m, v in members.items() if v is None}
        assert nulls == REASONS[case.variant].keys() - set(SUMS[1:])
    assert (document["decomposition"] is None) == ("decomposition" in expected)


def test_npz_has_nan_where_json_has_null(case: Case) -> None:
    options = resolve(IntrospectQuery(maps="u8"), case.manifest)
    data = to_npz(case.seen, options)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        metadata = json.loads(str(arrays["metadata"]))
        for block in case.manifest.blocks:
            for quantity in tuple(MAPS):
                array = arrays[f"maps/{block.name}/{quantity}"]
                assert array.shape == block.shape[1:]
                assert np.isnan(array).all() == (quantity in lacking(case.variant))
        assert np.isnan(arrays["scalars/share.residual"]).all() == (case.variant == "plain")
        assert np.isnan(arrays["scalars/relu.erased"]).all()
        assert np.isnan(arrays["scalars/contribution"]).all() == (case.variant in ("plain", "highway"))
    Introspection.model_validate(metadata)


def test_a_picture_can_be_had(case: Case) -> None:
    default = "residual" if case.variant == "plain" else "share"
    picture = case.sheet()
    assert np.array_equal(picture, case.sheet(quantities=default))
    existing = [quantity for quantity in tuple(MAPS) if not why_absent(quantity, case.manifest)]
    assert len(case.sheet(quantities=",".join(existing), scale="stage", render="raw")) > len(picture)
    assert case.variant in OUTPUTS


def test_a_map_that_does_not_exist_cannot_be_drawn(plain: Case) -> None:
    for quantity in set(MAPS) - set(PLAIN_MAPS):
        why = why_absent(quantity, plain.manifest)
        with pytest.raises(ParameterError, match=f"no {quantity} to draw: {why}") as caught:
            plain.sheet(quantities=f"residual,{quantity}")
        assert (caught.value.parameter, caught.value.hint) == ("quantities", "Maps: residual, output.")


def test_reasons_only_for_what_was_asked(plain: Case) -> None:
    always = NOT_ASKED_REASONS | NO_REFERENCE_REASONS
    assert plain.ask(quantities="std_residual,output")["null_reasons"] == always
    document = plain.ask(quantities="share,relu,shortcut", maps="none")
    names = {"share", "relu.erased", "relu.written"}
    assert document["null_reasons"] == dict.fromkeys(names, NO_SHORTCUT) | always
    named = plain.ask(quantities="shortcut,residual")
    assert named["null_reasons"] == {"shortcut": NO_SHORTCUT} | always
    assert named["blocks"][0]["maps"]["shortcut"] is None
    values = decode_map(named["blocks"][0]["maps"]["residual"])
    assert values.max() > 0
    sums = plain.ask(quantities="contribution")["null_reasons"]
    assert sums == dict.fromkeys(SUMS, NOT_DIRECT) | NO_REFERENCE_REASONS


def test_the_route_and_the_command_line(
    plain: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        live_server(device="cpu", threads=1, max_batch_size=1, model=plain.artifact) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        document = client.post("/introspect", content=PHOTOGRAPH).json()
        Introspection.model_validate(document)
        assert document["null_reasons"]["share"] == NO_SHORTCUT
        png = {"accept": "image/png"}
        assert client.post("/introspect", content=PHOTOGRAPH, headers=png).status_code == 200
        params = {"quantities": "share"}
        refused = client.post("/introspect", content=PHOTOGRAPH, headers=png, params=params)
        problem = refused.json()
        assert (refused.status_code, problem["code"]) == (422, "invalid_parameter")
        assert (problem["parameter"], problem["hint"]) == ("quantities", "Maps: residual, output.")

    image = tmp_path / "image.png"
    image.write_bytes(PHOTOGRAPH)
    command = ["introspect", str(image), "--model", str(plain.artifact), "--device", "cpu"]
    assert main([*command, "-o", str(tmp_path / "out.png")]) == 0
    assert "stage1.0" in capsys.readouterr().out
    assert main([*command, "-o", str(tmp_path / "out.png"), "--quantities", "share"]) == 2
    assert NO_SHORTCUT in capsys.readouterr().err
