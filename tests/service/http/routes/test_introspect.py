"""POST /introspect on the real server over real HTTP, and how Accept is read."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
import threading
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from artifact.errors import NotFiniteError, ParameterError
from artifact.manifest import Manifest, read_manifest
from artifact.preprocess import Row
from introspection import forms
from introspection.encoding import decode_codes, decode_map
from introspection.pictures import sheet
from introspection.quantities import MAPS
from introspection.question import IntrospectQuery, resolve
from introspection.schemas import Introspection
from introspection.steps import Steps
from service.batching.types import Run, Runner
from service.errors import NotAcceptable
from service.http.negotiation import negotiate
from service.http.routes import introspect as introspecting
from service.http.routes.introspect import measured
from service.http.schemas import IntrospectParameters
from service.runtime.drawing import DrawingPool
from tests.service.runtime.test_monitor import Running, running
from tests.support.images import encode, photograph
from tests.support.live import LiveServer, live_server
from tests.support.measured import random_blocks

JSON, NPZ, PNG, ZIP = "application/json", "application/x-npz", "image/png", "application/zip"


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[LiveServer]:
    """Its queues hold fewer rows than the lesions of all blocks are."""
    small = {"max_batch_size": 2, "queue_capacity": 4, "max_images": 4}
    with live_server(device="cpu", threads=1, model=artifact, **small) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def manifest(artifact: Path) -> Manifest:
    return read_manifest(artifact)


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
    assert document["checks"]["completeness_abs_err"] < 1e-4


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
            for quantity in tuple(MAPS):
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


def test_a_lesion_is_a_gate_of_zero(client: httpx.Client, manifest: Manifest) -> None:
    whole = ask(client, maps="none", lesion=True, target=3).json()
    assert len(whole["blocks"]) == len(manifest.blocks) > 4
    for block in (whole["blocks"][0], whole["blocks"][-1]):
        gated = ask(client, maps="none", quantities="rms", target=3, gates=f"{block['name']}:0").json()
        lesion, best = block["lesion"], gated["predictions"][0]
        assert (lesion["index"], lesion["label"]) == (best["index"], best["label"])
        assert lesion["flipped"] == (best["index"] != whole["predictions"][0]["index"])
        for name in ("logit", "probability"):
            expected = gated["target"][name] - whole["target"][name]
            assert lesion[f"target_delta_{name}"] == pytest.approx(expected, abs=1e-4)


def test_gates_stay_while_blocks_are_removed(client: httpx.Client) -> None:
    gates = "stage1.1:0.5"
    arrays = np.load(
        io.BytesIO(ask(client, NPZ, blocks="stage2.0", quantities="lesion", gates=gates).content)
    )
    with arrays:
        whole, without = arrays["lesion_logits"]
        np.testing.assert_allclose(whole, arrays["logits"], atol=1e-5)
    both = ask(client, NPZ, quantities="rms", gates=f"{gates},stage2.0:0").content
    with np.load(io.BytesIO(both)) as gated:
        np.testing.assert_allclose(without, gated["logits"], atol=1e-5)


def test_the_logit_is_a_sum(client: httpx.Client) -> None:
    for target in ("top1", "3"):
        document = ask(client, target=target, quantities="contribution").json()
        parts = document["decomposition"]
        assert parts["logit"] == document["target"]["logit"]
        assert parts["sum"] == pytest.approx(parts["logit"], abs=1e-4)
        maps = [block["maps"]["contribution"] for block in document["blocks"]]
        assert sum(block["contribution"] for block in document["blocks"]) == pytest.approx(parts["blocks"])
        assert {(entry["vmin"], entry["levels"]) for entry in maps} == {(-maps[0]["vmax"], 254)}
        largest = max(np.abs(decode_codes(entry).astype(int) - 127).max() for entry in maps)
        assert largest == 127


@pytest.mark.parametrize(
    ("params", "runs"),
    [
        ({}, {"attribute": 1}),
        ({"quantities": "lens"}, {"attribute": 1}),
        ({"quantities": "ratio,share"}, {"introspect": 1}),
        ({"quantities": "rms", "blocks": "stage1", "lesion": True}, {"introspect": 1 + 4}),
        (
            {"quantities": "contribution", "blocks": "stage3.2", "lesion": True},
            {"attribute": 1, "introspect": 2},
        ),
    ],
)
def test_only_what_is_asked_for_runs(
    client: httpx.Client, params: dict[str, str], runs: dict[str, int]
) -> None:
    before = images_run(client)
    ask(client, maps="none", **params)
    after = images_run(client)
    ran = {graph: after[graph] - before[graph] for graph in after if after[graph] > before[graph]}
    assert ran == runs


def test_a_sheet_needs_no_contributions(client: httpx.Client) -> None:
    before = images_run(client)
    ask(client, PNG, lesion=True)
    after = images_run(client)
    assert after["introspect"] - before["introspect"] == 1
    assert after["attribute"] == before["attribute"]


def images_run(client: httpx.Client) -> dict[str, float]:
    """Images that each graph has run."""
    found = re.findall(r'residuum_batch_size_sum\{graph="(\w+)".*\} (.*)', client.get("/metrics").text)
    return {graph: float(number) for graph, number in found}


def test_zip(client: httpx.Client) -> None:
    asked = {"blocks": "stage3", "quantities": "contribution,ratio"}
    answer = ask(client, ZIP, **asked)
    assert answer.headers["content-type"] == ZIP
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            "introspection.json",
            "introspection.npz",
            "sheet.png",
            *(f"blocks/stage3.{index}.png" for index in range(3)),
        ]
        document = json.loads(archive.read("introspection.json"))
        pictures = {name: archive.read(name) for name in archive.namelist() if name.endswith(".png")}
        with np.load(io.BytesIO(archive.read("introspection.npz")), allow_pickle=False) as arrays:
            assert arrays["maps/stage3.0/contribution"].shape == (8, 8)
    for block in document["blocks"]:
        for entry in block["maps"].values():
            assert entry.pop("data", None) is None
            entry["data"] = ""
    Introspection.model_validate(document)
    assert pictures["sheet.png"] == ask(client, PNG, **asked).content
    one = ask(client, PNG, **asked | {"blocks": "stage3.1"}).content
    assert pictures["blocks/stage3.1.png"] == one
    assert len(set(pictures.values())) == 4


def notes_of(server: Running, ms: float | None = None) -> list[str]:
    """The kinds of graphs that run from now on; of batches that seem to take so long."""
    ran: list[str] = []

    def noted(kind: str, run: Run, inputs: Row) -> dict[str, NDArray[Any]]:
        ran.append(kind)
        return run(inputs)

    for kind, graph in server.serving.models.get(None).graphs.items():
        [*_, runner] = graph.batcher._runners.all
        batch_ms = runner.batch_ms if ms is None else dict.fromkeys(runner.batch_ms, ms)
        graph.batcher.resume([Runner(partial(noted, kind, runner.run), batch_ms)])
    return ran


def test_lesions_that_cannot_be_done_in_time_are_refused_before_anything_runs(artifact: Path) -> None:
    async def test() -> None:
        async with running(artifact) as server:
            ran = notes_of(server, ms=20_000)
            lesions = await server.client.post("/introspect", content=PHOTOGRAPH, params={"lesion": True})
            problem(lesions, 503, "deadline")
            assert ran == []
            plain = await server.client.post("/introspect", content=PHOTOGRAPH)
            assert plain.status_code == 200
            assert ran == ["attribute"]

    asyncio.run(test())


def test_pictures_of_too_many_blocks_are_refused_before_anything_runs(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "MAX_PICTURES", 8)
    monkeypatch.setattr(sheet, "MAX_TILES", 17)

    async def test() -> None:
        async with running(artifact) as server:
            ran = notes_of(server)
            for accept, quantities in ((ZIP, "share"), (PNG, "share,ratio")):
                for blocks, status in (("", 422), ("stage1", 200)):
                    answer = await server.client.post(
                        "/introspect",
                        content=PHOTOGRAPH,
                        params={"quantities": quantities, "blocks": blocks},
                        headers={"accept": accept},
                    )
                    assert answer.status_code == status
                    if status == 422:
                        document = problem(answer, 422, "invalid_parameter")
                        assert "blocks=" in document["hint"]
                        assert ran == []
                assert ran == ["introspect"]
                ran.clear()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("form", "params", "others", "positions", "on_the_loop"),
    [
        (JSON, {}, 0, 10_000, True),
        (JSON, {"quantities": "rms", "maps": "none"}, 0, 10_000, True),
        (JSON, {}, 1, 10_000, False),
        (JSON, {}, 0, 100, False),
        (JSON, {"lesion": True}, 0, 10_000, False),
        (NPZ, {}, 0, 10_000, False),
    ],
)
def test_the_loop_writes_a_short_answer_that_nobody_else_waits_for(
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    params: dict[str, Any],
    others: int,
    positions: int,
    on_the_loop: bool,
) -> None:
    monkeypatch.setattr(introspecting, "SHORT_POSITIONS", positions)
    wrote: list[threading.Thread] = []
    written = forms.answer

    def answer(*arguments: Any) -> dict[str, Any]:
        wrote.append(threading.current_thread())
        return written(*arguments)

    monkeypatch.setattr(forms, "answer", answer)

    async def test() -> None:
        async with running(artifact) as server:
            server.app.state.accepted.num_requests += others
            answered = await server.client.post(
                "/introspect", content=PHOTOGRAPH, params=params, headers={"accept": form}
            )
            assert answered.status_code == 200, answered.text

    asyncio.run(test())
    assert [thread is threading.current_thread() for thread in wrote] == [on_the_loop]


def test_while_pictures_are_drawn_numbers_are_answered(artifact: Path) -> None:
    """And so many pictures wait, and no more."""
    started, let_go = threading.Event(), threading.Event()

    def draw() -> Steps[bytes]:
        yield
        started.set()
        assert let_go.wait(60)
        return b""

    async def drawn(pool: DrawingPool) -> bytes:
        with pool.place():
            return await pool.draw(draw(), math.inf)

    async def test() -> None:
        async with running(artifact) as server:
            server.serving.drawings.close()
            server.serving.drawings = DrawingPool(1, 0)
            other = asyncio.create_task(drawn(server.serving.drawings))
            await server.until(started.is_set)
            statuses = {}
            for accept in (PNG, ZIP, JSON, NPZ):
                answer = await server.client.post(
                    "/introspect", content=PHOTOGRAPH, headers={"accept": accept}
                )
                statuses[accept] = answer.status_code
                if answer.status_code == 503:
                    assert problem(answer, 503, "overloaded")
                    assert int(answer.headers["retry-after"]) >= 1
            let_go.set()
            assert statuses == {PNG: 503, ZIP: 503, JSON: 200, NPZ: 200}
            await other

    asyncio.run(test())


def nothing() -> Steps[bytes]:
    yield
    return b""


def test_a_drawing_ends_with_its_request(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client leaves while the first tile is drawn, and no other one is."""
    drawn: list[int] = []
    gone = threading.Event()

    def tile(*arguments: Any) -> Image.Image:
        drawn.append(arguments[3])
        assert gone.wait(60)
        return Image.new("RGB", (10, 10))

    monkeypatch.setattr(sheet, "_tile", tile)

    async def test() -> None:
        async with running(artifact) as server:
            request = asyncio.create_task(
                server.client.post("/introspect", content=PHOTOGRAPH, headers={"accept": PNG})
            )
            await server.until(lambda: bool(drawn))
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            gone.set()
            assert await server.serving.drawings.draw(nothing(), math.inf) == b""

    asyncio.run(test())
    assert drawn == [0]


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
        ("lesion", "perhaps"),
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
    answer = client.post("/introspect", content=PHOTOGRAPH, headers={"accept": "text/html"})
    assert problem(answer, 406, "not_acceptable")["offered"] == [JSON, NPZ, PNG, ZIP]


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
    assert set(operation["responses"]["200"]["content"]) == {JSON, NPZ, PNG, ZIP}
    documented = {parameter["name"] for parameter in operation["parameters"]}
    assert documented == set(IntrospectParameters.model_fields)
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
        (["application/zip"], ZIP),
        (["application/json, image/png"], JSON),
        (["*/*, image/png"], PNG),
        (["application/json;q=0.5, image/png;q=0.8, */*;q=0.1"], PNG),
        (["application/json;q=0, */*"], NPZ),
        (["text/html", "image/webp,*/*;q=0.8"], JSON),
        (["image/png;q=high"], PNG),
    ],
)
def test_accept(accept: Sequence[str], chosen: str) -> None:
    assert negotiate(accept).media_type == chosen


@pytest.mark.parametrize("accept", ["application/x-zip", "text/*", "image/png;q=0", "*/*;q=0", "png"])
def test_nothing_that_is_accepted_is_offered(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        negotiate([accept])


def test_gates_that_blow_up_are_the_clients_mistake() -> None:
    case = random_blocks([(8, 4, 4)])
    outputs = case.outputs | {"logits": case.logits_K * np.inf}
    with pytest.raises(ParameterError, match="range of numbers"):
        measured(case.manifest, resolve(IntrospectQuery(gates="4"), case.manifest), outputs)
    with pytest.raises(NotFiniteError):
        measured(case.manifest, resolve(IntrospectQuery(), case.manifest), outputs)
