"""The page in a real Chromium when something is wrong: it says what, keeps what it showed, and goes on."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from artifact.manifest import read_manifest
from service.errors import NotReady
from service.http.problems import problem_of
from tests.support.browser import (
    PHOTO,
    barriers,
    choose,
    file_of,
    first_visit,
    introspected,
    pick,
    predicted,
    settled,
    shown,
    visit,
    visit_in,
)
from tests.support.images import encode
from tests.support.live import LiveServer, live_server
from tests.support.load import begin_a_request, head, wait_until_draining

LARGE = encode(Image.effect_noise((500, 400), 100), "BMP")
KEY, ADMIN_KEY = "a-key", "an-admin-key"
FLAGS: dict[str, object] = {"device": "cpu", "threads": 1, "access_log": False}


@pytest.fixture(scope="module")
def server(embedded: Path) -> Iterator[LiveServer]:
    """Which needs a key, and takes no large photographs."""
    with live_server(model=embedded, **FLAGS, api_key=KEY, max_image_bytes=100_000) as running:
        yield running


def give_key(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use this key").click()


@pytest.fixture
def page(context: BrowserContext, server: LiveServer) -> Iterator[Page]:
    """Where the key has been given."""
    with visit_in(context, server.url, refusals={"401", "413", "422"}) as visited:
        give_key(visited.page, KEY)
        settled(visited.page)
        yield visited.page


def test_a_key_is_asked_for_and_kept(browser: Browser, server: LiveServer) -> None:
    with visit(browser, server.url, refusals={"401"}) as visited:
        page = visited.page
        expect(page.get_by_role("alert")).to_contain_text("wants a key")
        expect(page.get_by_label("API key")).to_be_focused()
        assert barriers(page) == []
        give_key(page, "none of its keys")
        expect(page.get_by_role("alert")).to_contain_text("the key that came is none")
        give_key(page, KEY)
        settled(page)
        expect(page.get_by_role("alert")).to_be_empty()
        expect(page.locator("#curl code")).to_contain_text('-H "X-API-Key: YOUR_KEY"')
        assert KEY not in page.locator("#curl code").inner_text()
        page.reload()
        settled(page)
        page.get_by_role("button", name="Change key").click()
        expect(page.get_by_label("API key")).to_be_visible()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("notes.txt", b"A text, and no photograph."),
        ("half.jpg", PHOTO[: len(PHOTO) // 2]),
        ("empty.jpg", b""),
    ],
)
def test_what_is_no_photograph_is_named_and_nothing_else_changes(name: str, data: bytes, page: Page) -> None:
    before = shown(page)
    picture = page.get_by_role("img", name="The photograph")
    file = picture.get_attribute("alt")
    page.get_by_label("Photograph file").set_input_files(file_of(data, name))
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(f"“{name}” cannot be used")
    expect(alert).not_to_contain_text("curl")
    assert shown(page) == before
    assert picture.get_attribute("alt") == file
    choose(page, PHOTO, "photo.jpg")
    expect(alert).to_be_empty()
    assert shown(page) != before


def test_a_photograph_that_is_too_large_is_named(page: Page) -> None:
    before = shown(page)
    page.get_by_label("Photograph file").set_input_files(file_of(LARGE, "large.bmp"))
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("“large.bmp” cannot be used")
    expect(alert).to_contain_text("100,000")
    assert shown(page) == before
    page.get_by_role("button", name="Dismiss").click()
    expect(alert).to_be_empty()


def test_a_server_that_drains_and_ends(browser: Browser, embedded: Path) -> None:
    server = LiveServer(model=embedded, **FLAGS, drain_timeout=60)
    try:
        server.wait_until_ready()
        with (
            first_visit(browser, server.url, refusals={"503", "ERR_CONNECTION_REFUSED"}) as visited,
            begin_a_request(server, head(2) + b"x") as accepted,
        ):
            page = visited.page
            before = shown(page)
            server.process.send_signal(signal.SIGTERM)
            wait_until_draining(server)
            slider = page.get_by_role("slider", name="gate of stage3.1")
            slider.fill("0.5")
            alert = page.get_by_role("alert")
            expect(alert).to_contain_text("not ready")
            expect(alert).to_contain_text("Trying again in")
            accepted.sendall(b"y")
            assert server.wait() == 0
            expect(alert).to_contain_text("cannot be reached")
            expect(page.locator("html[data-busy]")).to_have_count(0)
            assert shown(page) == before
            expect(slider).to_have_value("1")
            expect(page.get_by_role("button", name="Try again")).to_be_visible()
    finally:
        server.process.kill()
        server.wait()


def test_too_many_requests_wait_and_go_on(browser: Browser, embedded: Path) -> None:
    """The page asks again by itself, after as long as it was told, and gets there."""
    with (
        live_server(model=embedded, **FLAGS, rate_limit=2) as server,
        visit(browser, server.url, refusals={"429"}) as visited,
    ):
        settled(visited.page)
        statuses = [request.response() for request in visited.asked("/introspect")]
        assert [answer.status for answer in statuses if answer][-1] == 200
        expect(visited.page.get_by_role("alert")).to_be_empty()


@pytest.fixture
def older(embedded: Path, tmp_path: Path) -> Path:
    """The embedded artifact as one was that had neither contributions nor a reference."""
    copied = copytree(embedded, tmp_path / "older")
    manifest = json.loads((copied / "manifest.json").read_text()) | {"name": "older", "reference": None}
    manifest["graphs"] = [graph for graph in manifest["graphs"] if graph["kind"] != "attribute"]
    for label in manifest["labels"]:
        label["label"] = label["label"].upper()
    (copied / "manifest.json").write_text(json.dumps(manifest))
    return copied


def test_another_model_and_one_that_goes(browser: Browser, embedded: Path, older: Path) -> None:
    """What another model says is shown; of what it does not have, why; of one that is gone, that it is."""
    with (
        live_server(model=f"{embedded},{older}", **FLAGS, admin_key=ADMIN_KEY) as server,
        first_visit(browser, server.url, refusals={"404"}) as visited,
    ):
        page = visited.page
        choose(page, PHOTO, "photo.jpg")
        page.get_by_label("Model").select_option("older")
        expect(page.locator("#labels .label-name").first).to_have_text(re.compile("^[A-Z ]+"))
        settled(page)
        answer = introspected(server.url, PHOTO, model="older")
        assert shown(page) == predicted(answer)
        for place, quantity in (("#waterfall", "contribution"), ("#lens", "lens")):
            expect(page.locator(place)).to_contain_text(answer["null_reasons"][quantity])
        expect(page.get_by_role("radio", name="Contribution")).to_be_disabled()
        pick(page.get_by_role("radio", name="Residual branch"))
        expect(page.locator("option[value=reference]")).to_be_disabled()

        unload = f"{server.url}/models/older/unload"
        assert httpx.post(unload, headers={"X-API-Key": ADMIN_KEY}).status_code == 200
        page.get_by_role("button", name="Remove this block").click()
        expect(page.get_by_role("alert")).to_contain_text("not served any more")
        expect(page.get_by_label("Model").locator("option")).to_have_count(1)
        page.get_by_label("Model").select_option(read_manifest(embedded).name)
        expect(page.get_by_role("alert")).to_be_empty()
        settled(page)
        assert shown(page) == predicted(introspected(server.url, PHOTO))


def test_a_gate_that_moves_while_a_photograph_is_refused_is_not_lost(page: Page) -> None:
    """And what was wrong with the photograph stays to be read."""
    trained = shown(page)
    held: list[Route] = []
    page.route("**/introspect*", lambda route: route.continue_() if held else held.append(route))
    with page.expect_request("**/introspect*"):
        page.get_by_label("Photograph file").set_input_files(file_of(b"no photograph", "broken.jpg"))
    slider = page.get_by_role("slider", name="gate of stage3.0")
    slider.fill("0")
    held[0].continue_()
    expect(page.locator("#labels")).to_contain_text("stage3.0 removed")
    expect(page.locator("#labels .delta").first).to_be_visible()
    settled(page)
    assert shown(page) != trained
    expect(slider).to_have_value("0")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("“broken.jpg” cannot be used")
    alert.get_by_role("button", name="Dismiss").click()
    expect(slider).to_have_value("0")


def test_what_is_not_answered_is_put_back_and_tried_again(browser: Browser, embedded: Path) -> None:
    with (
        live_server(model=embedded, **FLAGS) as server,
        first_visit(browser, server.url, refusals={"ERR_FAILED"}) as visited,
    ):
        page = visited.page
        trained = shown(page)
        slider = page.get_by_role("slider", name="gate of stage3.1")
        page.route("**/introspect*", lambda route: route.abort())
        slider.fill("0.5")
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
        expect(slider).to_have_value("1")
        assert shown(page) == trained

        page.unroute("**/introspect*")
        page.get_by_role("button", name="Try again").click()
        expect(slider).to_have_value("0.5")
        settled(page)
        expect(page.get_by_role("alert")).to_be_empty()
        assert shown(page) != trained


def test_the_page_waits_for_a_server_that_loads(browser: Browser, embedded: Path) -> None:
    """For longer than it asks a busy one; what a loading server says is answered here in its place."""
    loading = problem_of(NotReady("The server is not ready: loading its models."))
    left = 4

    def answer(route: Route) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            route.continue_()
        else:
            route.fulfill(status=503, json=loading.document(), headers={"Retry-After": "1"})

    with (
        live_server(model=embedded, **FLAGS) as server,
        visit(browser, server.url, refusals={"503"}) as visited,
    ):
        page = visited.page
        settled(page)
        page.route("**/models", answer)
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("getting ready")
        expect(page.get_by_role("button", name="Dismiss")).to_have_count(0)
        settled(page)
        expect(page.get_by_role("alert")).to_be_empty()
        assert left < 0


def test_classes_of_one_name_are_told_apart(browser: Browser, embedded: Path, tmp_path: Path) -> None:
    """Everywhere, by their index: all classes of this artifact are called the same."""
    cranes = copytree(embedded, tmp_path / "cranes")
    manifest = json.loads((cranes / "manifest.json").read_text())
    manifest["labels"] = [{**label, "label": "crane"} for label in manifest["labels"]]
    (cranes / "manifest.json").write_text(json.dumps(manifest))
    with live_server(model=cranes, **FLAGS) as server, first_visit(browser, server.url) as visited:
        page = visited.page
        choose(page, PHOTO, "photo.jpg")
        answer = introspected(server.url, PHOTO)
        name = f"crane ({answer['target']['index']})"
        assert [label for label, _ in shown(page)] == [
            f"crane ({prediction['index']})" for prediction in answer["predictions"][:5]
        ]
        expect(page.locator("#waterfall tr.total")).to_contain_text(f"= logit of {name}")
        expect(page.locator("#lens table")).to_contain_text(name)
        page.locator("#labels").get_by_role("button", name=name).click()
        expect(page.get_by_label("Target class")).to_have_value(name)
