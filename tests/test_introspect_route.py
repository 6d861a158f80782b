"""POST /introspect on the real server over real HTTP, and how Accept is read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.manifest import Manifest, read_manifest
from service.errors import InvalidParameter
from service.introspection import MAP_QUANTITIES, NotFiniteError
from service.introspection_answer import decode_map
from service.introspection_query import IntrospectQuery, resolve
from service.introspection_schemas import Introspection
from service.routes.introspect import JSON, NPZ, PNG, NotAcceptable, measured, negotiate
from tests.images import encode, photograph
from tests.live import LiveServer, live_server
from tests.measured import random_blocks


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(device="cpu", threads=1, max_batch_size=2) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def manifest(embedded: Path) -> Manifest:
    return read_manifest(embedded)


PHOTOGRAPH = encode(photograph(120, 80, seed=4), "JPEG")


def ask(client: httpx.Client, accept: str = "*/*", **params: Any) -> httpx.Response:
    answer = client.post("/introspect", content=PHOTOGRAPH, params=params, headers={"accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["code"] == code
    return document


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_json(client: httpx.Client, manifest: Manifest, method: str) -> None:
    answer = client.request(method, "/introspect", content=PHOTOGRAPH)
    assert answer.headers["content-type"] == JSON
    assert answer.headers["vary"] == "Accept"
    document = answer.json()
    Introspection.model_validate(document)
    assert [block["name"] for block in document["blocks"]] == [block.name for block in manifest.blocks]
    assert document["model"]["name"] == manifest.name
    assert (document["image"]["width"], document["image"]["height"]) == (120, 80)
    assert list(document["timing_ms"]) == ["decode", "queue", "inference", "total"]
    assert document["checks"]["energy_sum_err"] < 1e-4
    assert document["checks"]["map_scalar_err"] < 1e-4
    assert document["checks"]["sum_parity_max_abs"] < 1e-4


def test_logits_agree_with_classify(client: httpx.Client, manifest: Manifest) -> None:
    params = {"top_k": manifest.num_classes}
    classified = client.post("/classify", content=PHOTOGRAPH, params=params).json()["results"][0]
    introspected = ask(client, maps="none", **params).json()
    ours, theirs = (
        {prediction["index"]: prediction["logit"] for prediction in answer["predictions"]}
        for answer in (introspected, classified)
    )
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_form_with_one_image(client: httpx.Client) -> None:
    files = [("image", ("a.jpg", PHOTOGRAPH, "image/jpeg"))]
    answer = client.post("/introspect", files=files, params={"maps": "none"})
    assert answer.status_code == 200
    problem(client.post("/introspect", files=files * 2), 422, "too_many_images")


def test_png(client: httpx.Client) -> None:
    answer = ask(client, PNG, quantities="share,cosine", render="raw", alpha=0.7)
    assert answer.headers["content-type"] == PNG
    with Image.open(io.BytesIO(answer.content), formats=["PNG"]) as image:
        assert image.width > 1000


def test_npz_and_json_are_one_answer(client: httpx.Client) -> None:
    answer = ask(client, NPZ, blocks="stage1")
    assert answer.headers["content-type"] == NPZ
    document = ask(client, blocks="stage1", maps="f32").json()
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
        metadata = json.loads(str(arrays["metadata"]))
        assert metadata["predictions"] == document["predictions"]
        for block in document["blocks"]:
            for quantity in MAP_QUANTITIES:
                array = arrays[f"maps/{block['name']}/{quantity}"]
                np.testing.assert_allclose(array, decode_map(block["maps"][quantity]), rtol=1e-6)


def test_a_gate_of_zero_removes_the_branch(client: httpx.Client, manifest: Manifest) -> None:
    name = manifest.blocks[1].name
    whole, without = (ask(client, gates=gates).json() for gates in ("", f"{name}:0"))
    block = without["blocks"][1]
    assert (block["ratio"], block["cosine"], block["rms"]["residual"]) == (0, None, 0)
    assert (decode_map(block["maps"]["share"]) == 0).all()
    assert without["gates"][1] == 0
    scalars = ("rms", "std_residual", "ratio", "cosine", "energy", "share", "relu")
    assert [without["blocks"][0][name] for name in scalars] == [whole["blocks"][0][name] for name in scalars]
    assert without["predictions"] != whole["predictions"]


def test_options_reach_the_answer(client: httpx.Client, manifest: Manifest) -> None:
    label = manifest.labels[7].label.upper()
    document = ask(
        client,
        model=manifest.name,
        target=label,
        blocks="stage2",
        quantities="ratio",
        maps="f16",
        scale="stage",
        top_k=2,
        timeout_ms=30_000,
    ).json()
    assert (document["target"]["index"], document["target"]["mode"]) == (7, "label")
    assert len(document["predictions"]) == 2
    assert {block["stage"] for block in document["blocks"]} == {2}
    assert list(document["blocks"][0]["maps"]) == ["ratio"]
    assert document["blocks"][0]["maps"]["ratio"]["dtype"] == "f16"


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("blocks", "stage9.9"),
        ("quantities", "beauty"),
        ("quantities", "lesion"),
        ("gates", "0,0"),
        ("gates", "stage1.0:nan"),
        ("target", "unicorn"),
        ("top_k", "0"),
        ("top_k", "100000"),
        ("maps", "u16"),
        ("scale", "reference"),
        ("render", "3d"),
        ("colormap", "rainbow"),
        ("alpha", "2"),
        ("lesion", "true"),
        ("timeout_ms", "soon"),
        ("quality", "best"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(client: httpx.Client, parameter: str, value: str) -> None:
    answer = client.post("/introspect", content=PHOTOGRAPH, params={parameter: value})
    document = problem(answer, 422, "invalid_parameter")
    assert document["parameter"] == parameter
    assert len(document["detail"]) > 10


def test_a_picture_needs_a_map(client: httpx.Client) -> None:
    answer = client.post(
        "/introspect", content=PHOTOGRAPH, params={"quantities": "relu"}, headers={"accept": PNG}
    )
    assert problem(answer, 422, "invalid_parameter")["parameter"] == "quantities"


def test_what_cannot_be_offered(client: httpx.Client) -> None:
    answer = client.post("/introspect", content=PHOTOGRAPH, headers={"accept": "application/zip"})
    assert problem(answer, 406, "not_acceptable")["offered"] == [JSON, NPZ, PNG]


@pytest.mark.parametrize(
    ("content", "params", "status", "code"),
    [
        (b"", {}, 422, "empty_body"),
        (b"no image at all", {}, 422, "unsupported_image"),
        (PHOTOGRAPH[:300], {}, 422, "truncated_image"),
        (PHOTOGRAPH, {"model": "unknown"}, 404, "unknown_model"),
    ],
)
def test_bad_requests(
    client: httpx.Client, content: bytes, params: dict[str, str], status: int, code: str
) -> None:
    problem(client.post("/introspect", content=content, params=params), status, code)


def test_wrong_method(client: httpx.Client) -> None:
    problem(client.get("/introspect"), 405, "method_not_allowed")


def test_the_documentation_names_every_form_and_parameter(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/introspect"]["post"]
    assert set(operation["responses"]["200"]["content"]) == {JSON, NPZ, PNG}
    documented = {parameter["name"] for parameter in operation["parameters"]}
    assert documented == set(IntrospectQuery.model_fields)
    assert all("description" in parameter for parameter in operation["parameters"])


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ([], JSON),
        ([""], JSON),
        (["*/*"], JSON),
        (["application/*"], JSON),
        (["image/*"], PNG),
        (["image/png"], PNG),
        (["IMAGE/PNG; q=0.9"], PNG),
        (["application/x-npz"], NPZ),
        (["application/json, image/png"], JSON),
        (["*/*, image/png"], PNG),
        (["application/json;q=0.5, image/png;q=0.8, */*;q=0.1"], PNG),
        (["application/json;q=0, */*"], NPZ),
        (["text/html", "image/webp,*/*;q=0.8"], JSON),
        (["image/png;q=high"], PNG),
    ],
)
def test_accept(accept: Sequence[str], chosen: str) -> None:
    assert negotiate(accept) == chosen


@pytest.mark.parametrize("accept", ["application/zip", "text/*", "image/png;q=0", "*/*;q=0", "png"])
def test_nothing_that_is_accepted_is_offered(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        negotiate([accept])


def test_gates_that_blow_up_are_the_clients_mistake() -> None:
    case = random_blocks([(8, 4, 4)])
    outputs = {"logits": case.logits_K * np.inf, "scalars": case.scalars_LS, "maps": case.maps_MP}
    with pytest.raises(InvalidParameter, match="range of numbers"):
        measured(case.manifest, resolve(IntrospectQuery(gates="4"), case.manifest), outputs)
    with pytest.raises(NotFiniteError):
        measured(case.manifest, resolve(IntrospectQuery(), case.manifest), outputs)
