"""benchmarks.http: statistics, photographs, peers, tables, aims and chart."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from email import message_from_bytes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifact.manifest import Preprocessing, read_manifest
from artifact.preprocess import preprocess
from artifact.store import EMBEDDED
from benchmarks import http
from benchmarks.http import summarise_rounds
from benchmarks.http_chart import draw
from benchmarks.http_loads import OVERLOADS
from benchmarks.http_report import judge, print_ceiling, print_ours, print_servers
from benchmarks.http_servers import (
    LITSERVE_FULL,
    OURS,
    OURS_FULL,
    REQUIREMENTS,
    SERVERS,
    Running,
    make_target,
)
from benchmarks.http_subject import Ceiling, agreement, photographs, rate_of, subject
from benchmarks.load import Target
from benchmarks.theory import Machine
from tests.support.live import ROOT

AMX = Machine("cpu", "a processor", 2, 2.0, ("avx2", "amx_int8"), None, {}, 1e9, 1e9)
BEST = Ceiling(2, 2.0, 1000.0, 4.0, 250.0, "openvino", 2, 4, ())


# --- what is sent, and to whom ------------------------------------------------------------------------


def test_made_up_photographs_are_as_large_as_real_ones(tmp_path: Path) -> None:
    paths = photographs(None, tmp_path)
    assert len({path.read_bytes() for path in paths}) == len(paths) == 16
    for path in paths:
        assert 50_000 < path.stat().st_size < 100_000
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")


def test_photographs_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert http.main(["--images", str(tmp_path)]) == 2
    assert "no .jpg or .jpeg file" in capsys.readouterr().err
    for name in ("b.JPEG", "a.jpg", "c.png"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in photographs(tmp_path, tmp_path)] == ["a.jpg", "b.JPEG"]


def test_a_form_carries_the_image(tmp_path: Path) -> None:
    (file := tmp_path / "a.jpg").write_bytes(b"\xff\xd8\r\n--benchmark no end\r\n\x00")
    tutorial = next(server for server in SERVERS if server.field == "file")
    target = make_target(tutorial, 80, [file], tmp_path)
    form = message_from_bytes(
        f"Content-Type: {target.content_type}\r\n\r\n".encode() + target.bodies[0].read_bytes()
    )
    (part,) = form.get_payload()
    assert part.get_param("name", header="content-disposition") == "file"
    assert part.get_payload(decode=True) == file.read_bytes()


def test_peers_have_the_engines_that_we_have() -> None:
    ours = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    peers = dict(re.findall(r"^([\w-]+)==(\S+)$", REQUIREMENTS.read_text(), re.MULTILINE))
    shared = {"fastapi", "numpy", "onnxruntime", "openvino", "pillow", "uvicorn"}
    assert {name: peers[name] for name in shared} == {name: ours[name] for name in shared}


def test_peers_see_our_pixels_and_run_our_graph(
    tmp_path: Path, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEER_ARTIFACT", str(embedded))
    from benchmarks.peers import common

    file = photographs(None, tmp_path)[0].read_bytes()
    spec: Preprocessing = read_manifest(embedded).preprocessing
    seen = []
    for scaled in (True, False):
        spec = spec.model_copy(update={"scaled_decoding": scaled})
        monkeypatch.setattr(common, "SCALED_DECODING", scaled)
        pixels = preprocess(file, spec).pixels
        assert (common.pixels_of(file) == pixels).all()
        assert (common.pixels_of(turned(file)) == preprocess(turned(file), spec).pixels).all()
        seen.append(pixels)
    assert (seen[0] != seen[1]).any()
    logits = common.open_int8(threads=1)(pixels[None])[0]
    best = common.answer(logits)["predictions"]
    assert [prediction["index"] for prediction in best] == list(np.argsort(-logits)[:5])
    assert best[0]["probability"] == pytest.approx(np.exp(logits.max()) / np.exp(logits).sum(), rel=1e-5)


def turned(data: bytes) -> bytes:
    """Upright instead of broad."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_processor_time_of_a_server_is_that_of_all_its_processes() -> None:
    """A child burns half a second in a session of its own, as BentoML's workers run."""
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
    parent = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], start_new_session=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert Running(Target("", "", []), process).cpu_s() > 0.3  # the kernel counts by sampling
        process.communicate(b"\n")


def test_a_copy_of_the_embedded_model_decodes_at_full_size(tmp_path: Path) -> None:
    served = subject(EMBEDDED, tmp_path)
    assert served.full is not None
    ours, full = served.manifest, read_manifest(served.full)
    assert (full.preprocessing.scaled_decoding, ours.preprocessing.scaled_decoding) == (False, True)
    scaled = full.preprocessing.model_copy(update={"scaled_decoding": True})
    assert full.model_copy(update={"preprocessing": scaled}) == ours


def test_agreement() -> None:
    assert agreement([{1, 2}, {3, 4}], [{1, 2}, {4, 5}]) == 0.75


def test_a_rate_counts_all_threads() -> None:
    done = []
    assert rate_of(lambda: done.append(1), 2, 0.01) > 0
    assert len(done) >= 4  # each once before it counts, and at least once after


def test_the_ceiling_does_both_one_after_the_other() -> None:
    assert BEST.requests_per_s == pytest.approx(200)  # 1000 decodes or 250 inferences a second


# --- tables -------------------------------------------------------------------------------------------


def one_round(rate: float, **more: Any) -> dict[str, Any]:
    usual = {"p50_ms": 80.0, "p99_ms": 90.0, "statuses": {"200": 10, "503": 2}, "unanswered": 0}
    usual |= {"server_ms": 4.25, "client_ms": 0.05}
    return {"requests_per_s": rate, "agreement": 0.9, **usual, **more}


@pytest.fixture
def document() -> dict[str, Any]:
    """As benchmarks.http makes it, of two rounds in which each peer was slow once, and one failed once."""
    rates = {OURS: (200, 100), "tutorial": (10, 4), "litserve-ort": (60, 25), "litserve-openvino": (100, 50)}
    rates |= {OURS_FULL: (60, 75), LITSERVE_FULL: (40, 50)}
    rows = {
        server.name: {"title": server.title, "rounds": [one_round(rate) for rate in rates[server.name]]}
        for server in SERVERS
        if server.name in rates
    }
    rows["bentoml"] = {"title": "BentoML", "rounds": [{"problem": "it ended\nlog"}, one_round(20)]}
    rows["fastapi"] = {"title": "FastAPI", "rounds": [{"problem": "it ended\nlog"}] * 2}
    summarise_rounds(rows, [200, 200])
    overloads = [
        {"times": times, "rate": 150 * times, "goodput": 140, "p50_ms": 300.0, "p99_ms": None, "late": 1}
        | {"sent_late_ms": 0.5, "client_ms": 0.1, "statuses": {"200": 1}}
        for times in OVERLOADS
    ]
    ours = {
        "engine": "openvino",
        "precision": "int8",
        "alone": one_round(100, decode_ms=3.0, inference_ms=9.0, overhead_ms=0.5),
        "introspect": one_round(90, decode_ms=3.0, inference_ms=9.0, overhead_ms=1.6),
        "crowds": {"retry at once": one_round(148), "heed Retry-After": one_round(120)},
        "steady": {"rate": 105.0, "p50_ms": 40.0, "p99_ms": 90.0, "statuses": {"200": 9}},
        "overloads": overloads,
    }
    measured = {
        "model": "resnet50-random",
        "ceiling": BEST.as_json() | {"rounds": [200, 200]},
        "servers": rows,
        "ours": ours,
        "budget": {"beside_ms": 0.4, "refusal_ms": 0.06},
    }
    return {
        "machine": AMX.as_json(),
        "images": {"count": 16, "mean_bytes": 70_000.0},
        "settings": {"connections": 16, "limit_ms": 1000.0},
        "models": {"resnet50": measured},
    }


@pytest.fixture
def measured(document: dict[str, Any]) -> dict[str, Any]:
    """What was measured of the only model."""
    (found,) = document["models"].values()
    return found


def test_a_ratio_is_the_median_of_the_rounds_own(measured: dict[str, Any]) -> None:
    rows = measured["servers"]
    assert rows[OURS]["requests_per_s"] == 150
    assert rows[OURS]["ours_is_times"] == 1
    assert rows[OURS]["of_ceiling"] == 0.75
    assert (rows["bentoml"]["of_ceiling"], rows["fastapi"]["of_ceiling"]) == (0.1, None)
    assert rows["tutorial"]["ours_is_times"] == pytest.approx((20 + 25) / 2)
    assert rows["bentoml"]["ours_is_times"] == 5  # of the round in which it ran
    assert rows["fastapi"]["requests_per_s"] is None


def test_aims(measured: dict[str, Any]) -> None:
    rows, ours, budget = measured["servers"], measured["ours"], measured["budget"]
    met = {aim["aim"]: aim["met"] for aim in judge(rows, ours, budget, AMX, "resnet50")}
    common = {
        "cpu ms beside decode, resize, engine": True,
        "cpu ms of a refusal": False,
        "ms beside decode and inference, 1 connection": False,
        "p99 / p50 at 70 %": False,
        "goodput at 2 times the peak, of it": False,
        "late at 2 times the peak": False,
        "goodput at 3 times the peak, of it": False,
        "late at 3 times the peak": False,
        "300 connections that retry at once, of the peak": True,
    }
    assert met == common | {
        "/ the better LitServe": None,
        "/ LitServe, both decoding at full size": None,
        "/ LitServe that decodes at full size": None,
        "/ FastAPI + ORT int8": None,
        "/ LitServe on the same engine": True,
        "/ LitServe + ORT int8": True,
        "/ LitServe on the same engine, AMX": True,
        "/ FastAPI + torch fp32": True,
        "of the ceiling": False,  # 150 of 200
        "ms beside decode and graph, introspect": None,
    }
    small = {aim["aim"]: aim for aim in judge(rows, ours, budget, AMX, "embedded")}
    assert {name: aim["met"] for name, aim in small.items()} == common | {
        "/ the better LitServe": True,
        "/ LitServe, both decoding at full size": False,  # 1.5
        "/ LitServe that decodes at full size": True,
        "/ FastAPI + ORT int8": None,  # it failed in every round
        "/ LitServe on the same engine": None,
        "/ LitServe + ORT int8": None,
        "/ LitServe on the same engine, AMX": None,
        "/ FastAPI + torch fp32": None,
        "of the ceiling": True,
        "ms beside decode and graph, introspect": False,
    }
    assert small["/ the better LitServe"]["value"] == rows["litserve-openvino"]["ours_is_times"]
    assert small["/ LitServe on the same engine"]["why"] == "only for ResNet-50 at 224 pixels"


def test_aims_that_do_not_apply(measured: dict[str, Any]) -> None:
    rows, ours = measured["servers"], measured["ours"]
    elsewhere = judge(rows, ours, None, replace(AMX, features=("avx2",)), "resnet50")
    assert [aim["why"] for aim in elsewhere[5:8]] == ["no AMX"] * 3
    no_budget = [aim["why"] for aim in elsewhere if aim["aim"].startswith("cpu ms")]
    assert no_budget == ["not measured in this run"] * 2
    alone = judge({OURS: rows[OURS]}, ours, None, AMX, "resnet50")
    assert [aim["why"] for aim in alone[4:8]] == ["not measured in this run"] * 4
    ours["overloads"] = ours["overloads"][:1]
    assert {aim["why"] for aim in judge(rows, ours, None, AMX, "resnet50")[-5:-1]} == {
        "not measured in this run"
    }
    assert {aim["met"] for aim in judge(rows, None, None, AMX, "resnet50")} == {None}


def test_tables_and_chart(
    document: dict[str, Any], measured: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_ceiling(BEST, "resnet50", photographs(None, tmp_path))
    print_servers(measured["servers"], 16)
    print_ours(measured["ours"], measured["servers"][OURS])
    lines = capsys.readouterr().out.splitlines()
    (tutorial,) = (line for line in lines if line.startswith("FastAPI + torch fp32"))
    assert tutorial.split()[4:] == [
        "7.0",
        "4.0",
        "-",
        "10.0",
        "4%",
        "22.50x",
        "80.0",
        "90.0",
        "4.25",
        "90%",
        "4",
    ]
    assert any(line.startswith("FastAPI  ") and line.endswith("failed: it ended") for line in lines)
    assert any("200.0 requests/s" in line for line in lines)
    assert any("75.0% of the ceiling" in line for line in lines)
    draw(json.loads(json.dumps(document)), tmp_path / "charts" / "http.png")
    with Image.open(tmp_path / "charts" / "http.png") as image:
        image.load()
        assert image.width > 1000
    assert any(line.startswith("heed Retry-After") and "80.0%" in line for line in lines)
    document["models"]["embedded"] = {**measured, "ours": None}
    draw(document, tmp_path / "two.png")
    with Image.open(tmp_path / "charts" / "http.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.height > one.height
    (found,) = {model["ceiling"]["requests_per_s"] for model in document["models"].values()}
    assert not math.isnan(json.loads(json.dumps(found, allow_nan=False)))
