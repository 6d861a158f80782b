"""Models come, change and go on a running server, and no request notices."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from artifact.manifest import read_manifest, sha256_of
from artifact.preprocess import preprocess
from engines.engine import EngineOptions
from engines.registry import open_engine
from tests.service.runtime.test_repository import change_golden, change_manifest, flip_a_byte, make_no_graph
from tests.support.images import encode, photograph
from tests.support.live import LiveServer, live_server

FLAGS: dict[str, object] = {"device": "cpu", "threads": 1, "max_batch_size": 4, "admin_key": "boss"}
ADMIN = {"Authorization": "Bearer boss"}
IMAGES = [encode(photograph(96, 80, seed), "JPEG") for seed in range(8)]
STEP = 10.0  # how much the first logit of a version is above that of the one before


def make_version(artifact: Path, out: Path, number: int) -> Path:
    """Version `number` of an artifact of version 0, which answers otherwise."""
    shutil.copytree(artifact, out)

    def change(manifest: dict[str, Any]) -> None:
        manifest["version"] = str(number)
        for graph in manifest["graphs"]:
            path = out / graph["file"]
            proto = onnx.load(path)
            [bias] = [tensor for tensor in proto.graph.initializer if tensor.name == "model.head.bias"]
            values = numpy_helper.to_array(bias).copy()
            values[0] += number * STEP
            bias.CopyFrom(numpy_helper.from_array(values, bias.name))
            onnx.save(proto, path)
            graph["golden_logits"][0] += number * STEP
            graph["sha256"] = sha256_of(path)

    change_manifest(out, change)
    return out


@pytest.fixture(scope="module")
def versions(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("versions")
    return [make_version(artifact, folder / str(number), number) for number in range(3)]


@pytest.fixture(scope="module")
def expected(artifact: Path) -> list[NDArray[Any]]:
    """The logits of each of IMAGES in version 0."""
    manifest = read_manifest(artifact)
    graph = manifest.graph("classify")
    assert graph is not None
    engine = open_engine("onnxruntime", artifact / graph.file, "fp32", EngineOptions("cpu", threads=1))
    pixels = [preprocess(data, manifest.preprocessing).pixels for data in IMAGES]
    return [engine.run({"images": image[None]})["logits"][0] for image in pixels]


def check_answer(answer: httpx.Response, expected: NDArray[Any]) -> int:
    """The version that it is from, which all of it must be; `expected` are the logits of version 0."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    if "results" in body:
        version, predictions = body["version"], body["results"][0]["predictions"]
    else:
        version, predictions = body["model"]["version"], body["predictions"]
    logits = np.empty(len(expected))
    for prediction in predictions:
        logits[prediction["index"]] = prediction["logit"]
    logits[0] -= int(version) * STEP
    np.testing.assert_allclose(logits, expected, atol=2e-3)
    return int(version)


def install(source: Path, directory: Path) -> None:
    """Put an artifact in the place of another one, whole."""
    new, old = (directory.with_name(f".{directory.name}.{what}") for what in ("new", "old"))
    shutil.copytree(source, new)
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def until(condition: Callable[[], object]) -> None:
    """The test's own time limit ends it."""
    while not condition():
        pass


class Place:
    """A server, and the directory that it has its artifacts from."""

    def __init__(self, server: LiveServer, artifacts: Path, client: httpx.Client) -> None:
        self.server = server
        self.artifacts = artifacts
        self.client = client

    def change(self, action: str, name: str) -> httpx.Response:
        return self.client.post(f"/models/{name}/{action}", headers=ADMIN)

    def ask(self, number: int, path: str = "/classify", **params: str) -> httpx.Response:
        return self.client.post(path, content=IMAGES[number], params={"top_k": "10"} | params)

    def loaded(self) -> dict[str, str]:
        """Name -> version, the default one first."""
        models = self.client.get("/models").json()["models"]
        assert [model["default"] for model in models] == [True, False, False, False][: len(models)]
        return {model["name"]: model["version"] for model in models}


@contextmanager
def place(versions: list[Path], folder: Path, **settings: object) -> Iterator[Place]:
    install(versions[0], folder / "resnet20")
    with (
        live_server(**FLAGS, model="resnet20", artifacts=folder, **settings) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield Place(server, folder, client)
        assert not [line for line in server.log if "Traceback" in line]


@pytest.fixture(scope="module")
def _one_place(versions: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(versions, tmp_path_factory.mktemp("artifacts")) as made:
        yield made


@pytest.fixture
def here(_one_place: Place, versions: list[Path]) -> Iterator[Place]:
    """A server with version 0 of resnet20 and nothing else, and left like that."""
    yield _one_place
    for path in _one_place.artifacts.iterdir():
        shutil.rmtree(path)
    install(versions[0], _one_place.artifacts / "resnet20")
    for name in {*_one_place.loaded()} - {"resnet20"}:
        assert _one_place.change("unload", name).status_code == 200
    assert _one_place.change("load", "resnet20").status_code == 200


class Crowd:
    """Clients that ask until they are told to stop, and count what each version answered."""

    def __init__(self, place: Place, expected: list[NDArray[Any]]) -> None:
        self.place = place
        self.expected = expected
        self.stopped = threading.Event()
        self.versions: Counter[int] = Counter()
        self.changed = threading.Condition()

    def ask_on(self, first: int, path: str) -> None:
        with httpx.Client(base_url=self.place.server.url, timeout=60) as client:
            for number in cycle(range(first, first + len(IMAGES))):
                if self.stopped.is_set():
                    return
                image = number % len(IMAGES)
                answer = client.post(path, content=IMAGES[image], params={"top_k": "10"})
                version = check_answer(answer, self.expected[image])
                with self.changed:
                    self.versions[version] += 1
                    self.changed.notify_all()

    def wait_for(self, version: int, num_answers: int = 20) -> None:
        """Until so many more answers came from that version."""
        with self.changed:
            enough = self.versions[version] + num_answers
            assert self.changed.wait_for(lambda: self.versions[version] >= enough, timeout=60)


@contextmanager
def crowd(place: Place, expected: list[NDArray[Any]]) -> Iterator[Crowd]:
    """Every answer must be right at the end, and whole from one version."""
    made = Crowd(place, expected)
    paths = ["/classify"] * 4 + ["/introspect?maps=none"]
    with ThreadPoolExecutor(len(paths)) as clients:
        loops = [clients.submit(made.ask_on, n, path) for n, path in enumerate(paths)]
        try:
            yield made
        finally:
            made.stopped.set()
        for loop in loops:
            loop.result()


# Loaded and unloaded by an admin


def test_swapping_under_load_fails_no_request(
    here: Place, versions: list[Path], expected: list[NDArray[Any]]
) -> None:
    with crowd(here, expected) as asking:
        asking.wait_for(0)
        for number in (1, 2, 0, 1):
            install(versions[number], here.artifacts / "resnet20")
            answer = here.change("load", "resnet20")
            assert answer.status_code == 200, answer.text
            assert [model["version"] for model in answer.json()["models"]] == [str(number)]
            asking.wait_for(number)
    assert set(asking.versions) == {0, 1, 2}
    assert check_answer(here.ask(0), expected[0]) == 1


def test_a_request_finishes_with_the_version_that_it_began_with(
    here: Place, versions: list[Path], expected: list[NDArray[Any]]
) -> None:
    """It has begun when its head is there; its image comes after the swap, and after the unloading."""
    for change in ("load", "unload"):
        head = f"POST /classify?top_k=10 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(IMAGES[0])}\r\n"
        with socket.create_connection(("127.0.0.1", here.server.port), timeout=60) as connection:
            connection.sendall(head.encode() + b"Connection: close\r\nExpect: 100-continue\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
            version = int(here.loaded()["resnet20"])
            install(versions[2], here.artifacts / "resnet20")
            assert here.change(change, "resnet20").status_code == 200
            connection.sendall(IMAGES[0])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        status, _, body = answer.partition(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 200 "), answer
        assert check_answer(httpx.Response(200, content=body), expected[0]) == version


def test_many_changes_at_once_are_made_one_after_another(here: Place, expected: list[NDArray[Any]]) -> None:
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda _: here.change("load", "resnet20"), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert check_answer(here.ask(1), expected[1]) == 0


def damaged(damage: Callable[[Path], object], message: str) -> Any:
    return pytest.param(damage, message, id=message.replace(" ", "-"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        damaged(flip_a_byte, "differs from the SHA-256"),
        damaged(make_no_graph, "cannot open"),
        damaged(change_golden, "golden logits differ"),
        damaged(lambda path: (path / "golden.png").unlink(), "lacks the file"),
        damaged(lambda path: (path / "classify.fp32.onnx").unlink(), "lacks the file"),
        damaged(lambda path: (path / "manifest.json").write_text("{"), "not a manifest"),
        damaged(lambda path: change_manifest(path, lambda m: m.update(name="other")), "now it is of 'other'"),
        damaged(lambda path: change_manifest(path, lambda m: m["labels"].pop()), "labels or golden"),
        damaged(lambda path: shutil.rmtree(path), "no artifact"),
    ],
)
def test_what_is_not_right_is_refused_and_the_old_one_serves_on(
    here: Place,
    versions: list[Path],
    expected: list[NDArray[Any]],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    directory = here.artifacts / "resnet20"
    install(versions[1], directory)
    damage(directory)
    answer = here.change("load", "resnet20")
    assert (answer.status_code, answer.json()["code"]) == (409, "load_refused"), answer.text
    assert message in answer.json()["detail"]
    assert "served on" in answer.json()["hint"]
    assert here.loaded() == {"resnet20": "0"}
    assert check_answer(here.ask(2), expected[2]) == 0
    assert here.client.get("/health/ready").status_code == 200


def test_the_default_and_the_last_one_can_be_unloaded(
    here: Place, versions: list[Path], expected: list[NDArray[Any]]
) -> None:
    install(versions[1], here.artifacts / "second")
    change_manifest(here.artifacts / "second", lambda manifest: manifest.update(name="second"))
    assert here.change("load", "second").status_code == 200
    assert here.loaded() == {"resnet20": "0", "second": "1"}
    assert check_answer(here.ask(0), expected[0]) == 0
    assert check_answer(here.ask(0, model="second"), expected[0]) == 1

    answer = here.change("unload", "resnet20")  # the default one
    assert [model["name"] for model in answer.json()["models"]] == ["second"]
    assert here.ask(0, model="resnet20").status_code == 404
    assert check_answer(here.ask(0), expected[0]) == 1

    assert here.change("unload", "second").json() == {"models": []}
    answer = here.ask(0)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert here.change("unload", "second").status_code == 404
    assert here.change("load", "second").status_code == 200
    assert check_answer(here.ask(0), expected[0]) == 1


def test_only_names_are_loaded_and_never_paths(here: Place, versions: list[Path]) -> None:
    shutil.copytree(versions[1], here.artifacts.parent / "outside", dirs_exist_ok=True)
    for name in ("nix", "..%2Foutside", "%2Fetc", "..", ".resnet20", "resnet20%2F..%2Fresnet20"):
        answer = here.change("load", name)
        assert answer.status_code in (404, 405), answer.text
    assert here.loaded() == {"resnet20": "0"}


# Watched


@pytest.fixture(scope="module")
def watched(versions: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("watched")
    install(versions[1], folder / "early")  # beside the one that is asked for
    change_manifest(folder / "early", lambda manifest: manifest.update(name="early"))
    with place(versions, folder, watch=True) as made:
        yield made


def test_what_lies_there_at_the_start_is_loaded_before_it_is_ready(watched: Place) -> None:
    assert watched.loaded() == {"resnet20": "0", "early": "1"}


def test_a_new_version_is_swapped_in_under_load(
    watched: Place, versions: list[Path], expected: list[NDArray[Any]]
) -> None:
    with crowd(watched, expected) as asking:
        for number in (2, 0):
            install(versions[number], watched.artifacts / "resnet20")
            asking.wait_for(number)
    assert watched.loaded()["resnet20"] == "0"


def test_a_new_artifact_is_loaded_and_a_link_that_is_turned_is_followed(
    watched: Place, versions: list[Path], expected: list[NDArray[Any]], tmp_path: Path
) -> None:
    for number in (1, 2):
        shutil.copytree(versions[number], tmp_path / str(number))
        change_manifest(tmp_path / str(number), lambda manifest: manifest.update(name="linked"))
    link, turned = watched.artifacts / "linked", watched.artifacts / ".turned"
    for number in (1, 2):
        turned.symlink_to(tmp_path / str(number))
        os.replace(turned, link)
        until(lambda version=str(number): watched.loaded().get("linked") == version)
        assert check_answer(watched.ask(3, model="linked"), expected[3]) == number
    link.unlink()
    assert check_answer(watched.ask(3, model="linked"), expected[3]) == 2  # until it is unloaded


def test_a_corrupt_one_is_refused_and_loaded_when_it_is_repaired(
    watched: Place, versions: list[Path], expected: list[NDArray[Any]], tmp_path: Path
) -> None:
    directory = watched.artifacts / "resnet20"
    corrupt = Path(shutil.copytree(versions[1], tmp_path / "corrupt"))
    flip_a_byte(corrupt)
    install(corrupt, directory)
    until(lambda: any("differs from the SHA-256" in line for line in watched.server.log))
    assert watched.loaded()["resnet20"] == "0"
    assert check_answer(watched.ask(4), expected[4]) == 0
    for source in versions[2].iterdir():  # file by file, as a plain copy does
        shutil.copy(source, directory)
    until(lambda: watched.loaded()["resnet20"] == "2")
    assert check_answer(watched.ask(4), expected[4]) == 2
    assert watched.client.get("/health/ready").status_code == 200
