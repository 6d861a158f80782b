"""Clients that stop in the middle of large bodies do not keep others out."""

from __future__ import annotations

import socket

import httpx

from tests.support.images import encode, photograph
from tests.support.live import live_server

MIB = 2**20
JPEG = encode(photograph(60, 80), "jpeg")


def test_small_images_are_answered_while_large_bodies_stall() -> None:
    with live_server(queue_bytes=8 * MIB, max_image_bytes=4 * MIB, max_request_bytes=4 * MIB) as server:
        stalled = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(12)]
        for connection in stalled:
            head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {4 * MIB - 1}\r\n\r\n"
            connection.sendall(head.encode() + bytes(MIB))
        with httpx.Client(base_url=server.url, timeout=60) as client:
            answers = [client.post("/classify", content=JPEG) for _ in range(20)]
            assert {answer.status_code for answer in answers} == {200}
            assert client.post("/classify", content=bytes(4 * MIB)).status_code in (422, 503)
        codes = [connection.recv(12)[9:] for connection in stalled if _has_answer(connection)]
        assert set(codes) == {b"503"}
        assert len(codes) >= 3
        for connection in stalled:
            connection.close()


def _has_answer(connection: socket.socket) -> bool:
    connection.settimeout(1)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
