"""benchmarks.gpu: the whole kit on a CPU, its time limits, and wheels in pieces. No timing is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
import zipfile
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.closed_loop import closed_loops
from benchmarks.gpu import STEPS, Context, Step, run_steps
from benchmarks.gpu_int8 import compare
from benchmarks.gpu_ways import WAYS, failures, fastest, with_ratios
from benchmarks.gpu_wheels import PACKAGES, WheelsError, install, join, split
from benchmarks.http_subject import made_up_photograph
from benchmarks.load import Target
from tests.support.live import ROOT, live_server

# What a machine of this kind has, among what serving needs.
THERE = {
    "annotated-doc", "anyio", "click", "flatbuffers", "h11", "idna", "markdown-it-py", "mdurl", "numpy",
    "packaging", "pillow", "prometheus-client", "protobuf", "pygments", "pyyaml", "rich", "typing-extensions",
}  # fmt: skip
CPU_TITLES = {way.title for way in WAYS["cpu"]}


# --- the whole kit -----------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_every_step_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--seconds", "840"]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    document = json.loads(done.stdout.splitlines()[-1])
    assert document == json.loads(out.read_text(encoding="utf-8"))
    assert (document["failures"], document["skipped"]) == ([], [])
    assert all("error" not in document[name] for name in (step.name for step in STEPS))
    assert document["environment"]["ceilings"]["macs_per_s"] > 0
    for name in ("engines", "resnet50", "introspect"):
        rows = document[name]["rows"]
        assert {row["way"] for row in rows} == CPU_TITLES
        assert all(row["right"] and row["fresh_right"] and row["images_per_s"] > 0 for row in rows)
    kinds = {(row["way"], row["graph"]) for row in document["introspect"]["rows"]}
    assert len(kinds) == len(CPU_TITLES) * 3
    assert all(row["ratio_to_classify"] > 0 for row in document["introspect"]["rows"])
    trained = document["trained"]
    assert trained["torch_top1"] > 0.2  # of ten classes, after eight steps
    assert {row["way"] for row in trained["rows"]} == CPU_TITLES
    assert all(
        row["right"] and row["of_range"] < 1e-4 and row["top1_agreement"] == 1 for row in trained["rows"]
    )
    assert [row["workers"] for row in document["http"]["rows"]] == [1, 2]
    assert all(row["agreement"] > 0.9 and row["statuses"]["200"] > 0 for row in document["http"]["rows"])
    placements = document["int8"]["placements"]
    assert list(placements) == ["both", "shortcut"]
    assert all(found["rmse_of_std"] < 0.1 for found in placements.values())
    assert document["int8"]["faster"] is None  # without TensorRT it is not timed


# --- limits ------------------------------------------------------------------------------------------

MODULE = """
import subprocess, sys, time

def subject(context):
    return {"directory": str(context.folder)}

def good(context):
    print("this is no JSON")
    rows = [{"way": "TensorRT", "unavailable": "no library"}]
    return {"rows": rows, "failures": [], "read": context.found("subject")["directory"]}

def bad(context):
    context.keep("bad", {"rows": [1]})
    raise ValueError("no such thing")

def wrong(context):
    return {"failures": ["7 is not 8"]}

def dead(context):
    sys.exit(3)

def hung(context):
    context.keep("hung", {"rows": [2]})
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    context.keep("hung", {"rows": [2], "child": child.pid})
    time.sleep(600)
"""


def made_up(names: str, module: str, hung_s: float = 3) -> list[Step]:
    return [Step(name, module, hung_s if name == "hung" else 60, name != "subject") for name in names.split()]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "made_up_steps.py").write_text(MODULE, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}


@pytest.mark.slow
def test_a_step_that_fails_or_hangs_leaves_the_others(tmp_path: Path, environment: dict[str, str]) -> None:
    steps = made_up("subject good bad wrong dead hung good", "made_up_steps")
    found = run_steps(steps, Context("cpu", True, tmp_path), environment, time.monotonic() + 200)
    assert found["good"]["read"] == str(tmp_path)
    assert found["bad"]["rows"] == [1]
    assert found["bad"]["error"].endswith("ValueError: no such thing")
    assert found["dead"]["error"] == "ended with 3"
    assert (found["hung"]["error"], found["hung"]["rows"]) == ("stopped after 3 s", [2])
    assert is_over(found["hung"]["child"])
    assert found["failures"] == [
        "bad: ValueError: no such thing",
        "wrong: 7 is not 8",
        "dead: ended with 3",
        "hung: stopped after 3 s",
    ]
    assert (found["skipped"], found["unavailable"]) == ([], ["TensorRT: no library"])


def is_over(pid: int) -> bool:
    """True if a process is gone, or was killed and only waits for its parent to read that."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return True


@pytest.mark.slow
def test_without_a_subject_or_time_a_step_is_skipped(tmp_path: Path, environment: dict[str, str]) -> None:
    context = Context("cpu", True, tmp_path)
    late = run_steps(made_up("subject good", "made_up_steps"), context, environment, time.monotonic())
    assert late["good"] == {"skipped": "subject: there is none"}
    steps = [replace(step, needs_subject=False) for step in made_up("subject good", "made_up_steps")]
    assert run_steps(steps, context, environment, time.monotonic())["skipped"] == ["good"]


def test_what_rows_say() -> None:
    first = {"precision": "fp16", "batch": 1, "right": True}
    rows = [
        {"way": "a", "graph": "classify", "images_per_s": 10.0} | first,
        {"way": "a", "graph": "introspect", "images_per_s": 8.0} | first,
        {"way": "b", "graph": "classify"} | first | {"right": False},
        {"way": "c", "precision": "fp16", "unavailable": "no GPU"},
        {"way": "d", "precision": "fp16", "batch": 8, "fresh_right": False, "max_abs_delta_logit": 3.0},
        {"way": "e", "precision": "fp16", "error": "out of memory"},
    ]
    assert [row.get("ratio_to_classify") for row in with_ratios(rows)[:3]] == [1.0, 0.8, None]
    assert fastest(rows) is rows[0]
    assert fastest(rows[2:]) is None
    assert [line[0] for line in failures(rows)] == ["b", "d", "e"]
    assert failures(rows)[2].endswith("out of memory")
    assert failures(rows[3:4]) == ["nothing ran"]
    assert failures(rows[3:4], may_be_none=True) == []


def test_how_far_int8_is_from_fp32() -> None:
    exact = np.array([[1.0, 3.0], [4.0, 2.0]])
    found = compare(exact + np.array([[0.0, 0.5], [-3.0, 0.5]]), exact)
    assert (found["max_abs_delta_logit"], found["top1_agreement"]) == (3.0, 0.5)
    assert found["rmse_of_std"] == pytest.approx(np.sqrt((0.25 + 9 + 0.25) / 4) / exact.std())


# --- load without wrk --------------------------------------------------------------------------------


def test_a_closed_loop_counts_what_a_server_answers(embedded: Path, tmp_path: Path) -> None:
    body = tmp_path / "0.jpg"
    made_up_photograph(0).save(body)
    with live_server(model=embedded) as server:
        found = closed_loops(Target(f"{server.url}/classify", "image/jpeg", [body]), 4, 1.0, processes=2)
        assert found["connections"] == 4
        assert set(found["statuses"]) == {"200"}
        assert found["requests_per_s"] == found["statuses"]["200"]
        assert 0 < found["p50_ms"] <= found["p99_ms"]
        refused = closed_loops(Target(f"{server.url}/nothing", "image/jpeg", [body]), 1, 0.5, processes=1)
        assert set(refused["statuses"]) == {"404"}


# --- wheels ------------------------------------------------------------------------------------------


def a_wheel(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path, info = folder / "madeup-1.0-py3-none-any.whl", "madeup-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("madeup.py", f"NOTHING = {'7' * 5000}")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: madeup\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.slow
def test_a_wheel_in_pieces_is_joined_and_installed(tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path / "wheels")
    whole = wheel.read_bytes()
    pieces = split(wheel, 2000)
    assert [piece.suffix for piece in pieces] == [".00", ".01", ".02"]
    assert not wheel.exists()
    (joined,) = join(tmp_path / "wheels", tmp_path / "joined")
    assert joined.read_bytes() == whole
    install(tmp_path / "wheels", tmp_path / "site")
    assert (tmp_path / "site" / "madeup.py").is_file()


@pytest.mark.parametrize(("lost", "message"), [(1, "piece 01 is missing"), (2, "no whole wheel")])
def test_a_lost_piece_is_told(lost: int, message: str, tmp_path: Path) -> None:
    split(a_wheel(tmp_path / "wheels"), 2000)[lost].unlink()
    with pytest.raises(WheelsError, match=message):
        join(tmp_path / "wheels", tmp_path / "joined")
    with pytest.raises(WheelsError, match="holds no wheels"):
        join(tmp_path, tmp_path / "joined")


def needed_by(requirements: list[str]) -> set[str]:
    """Return the names of these distributions and of all that they need, as installed here."""
    found: set[str] = set()
    left = [Requirement(line) for line in requirements]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name in found and not requirement.extras:
            continue
        found.add(name)
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                left.append(needed)
    return found


def test_what_serving_needs_is_carried_or_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert needed_by(project["dependencies"]) - set(PACKAGES) <= THERE
