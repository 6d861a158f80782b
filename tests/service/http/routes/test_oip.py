"""The Open Inference Protocol over real HTTP: everything that tritonclient can ask for, with both of its
clients, and what only other clients do."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import zlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from artifact.manifest import Manifest, read_manifest
from artifact.preprocess import preprocess
from engines.engine import EngineOptions
from engines.registry import open_engine
from service.http.app import create_app
from service.settings import Settings
from tests.support.images import encode, photograph
from tests.support.live import ROOT, LiveServer, live_server

SIZE = 64  # of the embedded model's images
MAX_IMAGES = 6
ADMIN = {"Authorization": "Bearer for-tests"}


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[LiveServer]:
    """The embedded model is served; the small random one lies among its artifacts."""
    with live_server(
        artifacts=artifact.parent,
        admin_key="for-tests",
        device="cpu",
        threads=1,
        max_batch_size=4,
        max_images=MAX_IMAGES,
        max_image_bytes=200_000,
        max_request_bytes=400_000,
    ) as running:
        yield running


class Awaited:
    """The asynchronous client, called like the other one."""

    def __init__(self, host: str) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._made(host))

    @staticmethod
    async def _made(host: str) -> triton_aio.InferenceServerClient:
        return triton_aio.InferenceServerClient(host)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **named: self._runner.run(
            self._done(getattr(self._client, name)(*args, **named))
        )

    async def _done(self, call: Coroutine[Any, Any, Any]) -> Any:
        """What it returns; of a yes or no it does not read the body, which must come all the same."""
        try:
            return await call
        finally:
            while self._client._conn._acquired:
                await asyncio.sleep(0)

    def end(self) -> None:
        self.close()
        self._runner.close()


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest, server: LiveServer) -> Iterator[Any]:
    host = server.url.removeprefix("http://")
    if request.param == "sync":
        with triton.InferenceServerClient(host, concurrency=4) as made:
            yield made
    else:
        awaited = Awaited(host)
        yield awaited
        awaited.end()


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/v2", timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def manifest(embedded: Path) -> Manifest:
    return read_manifest(embedded)


@pytest.fixture(scope="module")
def model(manifest: Manifest) -> str:
    return manifest.name


@pytest.fixture(scope="module")
def logits_of(embedded: Path, manifest: Manifest) -> Iterator[Callable[[NDArray[np.uint8]], NDArray[Any]]]:
    """Pixels -> logits, without any server."""
    graph = manifest.graph("classify", "fp32")
    assert graph is not None
    engine = open_engine("onnxruntime", embedded / graph.file, "fp32", EngineOptions("cpu", threads=1))
    yield lambda pixels: np.concatenate([engine.run({"images": row[None]})["logits"] for row in pixels])
    engine.close()


def pixels_of(num_images: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (num_images, SIZE, SIZE, 3), np.uint8)


def of_pixels(pixels: NDArray[Any], binary: bool = True, kind: str = "UINT8", name: str = "images") -> Any:
    tensor = triton.InferInput(name, list(pixels.shape), kind)
    return tensor.set_data_from_numpy(pixels, binary_data=binary)


def of_files(*files: bytes, name: str = "image") -> Any:
    return of_pixels(np.array(files, np.object_), kind="BYTES", name=name)


FILES = [encode(photograph(90, 70, seed), kind) for seed, kind in enumerate(("JPEG", "PNG", "WEBP"))]


def texts(result: Any) -> list[list[str]]:
    """Of a classification; as JSON they are texts already."""
    rows = result.as_numpy("logits").tolist()
    return [[text.decode() if isinstance(text, bytes) else text for text in row] for row in rows]


# --- what a server says of itself


def test_health(client: Any, model: str, manifest: Manifest) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert client.is_model_ready(model, manifest.version)
    assert not client.is_model_ready(model, "1")
    assert not client.is_model_ready("resnet50")


def test_metadata(client: Any, model: str, manifest: Manifest) -> None:
    server = client.get_server_metadata()
    assert (server["name"], "binary_tensor_data" in server["extensions"]) == ("residuum", True)
    for version in ("", manifest.version):
        metadata = client.get_model_metadata(model, version)
        assert (metadata["name"], metadata["versions"]) == (model, [manifest.version])
        assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
        assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 200]}]


def test_config(client: Any, model: str, manifest: Manifest) -> None:
    for version in ("", manifest.version):
        config = client.get_model_config(model, version)
        assert (config["name"], config["max_batch_size"]) == (model, 4)
        assert config["input"] == [
            {"name": "images", "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [SIZE, SIZE, 3]}
        ]
        assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [200]}]
        assert config["dynamic_batching"]["preferred_batch_size"][0] == 1


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
def test_another_name_or_version_is_not_found(client: Any, model: str, call: str) -> None:
    for name, version in (("resnet50", ""), (model, "1"), (model, "latest")):
        with pytest.raises(InferenceServerException, match="There is no") as error:
            getattr(client, call)(name, version)
        assert error.value.status() == "404"
    with pytest.raises(InferenceServerException, match=f"no version '1' of {model}"):
        client.infer(model, [of_pixels(pixels_of(1))], model_version="1")


def test_index_load_and_unload(client: Any, model: str, artifact: Path) -> None:
    small = read_manifest(artifact)

    def index() -> dict[str, tuple[str, str]]:
        return {
            line["name"]: (line["state"], line["version"]) for line in client.get_model_repository_index()
        }

    assert index()[model][0] == "READY"
    assert index()["resnet20"] == ("UNAVAILABLE", "")
    client.load_model("resnet20", headers=ADMIN)
    assert index()["resnet20"] == ("READY", small.version)
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    assert client.infer("resnet20", [of_pixels(pixels)]).as_numpy("logits").shape == (1, 10)
    client.load_model("resnet20", headers=ADMIN)  # again: it is swapped for itself
    client.unload_model("resnet20", headers=ADMIN)
    assert index()["resnet20"] == ("UNAVAILABLE", "")
    assert not client.is_model_ready("resnet20")
    with pytest.raises(InferenceServerException, match="There is no model named 'resnet20'"):
        client.infer("resnet20", [of_pixels(pixels)])


def test_load_and_unload_refused(client: Any, model: str) -> None:
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="named 'resnet50'") as error:
            call("resnet50", headers=ADMIN)
        assert error.value.status() == "404"
        with pytest.raises(InferenceServerException, match="admin key") as error:
            call(model)
        assert error.value.status() == "401"
    with pytest.raises(InferenceServerException, match="takes no parameters; this request has config"):
        client.load_model(model, headers=ADMIN, config="{}")
    assert client.is_model_ready(model)


def test_the_index_can_be_of_ready_models_only(http: httpx.Client, model: str) -> None:
    for body, names in (('{"ready": true}', [model]), ('{"ready": false}', [model, "resnet20"])):
        lines = http.post("/repository/index", content=body).json()
        assert [line["name"] for line in lines] == names
    answer = http.post("/repository/index", content='{"ready": "yes"}')
    assert (answer.status_code, answer.json()) == (400, {"error": "ready: input should be a valid boolean."})


def test_statistics(client: Any, model: str, manifest: Manifest) -> None:
    def statistics() -> Any:
        (of_model,) = client.get_inference_statistics(model, manifest.version)["model_stats"]
        assert of_model in client.get_inference_statistics()["model_stats"]
        return of_model

    before = statistics()
    client.infer(model, [of_pixels(pixels_of(5))])
    client.infer(model, [of_files(*FILES)])
    after = statistics()
    assert (after["name"], after["version"]) == (model, manifest.version)
    assert after["inference_count"] - before["inference_count"] == 8
    assert after["last_inference"] >= before["last_inference"]
    for part in ("success", "queue", "compute_infer"):
        now, then = after["inference_stats"][part], before["inference_stats"][part]
        assert now["count"] - then["count"] == 8
        assert now["ns"] > then["ns"]
    assert after["inference_stats"]["compute_input"]["ns"] > before["inference_stats"]["compute_input"]["ns"]
    assert after["inference_stats"]["fail"]["count"] == 0
    batches = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in after["batch_stats"]}
    assert max(batches) <= 4
    assert sum(batches.values()) == after["execution_count"]
    assert sum(size * count for size, count in batches.items()) == after["inference_count"]


# --- inference


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_pixels(client: Any, model: str, logits_of: Any, binary_in: bool, binary_out: bool) -> None:
    """More of them than a batch takes, and each gets its own answer."""
    pixels = pixels_of(MAX_IMAGES)
    outputs = [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    result = client.infer(model, [of_pixels(pixels, binary_in)], outputs=outputs, request_id="seven")
    assert result.get_response()["id"] == "seven"
    assert ("data" in result.get_output("logits")) is not binary_out
    np.testing.assert_allclose(result.as_numpy("logits"), logits_of(pixels), atol=1e-3)


@pytest.mark.parametrize("name", ["image", "images"])
def test_files(client: Any, model: str, manifest: Manifest, logits_of: Any, name: str) -> None:
    result = client.infer(model, [of_files(*FILES, name=name)], model_version=manifest.version)
    pixels = np.stack([preprocess(file, manifest.preprocessing).pixels for file in FILES])
    np.testing.assert_allclose(result.as_numpy("logits"), logits_of(pixels), atol=1e-3)
    assert result.get_response()["model_version"] == manifest.version


@pytest.mark.parametrize("binary", [True, False])
def test_classification(client: Any, model: str, manifest: Manifest, logits_of: Any, binary: bool) -> None:
    pixels = pixels_of(2)
    outputs = [triton.InferRequestedOutput("logits", binary_data=binary, class_count=5)]
    result = client.infer(model, [of_pixels(pixels)], outputs=outputs)
    assert (result.get_output("logits")["datatype"], result.as_numpy("logits").shape) == ("BYTES", (2, 5))
    for row, logits_K in zip(texts(result), logits_of(pixels), strict=True):
        parts = [text.split(":", 2) for text in row]
        assert [int(index) for _, index, _ in parts] == np.argsort(-logits_K)[:5].tolist()
        for value, index, label in parts:
            assert float(value) == pytest.approx(logits_K[int(index)], abs=1e-3)
            assert label == manifest.labels[int(index)].label


@pytest.mark.parametrize("answer", [None, "gzip", "deflate"])
@pytest.mark.parametrize("asked", [None, "gzip", "deflate"])
def test_compression(client: Any, model: str, logits_of: Any, asked: str | None, answer: str | None) -> None:
    pixels = pixels_of(2)
    result = client.infer(
        model,
        [of_pixels(pixels)],
        request_compression_algorithm=asked,
        response_compression_algorithm=answer,
    )
    np.testing.assert_allclose(result.as_numpy("logits"), logits_of(pixels), atol=1e-3)


def test_many_at_once_get_their_own(server: LiveServer, model: str, logits_of: Any) -> None:
    host = server.url.removeprefix("http://")
    pixels = [pixels_of(1 + seed % 3, seed) for seed in range(12)]
    with triton.InferenceServerClient(host, concurrency=4) as client:
        running = [client.async_infer(model, [of_pixels(each)]) for each in pixels]
        results = [request.get_result() for request in running]

    async def with_aio() -> list[Any]:
        async with triton_aio.InferenceServerClient(host) as client:
            return await asyncio.gather(*(client.infer(model, [of_pixels(each)]) for each in pixels))

    for each, result in zip([*pixels, *pixels], [*results, *asyncio.run(with_aio())], strict=True):
        np.testing.assert_allclose(result.as_numpy("logits"), logits_of(each), atol=1e-3)


def test_parameters(client: Any, model: str) -> None:
    """A deadline is kept to; priority, sequences and parameters of others are passed over."""
    inputs = [of_pixels(pixels_of(MAX_IMAGES))]
    assert client.infer(
        model, inputs, timeout=20_000_000, priority=1, sequence_id=3, parameters={"mine": "x"}
    )
    assert client.infer(model, inputs, timeout=0)
    with pytest.raises(InferenceServerException, match="deadline") as error:
        client.infer(model, inputs, timeout=1)
    assert error.value.status() == "503"


def in_shared_memory() -> Any:
    tensor = triton.InferInput("images", [1, SIZE, SIZE, 3], "UINT8")
    tensor.set_shared_memory("region", SIZE * SIZE * 3)
    return tensor


BAD: dict[str, tuple[Callable[[], Any], str, str]] = {
    "too many": (lambda: of_pixels(pixels_of(MAX_IMAGES + 1)), "400", "6 images at most"),
    "size": (lambda: of_pixels(np.zeros((1, 32, 32, 3), np.uint8)), "400", r"must be \[N, 64, 64, 3\]"),
    "floats": (lambda: of_pixels(np.zeros((1, 64, 64, 3), np.float32), kind="FP32"), "400", "cannot be FP32"),
    "name": (lambda: of_pixels(pixels_of(1), name="input_1"), "400", "There is no input 'input_1'"),
    "no image": (lambda: of_files(FILES[0], b"GIF90"), "400", "Image 1: "),
    "empty": (lambda: of_files(b""), "400", "no bytes where an image should be"),
    "cut off": (lambda: of_files(FILES[0][:-20]), "400", "."),
    "image's bytes": (lambda: of_files(FILES[0] + bytes(200_000)), "413", "at most 200,000"),
    "bytes": (lambda: of_files(bytes(400_000)), "413", "400,000 bytes at most"),
    "texts": (lambda: of_pixels(np.array([b"cat"], np.object_), False, "BYTES"), "400", "."),
    "shared": (in_shared_memory, "400", "no shared memory here"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs(client: Any, model: str, case: str) -> None:
    make, status, told = BAD[case]
    with pytest.raises(InferenceServerException, match=told) as error:
        client.infer(model, [make()])
    assert error.value.status() == status
    assert client.infer(model, [of_pixels(pixels_of(1))]).as_numpy("logits").shape == (1, 200)


def test_bad_outputs(client: Any, model: str) -> None:
    inputs = [of_pixels(pixels_of(1))]
    for outputs, told in (
        ([triton.InferRequestedOutput("prob")], "There is no output 'prob'"),
        ([triton.InferRequestedOutput("logits")] * 2, "asked for 2 times"),
        ([triton.InferRequestedOutput("logits", class_count=-1)], "classification"),
    ):
        with pytest.raises(InferenceServerException, match=told) as error:
            client.infer(model, inputs, outputs=outputs)
        assert error.value.status() == "400"
    shared = triton.InferRequestedOutput("logits")
    shared.set_shared_memory("region", 800)
    with pytest.raises(InferenceServerException, match="no shared memory"):
        client.infer(model, inputs, outputs=[shared])
    with pytest.raises(InferenceServerException, match="one input; this request has 2"):
        client.infer(model, inputs * 2)


def test_what_does_not_exist_is_said(client: Any, model: str) -> None:
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("get_system_shared_memory_status", ()),
        ("get_system_shared_memory_status", ("region",)),
        ("register_system_shared_memory", ("region", "/key", 100)),
        ("unregister_system_shared_memory", ()),
        ("get_cuda_shared_memory_status", ()),
        ("register_cuda_shared_memory", ("region", "handle", 0, 100)),
        ("unregister_cuda_shared_memory", ("region",)),
        ("get_trace_settings", ()),
        ("get_trace_settings", (model,)),
        ("update_trace_settings", (model, {"trace_level": "OFF"})),
        ("get_log_settings", ()),
        ("update_log_settings", ({"log_verbose_level": 1},)),
    ]
    for name, arguments in calls:
        with pytest.raises(InferenceServerException, match=r"no shared memory here|set at start") as error:
            getattr(client, name)(*arguments)
        assert error.value.status() == "404"


def test_the_example_of_the_docs(
    server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "oip.md").read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / "coffee.jpg").write_bytes(FILES[0])
    monkeypatch.chdir(tmp_path)
    exec(example[1].replace("127.0.0.1:8000", server.url.removeprefix("http://")), {})
    assert re.fullmatch(r"\[\[(b'[\d.]+:\d+:[^']+'\s*){3}\]\]\n", capsys.readouterr().out)


# --- what tritonclient does not send


def test_one_image_without_json(http: httpx.Client, model: str, manifest: Manifest, logits_of: Any) -> None:
    answer = http.post(
        f"/models/{model}/infer", content=FILES[0], headers={"Inference-Header-Content-Length": "0"}
    )
    result = triton.InferenceServerClient.parse_response_body(
        answer.content, header_length=answer.headers["Inference-Header-Content-Length"]
    )
    pixels = preprocess(FILES[0], manifest.preprocessing).pixels[None]
    np.testing.assert_allclose(result.as_numpy("logits"), logits_of(pixels), atol=1e-3)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "inference;dur=" in answer.headers["server-timing"]


def test_json_to_json(http: httpx.Client, model: str) -> None:
    pixels = pixels_of(1)
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, SIZE, SIZE, 3], "data": pixels.tolist()}
    answer = http.post(f"/models/{model}/infer", json={"inputs": [tensor]})
    assert answer.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in answer.headers
    (output,) = answer.json()["outputs"]
    assert (output["shape"], len(output["data"])) == ([1, 200], 200)


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [("gzip", "gzip"), ("deflate", "deflate"), ("br", None), ("gzip, deflate, br", None), (None, None)],
)
def test_answers_are_compressed_only_for_who_asks(
    http: httpx.Client, model: str, accept: str | None, encoding: str | None
) -> None:
    del http.headers["accept-encoding"]
    headers = {"Inference-Header-Content-Length": "0"} | ({"Accept-Encoding": accept} if accept else {})
    answer = http.post(f"/models/{model}/infer", content=FILES[0], headers=headers)
    assert answer.headers.get("content-encoding") == encoding
    assert len(answer.content) > 800
    failed = http.post(f"/models/{model}/infer", content=b"no image", headers=headers)
    assert (failed.status_code, "content-encoding" in failed.headers) == (400, False)


@pytest.mark.parametrize(("algorithm", "module"), [("gzip", gzip), ("deflate", zlib)])
def test_bombs(http: httpx.Client, model: str, algorithm: str, module: Any) -> None:
    bomb = module.compress(bytes(50_000_000))
    answer = http.post(f"/models/{model}/infer", content=bomb, headers={"Content-Encoding": algorithm})
    assert (answer.status_code, "decompressed" in answer.json()["error"]) == (413, True)


def test_every_error_has_the_protocol_s_form(http: httpx.Client, model: str) -> None:
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("GET", f"/models/{model}/infer", 405),
        ("DELETE", f"/models/{model}", 405),
        ("POST", "/models/nobody/infer", 404),
        ("POST", f"/models/{model}/infer", 400),
        ("POST", f"/models/{model}/versions/9/infer", 404),
        ("GET", "/models/%00", 404),
        ("GET", "/models/..%2f..%2fetc/config", 404),
    ):
        answer = http.request(method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), path
    answer = http.post(f"/models/{model}/infer", content=b"{}", headers={"Content-Encoding": "br"})
    assert (answer.status_code, "gzip or deflate" in answer.json()["error"]) == (415, True)


def test_damaged_requests_are_answered(http: httpx.Client, model: str) -> None:
    rng = random.Random(5)
    statuses = set()
    for turn in range(80):
        tensor = of_files(*FILES) if turn % 2 else of_pixels(pixels_of(2))
        body, length = triton.InferenceServerClient.generate_request_body([tensor])
        damaged = bytearray(body)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(rng.choice([length, len(damaged)]))
            old, new = rng.choice([(1, 1), (1, 1), (0, 1), (9, 0), (0, 5)])
            damaged[at : at + old] = rng.randbytes(new)
        header = rng.choice([length, length, length, length + rng.randint(-3, 3), 0])
        headers = {"Inference-Header-Content-Length": str(header)}
        answer = http.post(f"/models/{model}/infer", content=bytes(damaged), headers=headers)
        statuses.add(answer.status_code)
        if answer.status_code != 200:
            assert list(answer.json()) == ["error"]
    assert statuses == {200, 400}


def test_not_ready_yet() -> None:
    """Before the models are loaded, it lives and says so, and everything else is refused with 503."""
    app = create_app(Settings())

    async def ask(method: str, path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test/v2") as asking:
            return await asking.request(method, path)

    assert asyncio.run(ask("GET", "/health/live")).json() == {"live": True}
    for method, path in (
        ("GET", "/health/ready"),
        ("GET", "/models/any"),
        ("GET", "/models/any/ready"),
        ("GET", "/models/stats"),
        ("POST", "/models/any/infer"),
        ("POST", "/repository/index"),
    ):
        answer = asyncio.run(ask(method, path))
        assert (answer.status_code, list(json.loads(answer.content))) == (503, ["error"]), path
        assert answer.headers["retry-after"] == "1"
