"""Several processes on one port: they are one server, and the death of one is not its end.

A start takes seconds, so the tests share a server where they can, and one test sees all that befalls workers.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.live import ROOT, LiveServer
from tests.support.load import begin_a_request, head, under_load, wait_until_draining

FLAGS: dict[str, object] = {
    "device": "cpu",
    "instances": 1,
    "threads": 1,
    "max_batch_size": 4,
    "workers": 2,
    "drain_timeout": 60,
    "access_log": False,
}
ADMIN = {"Authorization": "Bearer of-the-admin"}
LOAD = b"POST /models/other/load HTTP/1.1\r\nHost: a\r\nX-API-Key: of-the-admin\r\nContent-Length: 0\r\n\r\n"
MANY = 30  # connections, of which each worker takes some


def pids(server: LiveServer) -> set[int]:
    """Of the workers."""
    command = ["pgrep", "--parent", str(server.process.pid), "--full", "spawn_main"]
    return {int(pid) for pid in subprocess.run(command, capture_output=True, check=False).stdout.split()}


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """For moments: whoever is stopped for seconds is replaced."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def replacing(server: LiveServer) -> Iterator[None]:
    """What happens within ends a worker; until the next one is ready."""
    ready = server.num_said("is ready")
    yield
    server.wait_until_said("is ready", ready + 1)


def ask(server: LiveServer, path: str) -> str:
    """What is answered on a connection of its own."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.status == 200, text
    return text


def counted(server: LiveServer, metric: str) -> float:
    """A sample of /metrics, 0 where it is not there."""
    found = re.search(rf"^{re.escape(metric)} (\S+)$", ask(server, "/metrics"), re.MULTILINE)
    return float(found[1]) if found else 0.0


def change(server: LiveServer, name: str, action: str) -> httpx.Response:
    return httpx.post(f"{server.url}/models/{name}/{action}", headers=ADMIN, timeout=60)


def names_on_one(server: LiveServer) -> frozenset[str]:
    models: list[dict[str, Any]] = json.loads(ask(server, "/models"))["models"]
    return frozenset(model["name"] for model in models)


def names(server: LiveServer) -> set[frozenset[str]]:
    """The loaded models, as many connections see them."""
    return {names_on_one(server) for _ in range(MANY)}


@pytest.fixture(scope="module")
def artifacts(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `other`, and `broken`, whose graphs are not what its manifest says."""
    directory = tmp_path_factory.mktemp("artifacts")
    for name in ("other", "broken"):
        shutil.copytree(embedded, directory / name)
        manifest = json.loads((directory / name / "manifest.json").read_bytes())
        (directory / name / "manifest.json").write_text(json.dumps(manifest | {"name": name}))
    for graph in (directory / "broken").glob("*.onnx"):
        graph.write_bytes(graph.read_bytes()[:-1])
    return directory


@contextmanager
def running(**settings: object) -> Iterator[LiveServer]:
    """One that a test may end."""
    server = LiveServer(**FLAGS | settings)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.process.kill()
        server.wait()


@pytest.fixture(scope="module")
def server(artifacts: Path) -> Iterator[LiveServer]:
    with running(admin_key="of-the-admin", artifacts=artifacts) as started:
        yield started


# One server


def test_it_says_once_that_all_are_ready(server: LiveServer) -> None:
    [line] = server.log
    assert line.rstrip().endswith(f", 2 workers at {server.url}")
    assert len(pids(server)) == 2


def test_metrics_are_those_of_all_workers(server: LiveServer) -> None:
    metric = 'residuum_request_seconds_count{model="",route="/health/live",status="200"}'
    before = counted(server, metric)
    for _ in range(MANY):
        ask(server, "/health/live")
    while counted(server, metric) < before + MANY:  # a request is counted when its answer is out
        assert server.process.poll() is None, "".join(server.log)
    assert {counted(server, metric) for _ in range(MANY)} == {before + MANY}
    assert counted(server, "residuum_ready") == 2


def test_models_are_loaded_and_unloaded_everywhere(server: LiveServer) -> None:
    [embedded] = names(server)
    answer = change(server, "other", "load")
    assert answer.status_code == 200, answer.text
    assert names(server) == {embedded | {"other"}}
    assert change(server, "other", "unload").status_code == 200
    assert names(server) == {embedded}
    answer = change(server, "other", "unload")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")


def test_what_cannot_be_loaded_is_loaded_nowhere(server: LiveServer) -> None:
    [before] = names(server)
    answer = change(server, "broken", "load")
    assert (answer.status_code, answer.json()["code"]) == (409, "load_refused")
    answer = change(server, "nothing", "load")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    assert names(server) == {before}


def test_a_worker_that_is_killed_while_it_waits_to_load_holds_up_nobody(server: LiveServer) -> None:
    """Two loads, of which the other worker's part in the first one takes long."""
    [models] = names(server)
    slow, victim = pids(server)
    with replacing(server), stopped(slow), begin_a_request(server, LOAD):
        while names_on_one(server) == models:  # the victim has made the first load
            assert server.process.poll() is None, "".join(server.log)
        with begin_a_request(server, LOAD):
            for _ in range(MANY):  # by now it has asked its supervisor for the second one
                ask(server, "/health/live")
            os.kill(victim, signal.SIGKILL)
            server.wait_until_said("killed by SIGKILL")
    with stopped(slow):
        assert names_on_one(server) == models | {"other"}, "a new worker must catch up"
    assert change(server, "other", "unload").status_code == 200
    assert names(server) == {models}


def test_a_worker_that_cannot_load_what_another_has_is_replaced(server: LiveServer) -> None:
    [models] = names(server)
    poor, other = pids(server)
    resource.prlimit(poor, resource.RLIMIT_NOFILE, (0, 0))  # it can open no file any more
    with replacing(server):
        with httpx.Client(base_url=server.url, headers=ADMIN, timeout=60) as client:
            with stopped(poor):  # so that the other one takes the call
                client.get("/models")
            answer = client.post("/models/other/load")
        assert (answer.status_code, answer.json()["code"]) == (409, "load_refused")
        assert f"(pid {poor}) could not do it" in answer.json()["detail"]
    with stopped(other):
        assert names_on_one(server) == models | {"other"}
    assert change(server, "other", "unload").status_code == 200


def test_a_second_signal_ends_all_at_once(server: LiveServer) -> None:
    """The last one that has this server."""
    with begin_a_request(server, head(1000) + b"begin"):
        server.process.send_signal(signal.SIGTERM)
        wait_until_draining(server)
        assert server.stop() == 128 + signal.SIGTERM


# Workers that die, and the end


def test_workers_that_leave_are_killed_or_hang_are_replaced_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # Few clients, so that a new worker has a core to start on.
    with running(hang_timeout=5) as server, under_load(server, num_kept=2, num_new=1) as load:
        steady = min(pids(server))

        def end_one(signal_number: int) -> int:
            """Always the successor of the one before."""
            with replacing(server):
                [victim] = pids(server) - {steady}
                os.kill(victim, signal_number)
                load.wait_for(50)  # the other one goes on
            return len(load.lost)

        assert end_one(signal.SIGTERM) == 0  # not by its supervisor
        refused = load.statuses[503]
        files = {path.name for path in tmp_path.glob("residuum-*/*")}
        # What the killed one had in hand.
        assert end_one(signal.SIGKILL) <= 3
        assert end_one(signal.SIGSTOP) <= 6

        load.wait_for(50)
        assert load.statuses[503] == refused  # a new one listens only when it is ready
        assert {path.name for path in tmp_path.glob("residuum-*/*")} == files
        lost = len(load.lost)
        assert server.stop() == 0, "".join(server.log)
    assert len(load.lost) == lost
    assert not load.not_closing
    assert set(load.statuses) == {200, 503}
    for words in ("exit code 0", "killed by SIGKILL", "hangs and is killed"):
        assert server.num_said(words), "".join(server.log)
    pauses = re.findall(r"starts in (\d+) s", "".join(server.log))
    assert pauses == ["0", "1", "2"], "one that dies again and again is started ever more seldom"
    assert not list(tmp_path.glob("residuum-*"))


def test_every_request_under_load_is_answered_when_all_are_told_to_stop() -> None:
    """Ctrl-C in a terminal and systemd signal every process of the group."""
    with running() as server, under_load(server) as load:
        for pid in (*pids(server), server.process.pid):
            os.kill(pid, signal.SIGINT)
        assert server.wait() == 0, "".join(server.log)
    assert not load.lost
    assert not load.not_closing
    assert set(load.statuses) == {200, 503}
    assert not [line for line in server.log if "ERROR" in line or "Traceback" in line]


def test_the_death_of_the_supervisor_ends_its_workers() -> None:
    with running() as server, under_load(server) as load:
        server.process.kill()
        assert server.wait() == -signal.SIGKILL  # when nobody holds its end of stderr any more
    assert not load.lost
    assert set(load.statuses) == {200, 503}


def test_a_server_that_cannot_start_ends_as_one_process_does(tmp_path: Path) -> None:
    def serve(*flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "residuum", "serve", "--port", "0", *flags]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def end(started: subprocess.Popen[str]) -> tuple[int, str]:
        _, message = started.communicate(timeout=120)
        return started.returncode, message

    for flags in (("--model", "nix", "--artifacts", str(tmp_path)), ("--api-key-file", str(tmp_path / "no"))):
        alone, several = serve(*flags), serve(*flags, "--workers", "2")
        code, message = end(several)
        assert (code, message) == end(alone)
        assert (code, flags[1] in message) == (2, True)
