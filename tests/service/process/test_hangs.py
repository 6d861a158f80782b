"""What hangs is given up, and what was only paused is not: batches, workers, loads."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.service.process.test_successors import check_all
from tests.service.process.test_supervisor import change, names_on_one, pids, running
from tests.service.runtime.test_changes import install, make_version
from tests.service.runtime.test_repository import change_manifest
from tests.support.faulty import let_engines_hang, wait_for
from tests.support.images import encode, photograph
from tests.support.live import LiveServer

IMAGE = encode(photograph(96, 80, seed=3), "JPEG")
HANG_S = 1.0


@pytest.fixture
def signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return let_engines_hang(monkeypatch, tmp_path / "signs")


@pytest.fixture
def place(artifact: Path, tmp_path: Path) -> Path:
    """With `resnet20` and `other`."""
    folder = tmp_path / "artifacts"
    make_version(artifact, folder / "resnet20", 0)
    install(folder / "resnet20", folder / "other")
    change_manifest(folder / "other", lambda manifest: manifest.update(name="other"))
    return folder


def pause(processes: set[int], seconds: float) -> None:
    """As `docker pause` does it; time goes by for them."""
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    threading.Event().wait(seconds)
    for pid in processes:
        os.kill(pid, signal.SIGCONT)


def classify(server: LiveServer) -> httpx.Response:
    return httpx.post(f"{server.url}/classify", content=IMAGE, timeout=60)


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def test_a_batch_of_a_paused_process_has_not_hung(
    place: Path, signs: Path, clients: ThreadPoolExecutor
) -> None:
    with running(workers=1, artifacts=place, model="resnet20", hang_timeout=HANG_S) as server:
        for _ in range(3):
            (signs / "go").unlink(missing_ok=True)
            (signs / "held").unlink(missing_ok=True)
            (signs / "hold").touch()
            answer = clients.submit(classify, server)
            wait_for(signs / "held")
            pause({server.process.pid}, 3 * HANG_S)
            (signs / "go").touch()
            assert answer.result().status_code == 200, "".join(server.log)
        assert classify(server).status_code == 200  # nor is a batch expected to take so long
        assert not server.num_said("hangs")
        assert not server.num_said("is broken")

        (signs / "go").unlink()
        (signs / "hold").touch()
        problem = classify(server)
        assert (problem.status_code, problem.json()["code"]) == (503, "engine_failed")
        assert server.num_said("a batch hangs") == 1
        server.wait_until_said("serves again")
        assert classify(server).status_code == 200
        (signs / "go").touch()  # the thread ends
        assert server.stop() == 0


def test_workers_that_are_paused_with_their_supervisor_have_not_hung(place: Path) -> None:
    with running(artifacts=place, model="resnet20", hang_timeout=HANG_S) as server:
        workers = pids(server)
        pause({server.process.pid, *workers}, 6.5)  # a worker may be silent for five seconds
        check_all(server, {"resnet20": "0"})
        assert pids(server) == workers
        assert len(server.log) == 1, "".join(server.log)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_load_that_hangs_is_refused_and_later_changes_are_made(
    place: Path, signs: Path, clients: ThreadPoolExecutor, workers: int
) -> None:
    flags = {"artifacts": place, "model": "resnet20", "admin_key": "of-the-admin", "load_timeout": 8}
    with running(workers=workers, **flags) as server:
        (signs / "hang").write_text(str(place / "other"))
        hanging = clients.submit(change, server, "other", "load")
        wait_for(signs / "hung")
        later = clients.submit(change, server, "resnet20", "load")  # it waits
        answer = hanging.result()
        assert (answer.status_code, answer.json()["code"]) == (409, "load_refused")
        assert "took longer than --load-timeout, 8 s" in answer.json()["detail"]
        assert later.result().status_code == 200
        assert names_on_one(server) == {"resnet20"}
        (signs / "hang").unlink()
        assert change(server, "other", "load").status_code == 200
        assert change(server, "resnet20", "unload").status_code == 200
        check_all(server, {"other": "0"})
        assert server.stop() == 0
        assert not server.num_said("Traceback")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_load_that_hangs_keeps_no_server_from_ending(
    place: Path, signs: Path, clients: ThreadPoolExecutor, workers: int
) -> None:
    flags = {"artifacts": place, "model": "resnet20", "admin_key": "of-the-admin"}
    with running(workers=workers, **flags) as server:  # which has a minute to end
        (signs / "hang").write_text(str(place / "other"))
        hanging = clients.submit(change, server, "other", "load")
        wait_for(signs / "hung")
        server.process.send_signal(signal.SIGTERM)
        answer = hanging.result()
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert server.wait() == 0


def test_a_start_that_hangs_says_so(place: Path, signs: Path) -> None:
    (signs / "hang").write_text(str(place / "other"))
    server = LiveServer(artifacts=place, model="other", load_timeout=1)
    assert server.wait() == 1
    assert server.num_said("took longer than --load-timeout, 1 s"), "".join(server.log)
