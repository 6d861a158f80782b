"""Whatever was changed and whoever dies: those who come after serve what the server should have."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.process.messages import LENGTH, MAX_BYTES, BadMessage, frame, receive
from service.runtime.wanted import Change, Wanted
from tests.service.process.test_supervisor import MANY, ask, change, pids, replacing, running, stopped
from tests.service.runtime.test_changes import install, make_version
from tests.service.runtime.test_repository import change_manifest, flip_a_byte
from tests.support.live import LiveServer


@pytest.fixture(scope="module")
def versions(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of a model `extra`, and one of `resnet20`."""
    folder = tmp_path_factory.mktemp("versions")
    made = [make_version(artifact, folder / str(number), number) for number in range(2)]
    for path in made:
        change_manifest(path, lambda manifest: manifest.update(name="extra"))
    return [*made, make_version(artifact, folder / "resnet20", 0)]


@pytest.fixture
def place(versions: list[Path], tmp_path: Path) -> Path:
    """A directory of artifacts, in which `extra` has a directory that is named otherwise."""
    install(versions[2], tmp_path / "resnet20")
    install(versions[0], tmp_path / "more")
    return tmp_path


@pytest.fixture
def server(place: Path) -> Iterator[LiveServer]:
    with running(admin_key="of-the-admin", artifacts=place, model="resnet20") as started:
        yield started
        assert not started.num_said("Traceback"), "".join(started.log)


def loaded(server: LiveServer) -> dict[str, str]:
    """Name -> version, the default one first, of one worker."""
    models = json.loads(ask(server, "/models"))["models"]
    return {model["name"]: model["version"] for model in models}


def check_all(server: LiveServer, wanted: dict[str, str]) -> None:
    """Every worker has that, in that order."""
    for _ in range(MANY):
        assert [*loaded(server).items()] == [*wanted.items()], "".join(server.log)
        assert json.loads(ask(server, "/health/ready")) == {"status": "ready"}


def kill(server: LiveServer, pid: int) -> None:
    with replacing(server):
        os.kill(pid, signal.SIGKILL)


def kill_each(server: LiveServer, wanted: dict[str, str]) -> None:
    """One after the other."""
    for pid in pids(server):
        kill(server, pid)
        check_all(server, wanted)


def test_successors_have_what_was_loaded_swapped_and_unloaded(
    server: LiveServer, place: Path, versions: list[Path]
) -> None:
    assert change(server, "more", "load").status_code == 200  # by its directory's name
    kill_each(server, {"resnet20": "0", "extra": "0"})
    install(versions[1], place / "more")
    assert change(server, "extra", "load").status_code == 200
    assert change(server, "resnet20", "unload").status_code == 200
    kill_each(server, {"extra": "1"})
    assert change(server, "resnet20", "load").status_code == 200
    assert change(server, "extra", "unload").status_code == 200
    kill_each(server, {"resnet20": "0"})


def test_a_new_version_that_a_successor_finds_is_loaded_by_all(
    server: LiveServer, place: Path, versions: list[Path]
) -> None:
    assert change(server, "extra", "load").status_code == 200
    install(versions[1], place / "more")
    steady, victim = pids(server)
    kill(server, victim)
    with stopped(victim := (pids(server) - {steady}).pop()):
        while loaded(server) != {"resnet20": "0", "extra": "1"}:
            assert server.process.poll() is None
    assert victim in pids(server)
    kill_each(server, {"resnet20": "0", "extra": "1"})


def test_what_cannot_be_loaded_again_is_missing_until_it_can(
    server: LiveServer, place: Path, versions: list[Path]
) -> None:
    assert change(server, "extra", "load").status_code == 200
    shutil.rmtree(place / "more")
    first, second = pids(server)
    kill(server, first)
    with stopped(second):
        assert loaded(server) == {"resnet20": "0"}
        assert json.loads(ask(server, "/health/ready")) == {"status": "ready", "missing": ["extra"]}
        answer = httpx.get(f"{server.url}/models/extra", timeout=60)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    with stopped(successor := (pids(server) - {second}).pop()):
        assert loaded(server) == {"resnet20": "0", "extra": "0"}, "it is served on where it is loaded"

    install(versions[0], place / "more")
    flip_a_byte(place / "more")
    kill(server, second)
    for _ in range(MANY):
        assert loaded(server) == {"resnet20": "0"}
    assert server.num_said("extra is not served by this worker") >= 2, "".join(server.log)
    assert successor in pids(server)

    shutil.rmtree(place / "more")
    install(versions[0], place / "more")
    server.wait_until_said("extra is loaded", 4)  # by two for the client, and again by two
    check_all(server, {"resnet20": "0", "extra": "0"})


def test_a_default_that_is_missing_is_no_other_model(server: LiveServer, place: Path) -> None:
    assert change(server, "extra", "load").status_code == 200
    shutil.rmtree(place / "resnet20")
    for pid in pids(server):
        kill(server, pid)
    assert loaded(server) == {"extra": "0"}
    answer = httpx.get(f"{server.url}/health/ready", timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert answer.json()["detail"] == "The server is unhealthy: resnet20 is missing."
    answer = httpx.post(f"{server.url}/classify", content=b"no matter", timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert change(server, "resnet20", "unload").status_code == 200
    check_all(server, {"extra": "0"})


def test_all_may_die_without_any_model(server: LiveServer) -> None:
    assert change(server, "resnet20", "unload").status_code == 200
    ready = server.num_said("is ready")
    for pid in pids(server):
        os.kill(pid, signal.SIGKILL)
    server.wait_until_said("is ready", ready + 2)
    assert loaded(server) == {}
    assert change(server, "resnet20", "load").status_code == 200
    check_all(server, {"resnet20": "0"})


def test_what_was_unloaded_is_not_found_again_by_a_successor(place: Path, versions: list[Path]) -> None:
    flags = {"admin_key": "of-the-admin", "artifacts": place, "model": "resnet20"}
    with running(**flags, watch=True) as server:
        check_all(server, {"resnet20": "0", "extra": "0"})
        assert change(server, "extra", "unload").status_code == 200
        kill_each(server, {"resnet20": "0"})
        said = server.num_said("extra is loaded")
        install(versions[1], place / "more")
        server.wait_until_said("extra is loaded", said + 2)
        kill_each(server, {"resnet20": "0", "extra": "1"})


# Messages


def test_a_long_name_is_refused_before_it_travels(server: LiveServer) -> None:
    before = pids(server)
    for name in ("x" * 33_000, "x" * 256, "no%20name", "%FF"):
        for action in ("load", "unload"):
            answer = change(server, name, action)
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
            assert len(answer.text) < 1000
    check_all(server, {"resnet20": "0"})
    assert pids(server) == before


SAY_BAD = """
import os
from service.process import messages
good = messages.frame
def frame(kind, **members):
    if kind == "alive":
        try:
            with open({path!r}, "rb") as file:
                bad = file.read()
            os.unlink({path!r})
        except OSError:
            pass
        else:
            return bad
    return good(kind, **members)
messages.frame = frame
"""


def test_a_bad_message_ends_its_worker_and_nothing_else(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = tmp_path / "bad"
    (tmp_path / "sitecustomize.py").write_text(SAY_BAD.format(path=str(trigger)))
    root = str(Path(__file__).resolve().parents[3])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), root)))
    with running(artifacts=place, model="resnet20") as server:
        for number, bad in enumerate(
            (
                LENGTH.pack(MAX_BYTES + 1),
                LENGTH.pack(3) + b"{x}",
                frame("changed", id=99, why=None, name="x", directory=None, fingerprint=""),
            )
        ):
            with replacing(server):
                trigger.with_suffix(".new").write_bytes(bad)
                trigger.with_suffix(".new").rename(trigger)
            assert server.num_said("because a message of it is bad") == number + 1, "".join(server.log)
        check_all(server, {"resnet20": "0"})
        assert server.stop() == 0
        assert not server.num_said("Traceback")


def received(data: bytes) -> object:
    async def read() -> object:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await receive(reader)

    return asyncio.run(read())


def test_messages_of_any_length_arrive_whole() -> None:
    why = "a\n\0\udcff" * 50_000
    assert received(frame("changed", why=why)) == {"kind": "changed", "why": why}
    assert received(frame("alive")[:-1]) is None
    assert received(b"") is None


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"1", b"{}", b'{"kind": 1}', b"\xff", b"[" * 100_000, b'{"kind": "a"}x']
)
def test_what_is_no_message_is_told(data: bytes) -> None:
    with pytest.raises(BadMessage):
        received(LENGTH.pack(len(data)) + data)


# The desired state


def test_the_order_of_what_is_wanted_is_that_of_a_server_that_never_stopped() -> None:
    a, b = Change("a", Path("a"), "1"), Change("b", Path("b"), "1")
    wanted = Wanted([a, b])
    swapped = Change("a", Path("a"), "2")
    assert wanted.differs_from(swapped)
    wanted.note(swapped)
    assert wanted.loaded == [swapped, b]
    wanted.note(Change("a", None))
    assert (wanted.loaded, wanted.unloaded) == ([b], ["a"])
    assert not wanted.differs_from(a)
    wanted.note(a)
    assert (wanted.loaded, wanted.unloaded) == ([b, a], [])
