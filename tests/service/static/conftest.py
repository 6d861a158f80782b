"""A Chromium for each file of these tests, and a server of the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import PHOTO, Visit, choose, chromium, first_visit
from tests.support.live import LiveServer, live_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def server(embedded: Path) -> Iterator[LiveServer]:
    with live_server(model=embedded, device="cpu", threads=1, access_log=False) as running:
        yield running


@pytest.fixture
def visited(browser: Browser, server: LiveServer) -> Iterator[Visit]:
    with first_visit(browser, server.url) as visit:
        yield visit


@pytest.fixture
def page(visited: Visit) -> Page:
    """With PHOTO chosen."""
    choose(visited.page, PHOTO, "photo.jpg")
    return visited.page
