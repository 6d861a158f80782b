"""The clients of a soak: each sends its kind of request, and compares answers with the first to the same
image.

A client is a function that sends one request and returns its outcome, or raises Finding for a wrong answer.
"""

from __future__ import annotations

import io
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.hostile.client import Answer, Client, Finding, check
from benchmarks.hostile.forms import image_request
from benchmarks.hostile.images import encode, sound_images
from benchmarks.hostile.inference import HEADER_LENGTH, Model, inference_request
from benchmarks.http_subject import made_up_photograph

FILE = {"Content-Type": "application/octet-stream"}
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}
PART = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
MAX_IMAGES = 8  # in a form
BURST = 40  # connections at once, each with a form
IDLE = 20  # connections that send little or nothing

Act = Callable[["Soak", Client, random.Random], str]


@dataclass
class Soak:
    """What all clients share."""

    url: str
    model: Model
    admin_key: str
    tolerance: float  # of logits, which vary with the composition of batches
    images: list[bytes]
    timeout: float = 30.0
    expected: dict[tuple[str, int], Any] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, finding: str) -> None:
        with self.lock:
            self.findings.append(finding)
        print(finding, flush=True)

    def compare(self, what: str, index: int, logits: Any) -> None:
        """Compare logits with the first answer of that kind to that image; raise Finding if they differ."""
        with self.lock:
            expected = self.expected.setdefault((what, index), logits)
        if not np.allclose(expected, logits, rtol=0, atol=self.tolerance):
            raise Finding(f"{what}, image {index}: {logits} instead of {expected}")

    def run(self, name: str, number: int) -> None:
        """Run a client until the soak ends."""
        act, pause_s, _ = CLIENTS[name]
        chance = random.Random(f"{name}/{number}")
        with closing(Client(self.url, self.timeout)) as client:
            while not self.stop.is_set():
                try:
                    outcome = act(self, client, chance)
                except Exception as error:  # a Finding, or a bug of the client
                    outcome = "finding"
                    self.find(f"{name}: {type(error).__name__}: {error}")
                with self.lock:
                    self.outcomes[f"{name}: {outcome}"] += 1
                self.stop.wait(pause_s)


def soaked_images() -> list[bytes]:
    """Return photographs, and small images of every format."""
    return [encode(made_up_photograph(seed), "JPEG", quality=90) for seed in range(8)] + sound_images()


def _busy(path: str, answer: Answer) -> bool:
    """Return whether the server refused for load; raise Finding for any other failure."""
    check(path, answer)
    if answer.status not in (200, 503):
        raise Finding(f"{path}: {answer.status} for a sound request: {answer.body[:300]!r}")
    return answer.status == 503


def classify(soak: Soak, client: Client, chance: random.Random) -> str:
    index = chance.randrange(len(soak.images))
    answer = client.ask("/classify?top_k=3", soak.images[index], FILE, chance.choice(("POST", "PUT")))
    if _busy("/classify", answer):
        return "busy"
    _compare_results(soak, [index], answer)
    return "right"


def classify_form(soak: Soak, client: Client, chance: random.Random, query: str = "") -> str:
    picked = [chance.randrange(len(soak.images)) for _ in range(chance.randint(1, MAX_IMAGES))]
    body = b"".join(PART + soak.images[index] + b"\r\n" for index in picked) + b"--edge--\r\n"
    answer = client.ask(f"/classify?top_k=3{query}", body, FORM)
    if _busy("/classify", answer):
        return "busy"
    _compare_results(soak, picked, answer)
    return "right"


def _compare_results(soak: Soak, picked: list[int], answer: Answer) -> None:
    results = json.loads(answer.body)["results"]
    if len(results) != len(picked):
        raise Finding(f"{len(results)} results for {len(picked)} images")
    for index, result in zip(picked, results, strict=True):
        soak.compare("classify", index, [one["logit"] for one in result["predictions"]])


def introspect(soak: Soak, client: Client, chance: random.Random) -> str:
    index = chance.randrange(len(soak.images))
    accept = chance.choice(("application/json", "image/png", "application/x-npz"))
    answer = client.ask("/introspect?top_k=3", soak.images[index], FILE | {"Accept": accept})
    if answer.status == 200 and answer.headers.get_content_type() != accept:
        raise Finding(f"/introspect: {answer.headers.get_content_type()} instead of {accept}")
    if accept == "image/png" and answer.status == 200:
        if not answer.body.startswith(b"\x89PNG"):
            raise Finding(f"/introspect: no PNG: {answer.body[:20]!r}")
        return "png"
    if accept == "application/x-npz" and answer.status == 200:
        with np.load(io.BytesIO(answer.body)) as arrays:
            answer = answer._replace(body=str(arrays["metadata"]).encode())
    if _busy("/introspect", answer):
        return "busy"
    document = json.loads(answer.body)
    soak.compare("introspect", index, [one["logit"] for one in document["predictions"]])
    return accept.rpartition("/")[2]


def infer(soak: Soak, client: Client, chance: random.Random) -> str:
    """Send pixels or files as binary tensors, and read binary logits."""
    path = f"/v2/models/{soak.model.name}/infer"
    number, side = chance.randint(1, MAX_IMAGES), soak.model.size
    picked = [chance.randrange(len(soak.images)) for _ in range(number)]
    files = chance.random() < 0.5
    if files:
        datas = [soak.images[index] for index in picked]
        tensor: dict[str, Any] = {"name": "images", "datatype": "BYTES", "shape": [number]}
        tail = b"".join(len(data).to_bytes(4, "little") + data for data in datas)
    else:
        tensor = {"name": "images", "datatype": "UINT8", "shape": [number, side, side, 3]}
        tail = b"".join(random.Random(index).randbytes(3 * side**2) for index in picked)
    tensor["parameters"] = {"binary_data_size": len(tail)}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    answer = client.ask(path, head + tail, {HEADER_LENGTH: str(len(head))})
    if _busy(path, answer):
        return "busy"
    logits = np.frombuffer(answer.body[int(answer.headers[HEADER_LENGTH]) :], "<f4").reshape(number, -1)
    for index, row in zip(picked, logits, strict=True):
        soak.compare("infer files" if files else "infer pixels", index, row)
    return "files" if files else "pixels"


def hostile(soak: Soak, client: Client, chance: random.Random) -> str:
    """Send a request of fuzz.py."""
    images = chance.random() < 0.6
    return client.send(image_request(chance) if images else inference_request(chance, soak.model), chance)


def leave(soak: Soak, client: Client, chance: random.Random) -> str:
    """Send a request and disconnect before the answer: at once, or during decoding, queueing or inference."""
    body = soak.images[chance.randrange(8)]
    path = chance.choice(("/classify", "/introspect"))
    with closing(socket.create_connection(client.address, soak.timeout)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[: chance.choice((len(body), len(body), 1000))])
        soak.stop.wait(chance.choice((0, 0.002, 0.005, 0.02)))
    return "left"


def idle(soak: Soak, client: Client, chance: random.Random) -> str:
    """Hold connections that send nothing, or only the start of a head, for a while."""
    with ExitStack() as open_ones:
        for _ in range(IDLE):
            connection = open_ones.enter_context(socket.create_connection(client.address, soak.timeout))
            connection.sendall(chance.choice((b"", b"GET /", b"POST /classify HTTP/1.1\r\nContent-Le")))
        soak.stop.wait(chance.uniform(0, 15))
    return "left"


def burst(soak: Soak, client: Client, chance: random.Random) -> str:
    """Send far more at once than the server can answer in the time allowed."""
    seeds = [chance.random() for _ in range(BURST)]
    outcomes: Counter[str] = Counter()

    def ask(seed: float) -> None:
        with closing(Client(soak.url, soak.timeout)) as own:
            try:
                outcome = classify_form(soak, own, random.Random(seed), "&timeout_ms=300")
            except Finding as finding:
                outcome = "finding"
                soak.find(f"burst: {finding}")
        with soak.lock:
            outcomes[outcome] += 1

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with soak.lock:
        soak.outcomes.update({f"of bursts: {outcome}": count for outcome, count in outcomes.items()})
    return "refused some" if outcomes["busy"] else "refused none"


def scrape(soak: Soak, client: Client, chance: random.Random) -> str:
    """Call a route for monitoring, which must always answer 200."""
    name = soak.model.name
    paths = ("/health/live", "/health/ready", "/v2/health/ready", "/metrics", "/models", f"/models/{name}")
    path = chance.choice((*paths, f"/v2/models/{name}/stats", f"/v2/models/{name}", "/openapi.json"))
    answer = client.ask(path, b"", {}, "GET")
    if answer.status != 200:
        raise Finding(f"{path}: {answer.status}: {answer.body[:300]!r}")
    return "200"


def reload(soak: Soak, client: Client, chance: random.Random) -> str:
    """Load the model again under load."""
    path = f"/models/{soak.model.name}/load"
    answer = client.ask(path, b"", {"X-API-Key": soak.admin_key})
    if answer.status != 200:
        raise Finding(f"{path}: {answer.status}: {answer.body[:300]!r}")
    return "200"


# By name: the function, the pause after each call in seconds, and the number of clients.
CLIENTS: dict[str, tuple[Act, float, int]] = {
    "classify": (classify, 0.0, 3),
    "classify form": (classify_form, 0.02, 2),
    "introspect": (introspect, 0.02, 2),
    "infer": (infer, 0.02, 2),
    "hostile": (hostile, 0.01, 2),
    "leave": (leave, 0.1, 2),
    "idle": (idle, 0.0, 1),
    "burst": (burst, 10.0, 1),
    "scrape": (scrape, 0.2, 1),
    "reload": (reload, 20.0, 1),
}
