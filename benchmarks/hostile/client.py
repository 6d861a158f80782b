"""Send hostile requests over one connection, and check every answer against the server's contract."""

from __future__ import annotations

import http.client
import json
import random
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from benchmarks.hostile.request import HostileRequest

# Allowed statuses of refusals; 404 and 405 are for requests with a wrong path.
REFUSALS = frozenset((400, 401, 403, 404, 405, 406, 408, 409, 413, 415, 422, 429, 431, 503))
BUSY = ("overloaded", "deadline")  # the allowed codes of a 503: a request must not make the server unready
EXTRA = b"\r\n\0\xffGET / HTTP/9.9\r\nnonsense\r\n\r\n"


class Finding(Exception):
    """The server reacted to a request in a way that its contract forbids."""


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Client:
    """A keep-alive connection, which is opened again after the server has closed it.

    Args:
        timeout: seconds that an answer may take.
    """

    def __init__(self, url: str, timeout: float) -> None:
        address = urlsplit(url)
        assert address.hostname
        self.address = (address.hostname, address.port or 80)
        self._timeout = timeout
        self._connection = http.client.HTTPConnection(*self.address, timeout=timeout)

    def send(self, request: HostileRequest, chance: random.Random) -> str:
        """Send a request, check its answer, and return the outcome in a word or two.

        Raises:
            Finding: the answer breaks the contract.
        """
        if request.delivery == "cut":
            return self._leave_halfway(request)
        if request.delivery == "overlong":
            answer = self._send_too_much(request)
        else:
            body = _pieces(chance, request.body) if request.delivery == "chunked" else request.body
            answer = self.ask(request.path, body, request.headers)
        check(request.path, answer)
        return outcome_of(request.path, answer)

    def ask(
        self, path: str, body: bytes | Iterator[bytes], headers: dict[str, str], method: str = "POST"
    ) -> Answer:
        """Send a request; return its answer.

        Raises:
            Finding: there is no answer.
        """
        connection = self._connection
        try:
            # A server may refuse a body without reading its end; its answer is still read.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers)  # an iterator is sent in chunks
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            _lost(path, error)

    def close(self) -> None:
        self._connection.close()

    def _leave_halfway(self, request: HostileRequest) -> str:
        with closing(socket.create_connection(self.address, self._timeout)) as connection:
            connection.sendall(_head(request) + request.body[: len(request.body) // 2])
        return "left"

    def _send_too_much(self, request: HostileRequest) -> Answer:
        """Use a separate connection, because the bytes after the body are no valid request."""
        try:
            with closing(socket.create_connection(self.address, self._timeout)) as connection:
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(_head(request) + request.body + EXTRA)
                response = http.client.HTTPResponse(connection, method="POST")
                response.begin()
                return Answer(response.status, response.headers, response.read())
        except (http.client.HTTPException, OSError) as error:
            _lost(request.path, error)


def _lost(path: str, error: Exception) -> NoReturn:
    raise Finding(f"{path}: no answer: {type(error).__name__}: {error}") from error


def _pieces(chance: random.Random, body: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        size = chance.choice((1, 7, 1000, 70_000))
        yield body[at : at + size]
        at += size
        if at > 300:
            yield body[at:]
            return


def _head(request: HostileRequest) -> bytes:
    headers = {"Host": "fuzz", "Content-Length": str(len(request.body)), **request.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {request.path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


# --- check an answer ---------------------------------------------------------------------------------


def check(path: str, answer: Answer) -> None:
    """Raise Finding if the contract does not allow the answer."""
    if answer.status == 200:
        _check_document(path, answer)
    elif answer.status not in REFUSALS:
        raise Finding(f"{path}: status {answer.status}: {answer.body[:300]!r}")
    elif path.startswith("/v2"):
        error = _parsed(path, answer.body)
        if not (isinstance(error, dict) and [*error] == ["error"] and error["error"]):
            raise Finding(f"{path}: {answer.status} without an error of the protocol: {answer.body[:300]!r}")
    else:
        problem = _parsed(path, answer.body)
        if not isinstance(problem, dict) or problem.get("status") != answer.status or not problem.get("code"):
            raise Finding(f"{path}: {answer.status} without a problem document: {answer.body[:300]!r}")
        if answer.status == 503 and problem["code"] not in BUSY:
            raise Finding(f"{path}: the server is no longer well: {answer.body[:300]!r}")


def outcome_of(path: str, answer: Answer) -> str:
    """Return an outcome such as `200`, `422 corrupt_image` or `v2 400`."""
    if path.startswith("/v2"):
        return f"v2 {answer.status}"
    if answer.status == 200:
        return "200"
    return f"{answer.status} {json.loads(answer.body)['code']}"


def _check_document(path: str, answer: Answer) -> None:
    """Check the JSON of an answer, and under /v2 the size of the binary tensors after it."""
    text, length = answer.body, answer.headers.get("Inference-Header-Content-Length")
    if length is not None:
        text = answer.body[: int(length)]
    document = _parsed(path, text)
    if length is not None:
        tail = sum(output["parameters"]["binary_data_size"] for output in document["outputs"])
        if tail != len(answer.body) - len(text):
            raise Finding(f"{path}: {len(answer.body) - len(text)} bytes follow the JSON, not {tail}")


def _parsed(path: str, text: bytes) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:
        raise Finding(f"{path}: an answer that cannot be read ({error}): {text[:300]!r}") from error


# --- valid images in between -------------------------------------------------------------------------


class Witness:
    """Valid images, and the answers to them before any hostile request was sent.

    Args:
        tolerance: how far a logit may be from the first answer's, because the composition of batches differs.
    """

    def __init__(self, client: Client, images: list[bytes], tolerance: float) -> None:
        self._images = images
        self._tolerance = tolerance
        self._expected = [self._best(client, image) for image in images]

    def ask(self, client: Client, chance: random.Random) -> None:
        """Ask about one of the images; raise Finding if the answer differs from the first one."""
        which = chance.randrange(len(self._images))
        found, expected = self._best(client, self._images[which]), self._expected[which]
        if found is None or expected is None:  # busy
            return
        if found[0] != expected[0] or abs(found[1] - expected[1]) > self._tolerance:
            raise Finding(f"a sound image was answered with {found} instead of {expected}")

    def _best(self, client: Client, image: bytes) -> tuple[int, float] | None:
        """Return the class and its logit; None if the server was too busy."""
        answer = client.ask("/classify?top_k=1", image, {"Content-Type": "application/octet-stream"})
        check("/classify", answer)
        if answer.status == 503:
            return None
        if answer.status != 200:
            raise Finding(f"a sound image was answered with {answer.status}: {answer.body[:300]!r}")
        (best,) = json.loads(answer.body)["results"][0]["predictions"]
        return best["index"], best["logit"]
