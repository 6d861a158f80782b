"""Several processes on one port: they are one server, and the death of one is not its end."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live import ROOT, LiveServer, live_server
from tests.load import NUM_KEPT, NUM_NEW, begin_a_request, head, under_load, wait_until_draining

FLAGS: dict[str, object] = {
    "device": "cpu",
    "max_batch_size": 4,
    "workers": 2,
    "drain_timeout": 60,
    "access_log": False,
}
ADMIN = {"Authorization": "Bearer of-the-admin"}
MANY = 30  # connections, of which each worker takes some


def pids(server: LiveServer) -> set[int]:
    """Of the workers."""
    command = ["pgrep", "--parent", str(server.process.pid), "--full", "spawn_main"]
    return {int(pid) for pid in subprocess.run(command, capture_output=True, check=False).stdout.split()}


def counted(server: LiveServer, metric: str) -> float:
    """A sample of /metrics, 0 where it is not there."""
    found = re.search(rf"^{re.escape(metric)} (\S+)$", httpx.get(f"{server.url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def wait_for_successor(server: LiveServer, before: set[int]) -> None:
    """Until a new worker is ready in the place of one of those before."""
    while not (pids(server) - before and counted(server, "residuum_ready") == 2):
        assert server.process.poll() is None, "".join(server.log)


def answers(server: LiveServer, path: str) -> list[Any]:
    """What many connections are answered."""
    return [httpx.get(server.url + path).json() for _ in range(MANY)]


def change(server: LiveServer, name: str, action: str) -> httpx.Response:
    return httpx.post(f"{server.url}/models/{name}/{action}", headers=ADMIN, timeout=60)


def names(server: LiveServer) -> set[frozenset[str]]:
    """The loaded models, as many connections see them."""
    return {frozenset(model["name"] for model in answer["models"]) for answer in answers(server, "/models")}


@pytest.fixture(scope="module")
def artifacts(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `resnet20`, and `broken`, whose graph is not what its manifest says."""
    directory = tmp_path_factory.mktemp("artifacts")
    shutil.copytree(artifact, directory / "resnet20")
    shutil.copytree(artifact, directory / "broken")
    for graph in (directory / "broken").glob("*.onnx"):
        graph.write_bytes(graph.read_bytes()[:-1])
    return directory


@pytest.fixture(scope="module")
def server(artifacts: Path) -> Iterator[LiveServer]:
    with live_server(**FLAGS, admin_key="of-the-admin", artifacts=artifacts) as running:
        yield running


@pytest.fixture
def doomed(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    """One that the test ends; its parameter: more settings."""
    running = LiveServer(**FLAGS, **getattr(request, "param", {}))
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.process.kill()
        running.wait()


# One server


def test_it_says_once_that_all_are_ready(server: LiveServer) -> None:
    [line] = server.log
    assert line.rstrip().endswith(f", 2 workers at {server.url}")
    assert len(pids(server)) == 2


def test_metrics_are_those_of_all_workers(server: LiveServer) -> None:
    metric = 'residuum_request_seconds_count{model="",route="/health/live",status="200"}'
    before = counted(server, metric)
    answers(server, "/health/live")
    assert {counted(server, metric) for _ in range(MANY)} == {before + MANY}
    assert counted(server, "residuum_ready") == 2


def test_models_are_loaded_and_unloaded_everywhere(server: LiveServer) -> None:
    [embedded] = names(server)
    answer = change(server, "resnet20", "load")
    assert answer.status_code == 200, answer.text
    assert names(server) == {embedded | {"resnet20"}}

    before = pids(server)
    os.kill(min(before), signal.SIGKILL)
    wait_for_successor(server, before)
    assert names(server) == {embedded | {"resnet20"}}, "a new worker must catch up"

    assert change(server, "resnet20", "unload").status_code == 200
    assert names(server) == {embedded}
    answer = change(server, "resnet20", "unload")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")


def test_what_cannot_be_loaded_is_loaded_nowhere(server: LiveServer) -> None:
    [before] = names(server)
    answer = change(server, "broken", "load")
    assert (answer.status_code, answer.json()["code"]) == (409, "load_refused")
    answer = change(server, "nothing", "load")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    assert names(server) == {before}


def test_a_worker_that_cannot_load_what_another_has_is_replaced(server: LiveServer) -> None:
    [models] = names(server)
    before = pids(server)
    poor = min(before)
    resource.prlimit(poor, resource.RLIMIT_NOFILE, (0, 0))  # it can open no file any more
    os.kill(poor, signal.SIGSTOP)  # so that the other one takes the call
    with httpx.Client(base_url=server.url, headers=ADMIN, timeout=60) as client:
        client.get("/models")
        os.kill(poor, signal.SIGCONT)
        answer = client.post("/models/resnet20/load")
    assert (answer.status_code, answer.json()["code"]) == (409, "load_refused")
    assert f"(pid {poor}) could not do it" in answer.json()["detail"]
    wait_for_successor(server, before)
    assert names(server) == {models | {"resnet20"}}
    assert change(server, "resnet20", "unload").status_code == 200


# Workers that die


@pytest.mark.parametrize("doomed", [{"hang_timeout": 5}], indirect=True)
def test_workers_that_leave_are_killed_or_hang_are_replaced_under_load(doomed: LiveServer) -> None:
    with under_load(doomed) as load:
        before = pids(doomed)
        os.kill(min(before), signal.SIGTERM)  # not by its supervisor
        wait_for_successor(doomed, before)
        assert not load.lost
        refused = load.statuses[503]

        before = pids(doomed)
        os.kill(min(before), signal.SIGKILL)
        load.wait_for(50)  # the other one goes on
        wait_for_successor(doomed, before)
        assert len(load.lost) <= NUM_KEPT + NUM_NEW  # what the killed one had in hand

        before = pids(doomed)
        os.kill(min(before), signal.SIGSTOP)
        wait_for_successor(doomed, before)
        assert len(load.lost) <= 2 * (NUM_KEPT + NUM_NEW)

        load.wait_for(50)
        assert load.statuses[503] == refused  # a new one listens only when it is ready
        lost = len(load.lost)
        assert doomed.stop() == 0, "".join(doomed.log)
    assert len(load.lost) == lost
    assert not load.not_closing
    assert set(load.statuses) == {200, 503}
    for words in ("exit code 0", "killed by SIGKILL", "hangs and is killed"):
        assert [line for line in doomed.log if words in line], "".join(doomed.log)


def test_one_that_dies_again_and_again_is_started_ever_more_seldom(doomed: LiveServer) -> None:
    [steady, _] = sorted(pids(doomed))
    for _ in range(2):
        before = pids(doomed)
        [victim] = before - {steady}
        os.kill(victim, signal.SIGKILL)
        wait_for_successor(doomed, before)
    assert doomed.stop() == 0
    assert re.findall(r"starts in (\d+) s", "".join(doomed.log)) == ["0", "1"]


def test_a_server_that_cannot_start_ends_as_one_process_does(tmp_path: Path) -> None:
    def serve(*flags: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "residuum", "serve", "--port", "0", *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stderr

    for flags in (("--model", "nix", "--artifacts", str(tmp_path)), ("--api-key-file", str(tmp_path / "no"))):
        code, message = serve(*flags, "--workers", "2")
        assert (code, message) == serve(*flags)
        assert (code, flags[1] in message) == (2, True)


# The end


@pytest.mark.parametrize("whom", ["the supervisor", "everybody"])
def test_every_request_under_load_is_answered(doomed: LiveServer, whom: str) -> None:
    """Ctrl-C in a terminal and systemd signal every process of the group."""
    with under_load(doomed) as load:
        if whom == "everybody":
            for pid in (*pids(doomed), doomed.process.pid):
                os.kill(pid, signal.SIGINT)
        else:
            doomed.process.send_signal(signal.SIGTERM)
        assert doomed.wait() == 0, "".join(doomed.log)
    assert not load.lost
    assert not load.not_closing
    assert set(load.statuses) == {200, 503}
    assert not [line for line in doomed.log if "ERROR" in line or "Traceback" in line]


def test_the_death_of_the_supervisor_ends_its_workers(doomed: LiveServer) -> None:
    with under_load(doomed) as load:
        doomed.process.kill()
        assert doomed.wait() == -signal.SIGKILL  # when nobody holds its end of stderr any more
    assert not load.lost
    assert set(load.statuses) == {200, 503}


def test_a_second_signal_ends_all_at_once(doomed: LiveServer) -> None:
    with begin_a_request(doomed, head(1000) + b"begin"):
        doomed.process.send_signal(signal.SIGTERM)
        wait_until_draining(doomed)
        assert doomed.stop() == 128 + signal.SIGTERM
