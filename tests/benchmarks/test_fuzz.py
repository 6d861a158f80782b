"""benchmarks: fuzz and soak find nothing wrong with our server, and something wrong with servers that err."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fuzz, soak
from benchmarks.growth import judge
from benchmarks.hostile import bombs, forms, images, inference
from benchmarks.hostile.inference import Model
from benchmarks.soak_clients import CLIENTS
from tests.support.images import code_of

FLAGS = ("--", "--engine", "onnxruntime", "--precision", "fp32", "--threads", "1")
MODEL = Model("a-model", "1", 8)
SOUND = {"results": [{"predictions": [{"index": 3, "logit": 1.5}]}]}
METRICS = {
    "process_resident_memory_bytes": 2.0**20,
    "process_open_fds": 9,
    "residuum_ready": 1,
    "residuum_queue_entries": 0,
}


# --- what is sent ------------------------------------------------------------------------------------


def test_a_case_depends_on_its_seed_and_number_alone() -> None:
    for make in (forms.image_request, lambda chance: inference.inference_request(chance, MODEL)):
        first, again, other = (
            [make(random.Random(f"{seed}/{number}")) for number in range(100)] for seed in (0, 0, 1)
        )
        assert first == again
        assert first != other


def test_everything_that_can_be_wrong_comes_up() -> None:
    chance = random.Random(0)
    kinds = Counter(forms.image_request(chance).what for _ in range(3000))
    kinds.update(inference.inference_request(chance, MODEL).what for _ in range(1000))
    wanted = {mutation.__name__ for mutation in images.MUTATIONS}
    wanted |= {f"form {form.__name__}" for form in forms.FORMS}
    wanted |= {f"inference {oddity.__name__}" for oddity in inference.ODDITIES if oddity.__name__ != "bomb"}
    assert wanted <= set(kinds)


@pytest.mark.parametrize("make", bombs.BOMBS)
def test_every_bomb_is_an_image_or_refused(make: bombs.Bomb) -> None:
    """An unsupported image would be no bomb, but noise."""
    codes = {code_of(make(random.Random(seed), forms.corpus())) for seed in range(3)}
    assert codes <= {"ok", "too_many_bytes", "too_many_pixels", "truncated_image", "corrupt_image"}


def test_mutations_mostly_reach_the_decoder() -> None:
    """Noise would be refused for its signature; half of the PNGs have right checksums again."""
    chance = random.Random(0)
    codes = Counter(code_of(images.mutated(chance, forms.corpus())[1]) for _ in range(500))
    assert codes["ok"] > 50
    assert codes["corrupt_image"] > 50
    assert codes["truncated_image"] > 50
    damaged = bytearray(forms.corpus()[5])
    damaged[20] ^= 1
    assert images.with_right_checksums(bytes(damaged)) != bytes(damaged)
    assert images.with_right_checksums(forms.corpus()[5]) == forms.corpus()[5]


def test_a_sound_inference_is_sound() -> None:
    """Else all that is done to it would be refused for one and the same reason."""
    for seed in range(20):
        request = inference.sound_inference(random.Random(seed), MODEL)
        (tensor,) = request.document["inputs"]
        if "data" in tensor:
            assert len(tensor["data"]) == 8 * 8 * 3
        else:
            assert tensor["parameters"]["binary_data_size"] == len(request.tail)


# --- our server --------------------------------------------------------------------------------------


@pytest.mark.slow  # starts a server
def test_hostile_requests_do_our_server_no_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = fuzz.main(["--count", "500", "--findings", str(tmp_path), *FLAGS])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["findings"] == []
    assert code == 0
    assert found["count"] == 500
    assert found["outcomes"].keys() >= {"200", "422 corrupt_image", "422 truncated_image", "v2 400", "v2 200"}


@pytest.mark.slow  # starts a server
def test_a_short_soak(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(soak.GROWTH, "memory_mib", 1000.0)  # in seconds nothing is warm
    code = soak.main(["--minutes", "0.05", *FLAGS])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["findings"] == []
    assert code == 0
    assert {outcome.partition(":")[0] for outcome in found["outcomes"]} >= set(CLIENTS)
    assert found["gauges_after"] == {"residuum_queue_entries": 0, "residuum_decoding_images": 0}


# --- servers that err --------------------------------------------------------------------------------


@contextmanager
def erring_server(error: str) -> Iterator[str]:
    """Answers as ours would to sound requests, but for the one thing."""
    num_posts = num_scrapes = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            nonlocal num_scrapes
            if self.path == "/metrics":
                num_scrapes += 1
                values = METRICS | (
                    {"process_resident_memory_bytes": 2.0**20 * 40 * num_scrapes} if error == "leak" else {}
                )
                values |= {"residuum_queue_entries": 1} if error == "gauge" else {}
                values |= {"process_open_fds": 9 + 5 * num_scrapes} if error == "files" else {}
                self.answer(200, "".join(f"{name} {value}\n" for name, value in values.items()).encode())
            else:
                graph = {"golden_tolerance": 0.01}
                model = {"name": "m", "version": "1", "input_size": 8, "manifest": {"graphs": [graph]}}
                self.answer(200, json.dumps({"models": [model], **model}).encode())

        def do_POST(self) -> None:
            nonlocal num_posts
            num_posts += 1
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            logit = 2.5 if error == "wrong" and num_posts > 8 else 1.5
            sound = json.dumps(SOUND).replace("1.5", str(logit)).encode()
            if num_posts <= 8 or error in ("wrong", "leak", "gauge", "files"):
                self.answer(200, sound)
            elif error == "lost":
                self.close_connection = True
            elif error == "silent":
                stopped.wait(60)
            elif error == "unready":
                self.answer(503, b'{"status": 503, "code": "not_ready"}')
            else:
                self.answer(int(error[:3]), error[3:].encode())

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None: ...

    stopped = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        stopped.set()
        server.shutdown()
        thread.join()


@pytest.mark.slow  # waits for clients
@pytest.mark.parametrize(
    ("error", "finding"),
    [
        ("500{}", "status 500"),
        ("200NaN", "cannot be read"),
        ("422traceback", "cannot be read"),
        ('422{"error": "a"}', "without a problem document"),
        ("unready", "no longer well"),
        ("lost", "no answer"),
        ("silent", "TimeoutError"),
        ("wrong", "a sound image was answered with"),
        ("gauge", "residuum_queue_entries is 1"),
        ("files", "more files are open"),
        ("leak", "memory grew"),
    ],
)
def test_what_goes_wrong_is_found(
    error: str,
    finding: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fuzz, "SETTLE_S", 0)
    monkeypatch.setattr(fuzz, "SAMPLE_S", 0.001)
    with erring_server(error) as url:
        command = ["--kind", "images", "--count", "60", "--workers", "2", "--url", url, "--timeout", "0.5"]
        code = fuzz.main([*command, "--findings", str(tmp_path)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 1
    assert any(finding in text for text in found["findings"]), found["findings"]
    if "case" in found["findings"][0]:
        (saved, *_) = sorted(tmp_path.glob("images-seed0-case*.bin"))
        number = int(saved.stem.partition("case")[2])
        request = forms.image_request(random.Random(f"images/0/{number}"))
        assert saved.read_bytes() == request.body
        assert json.loads(saved.with_suffix(".json").read_text())["path"] == request.path


def test_where_there_is_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--url", "http://127.0.0.1:1", "--count", "1"]) == 2
    assert "fuzz: " in capsys.readouterr().err


# --- growth ------------------------------------------------------------------------------------------


def test_growth_counts_after_the_first_quarter() -> None:
    found = judge([(count, 100.0 + min(count, 20)) for count in range(101)])
    assert (found["start"], found["end"]) == (100, 120)
    assert found["growth"] == pytest.approx(0, abs=1)
    assert found["slope"] == pytest.approx(0, abs=1e-6)
    leak = judge([(count, 100.0 + count) for count in range(101)])
    assert leak["growth"] == pytest.approx(50, abs=2)
    assert leak["slope"] == pytest.approx(1000)
    wave = judge([(count, 100.0 + 50 * (count % 10 > 7)) for count in range(101)])
    assert wave["peak"] - wave["start"] == 50
    assert wave["growth"] == 0
    assert judge([(0, 5.0)])["growth"] == 0
