"""A real Chromium for the tests of the page: what it is watched for while it is there, and how it is read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    FilePayload,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

from tests.support.images import encode, photograph

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # which it cannot have as root, nor in most containers
    "--use-fake-device-for-media-stream",  # a camera that films a test picture
    "--use-fake-ui-for-media-stream",
)
# What Chromium writes to the console of every answer that is no success.
REFUSED = "Failed to load resource"
PATIENCE_MS = 20_000  # of a machine that runs other tests meanwhile

expect.set_options(timeout=PATIENCE_MS)

PHOTO = encode(photograph(500, 375, seed=2), "JPEG", quality=90)
OTHER = encode(photograph(375, 500, seed=5), "PNG")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The first of PROGRAMS, else what `playwright install` fetched; without any, the tests are skipped."""
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        program = next(filter(None, map(shutil.which, PROGRAMS)), own if own.exists() else None)
        if program is None:
            pytest.skip(f"needs {', '.join(PROGRAMS)}, or what `playwright install chromium` fetches")
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page in a profile of its own; notes what it asks for and complains about.

    Attributes:
        refusals: the statuses of answers that a test provokes, of which the console may speak.
    """

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.refusals: set[str] = set()
        page.on("request", self._note_request)
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def asked(self, path: str) -> list[Request]:
        """The requests for it so far, first to last."""
        return [request for request in self.requests if urlsplit(request.url).path == path]

    def _note_request(self, request: Request) -> None:
        self.requests.append(request)
        if not request.url.startswith((f"{self.origin}/", f"blob:{self.origin}/", "data:")):
            self.complaints.append(f"asked another host: {request.url}")

    def _note_message(self, message: ConsoleMessage) -> None:
        provoked = message.text.startswith(REFUSED) and any(
            status in message.text for status in self.refusals
        )
        if message.type in ("error", "warning") and not provoked:
            self.complaints.append(f"{message.type}: {message.text} ({message.location['url']})")


@contextmanager
def profile(browser: Browser, **options: Any) -> Iterator[BrowserContext]:
    """A new profile; `options` are those of Browser.new_context, such as `color_scheme`, `viewport`."""
    usual: dict[str, Any] = {
        "permissions": ["camera", "clipboard-read", "clipboard-write"],
        "reduced_motion": "reduce",
        "viewport": {"width": 1440, "height": 900},
    }
    with browser.new_context(**(usual | options)) as context:
        context.set_default_timeout(PATIENCE_MS)
        yield context


@contextmanager
def visit_in(context: BrowserContext, origin: str, refusals: set[str] | None = None) -> Iterator[Visit]:
    """Open the page of the server at `origin` in a profile, and forget at the end what the page stored.

    The block fails if the page complained, or asked another host. `refusals` are as of Visit, from the start.

    The profile's earlier page is closed after this one is open. While a page is open, Chromium keeps a
    process ready for the next one, which then takes two thirds of the time.
    """
    earlier = context.pages
    visited = Visit(context.new_page(), origin)
    visited.refusals |= refusals or set()
    visited.page.goto(f"{origin}/")
    for page in earlier:
        page.close()
    yield visited
    visited.page.evaluate("localStorage.clear()")
    assert not visited.complaints, "\n".join(visited.complaints)


@contextmanager
def visit(browser: Browser, origin: str, refusals: set[str] | None = None, **options: Any) -> Iterator[Visit]:
    """`visit_in` a new profile."""
    with profile(browser, **options) as context, visit_in(context, origin, refusals) as visited:
        yield visited


@contextmanager
def first_visit(browser: Browser, origin: str, **profile: Any) -> Iterator[Visit]:
    """`visit`, when the sample's answer is there."""
    with visit(browser, origin, **profile) as visited:
        settled(visited.page)
        yield visited


def settled(page: Page) -> None:
    """Until there is an answer and nothing is asked any more."""
    expect(page.locator("#labels li").first).to_be_attached()
    expect(page.locator("html[data-busy]")).to_have_count(0)


def file_of(data: bytes, name: str) -> FilePayload:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}


def choose(page: Page, data: bytes, name: str, slot: int = 0) -> None:
    """Choose that file, and wait until the page shows it."""
    label = ("Photograph file", "File to compare with")[slot]
    page.get_by_label(label).set_input_files(file_of(data, name))
    expect(page.get_by_role("img", name=f"The photograph {name}")).to_be_visible()
    settled(page)


@dataclass(frozen=True)
class Said:
    """A label as the page shows it: the probability in percent, the logit with two digits."""

    label: str
    percent: str
    logit: str
    is_target: bool


def said(page: Page, slot: int = 0) -> list[Said]:
    """What the page says the network says of the first photograph, or of the second."""
    rows = page.locator("#labels ol").nth(slot).locator("li:not(.away) button")
    texts = rows.evaluate_all(
        """(rows) => rows.map((row) => [
            row.querySelector(".label-name").firstChild.textContent, row.querySelector(".label-p").innerText,
            row.querySelector(".label-logit").innerText, row.getAttribute("aria-pressed")])"""
    )
    return [
        Said(label, percent.removesuffix(" %"), logit.split()[1].replace("−", "-"), pressed == "true")
        for label, percent, logit, pressed in texts
    ]


def shown(page: Page, slot: int = 0) -> list[tuple[str, str]]:
    """Labels and logits, as `predicted` has them."""
    return [(each.label, each.logit) for each in said(page, slot)]


def predicted(answer: dict[str, Any], num: int = 5) -> list[tuple[str, str]]:
    """Labels and logits of an answer's predictions as they are shown: so many of them, with two digits."""
    return [(each["label"], f"{each['logit']:.2f}") for each in answer["predictions"][:num]]


def introspected(origin: str, image: bytes, **query: object) -> dict[str, Any]:
    """What the API itself answers."""
    answer = httpx.post(f"{origin}/introspect", params=query, content=image, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def number(text: str) -> float:
    """`−1.32`, `+0.4`, `53.1 %` as a number; percent stay percent."""
    return float(text.replace("−", "-").replace("%", "").strip())


def rows_of(table: Locator) -> list[dict[str, str]]:
    """The rows of its body, each with its texts by the columns' headings; bars are left out."""
    headings, rows = table.evaluate(
        """(table) => {
            const texts = (row) => [...row.cells].filter((cell) => !cell.ariaHidden)
                .map((cell) => cell.innerText.trim());
            return [texts(table.tHead.rows[0]), [...table.tBodies[0].rows].map(texts)];
        }"""
    )
    return [dict(zip(headings, row, strict=True)) for row in rows]


def pick(radio: Locator) -> None:
    """Choose a radio button as people do: by what lies over it."""
    radio.locator("xpath=ancestor::label").click()
    expect(radio).to_be_checked()


def barriers(page: Page) -> list[str]:
    """What axe-core finds serious or critical, and where."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {node['target']} {node['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
