"""A Chromium for each file of these tests, and a server of the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.support.browser import PHOTO, Visit, choose, chromium, profile, settled, visit_in
from tests.support.live import LiveServer, live_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def server(embedded: Path) -> Iterator[LiveServer]:
    with live_server(model=embedded, device="cpu", threads=1, access_log=False) as running:
        yield running


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    with profile(browser) as made:
        yield made


@pytest.fixture
def visited(context: BrowserContext, server: LiveServer) -> Iterator[Visit]:
    with visit_in(context, server.url) as visit:
        settled(visit.page)
        yield visit


@pytest.fixture
def page(visited: Visit) -> Page:
    """With PHOTO chosen."""
    choose(visited.page, PHOTO, "photo.jpg")
    return visited.page
