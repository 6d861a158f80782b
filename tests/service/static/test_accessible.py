"""The page in a real Chromium for everybody: axe-core, the keyboard, small windows and zoom, both themes."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import (
    OTHER,
    PHOTO,
    Visit,
    barriers,
    choose,
    file_of,
    first_visit,
    introspected,
    predicted,
    settled,
    shown,
)
from tests.support.live import LiveServer

PROFILES: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "color_scheme": "dark"},
}


@pytest.mark.parametrize("profile", PROFILES)
def test_nobody_is_kept_out(profile: str, browser: Browser, server: LiveServer) -> None:
    """axe-core at the first sight, and with everything open that can be."""
    with first_visit(browser, server.url, refusals={"422"}, **PROFILES[profile]) as visited:
        page = visited.page
        assert barriers(page) == []
        page.get_by_role("button", name="Compare with another photograph").click()
        choose(page, OTHER, "other.png", slot=1)
        page.get_by_role("slider", name="gate of stage1.1").fill("0")
        settled(page)
        page.get_by_role("button", name="Remove each block in turn").click()
        settled(page)
        page.locator("#depth").get_by_text("As a table").click()
        page.locator("#viewer canvas.picture").first.press("ArrowRight")
        page.get_by_label("Photograph file").set_input_files(file_of(b"no photograph", "no.jpg"))
        expect(page.get_by_role("alert")).to_contain_text("no.jpg")
        assert barriers(page) == []


@pytest.mark.parametrize("size", [(360, 740), (720, 450), (1440, 900), (1600, 1000)])
def test_nothing_lies_beside_the_page(size: tuple[int, int], browser: Browser, server: LiveServer) -> None:
    """On a phone, at 200 % zoom (which is half the pixels), and on large screens: no scrolling sideways."""
    with first_visit(browser, server.url, viewport={"width": size[0], "height": size[1]}) as visited:
        page = visited.page
        page.get_by_role("button", name="Remove each block in turn").click()
        settled(page)
        width = page.evaluate("() => document.scrollingElement.scrollWidth")
        assert width <= size[0]


def test_the_keyboard_reaches_everything(page: Page) -> None:
    described = """() => {
        const element = document.activeElement;
        const words = element.labels?.[0]?.innerText ?? element.innerText;
        const label = element.getAttribute("aria-label") ?? words;
        return `${element.localName} ${element.type ?? ""} ${label}`.replace(/\\s+/g, " ");
    }"""
    page.locator("body").focus()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(described))
        if reached[-1].startswith("body"):
            break
    wanted = (
        "a Skip to the blocks",
        "select select-one Model",
        "button button Choose",
        "button button Camera",
        "button button Sample: a cat",
        "button button Compare with another photograph",
        "input search Target class",
        "input radio stage3.0",
        "input range gate of stage3.0",
        "button button Remove this block",
        "canvas Share of stage3.0",
        "button button Copy as curl",
    )
    places = [next((n for n, name in enumerate(reached) if name.startswith(each)), None) for each in wanted]
    assert None not in places, (wanted[places.index(None)], reached)
    assert places == sorted(places, key=lambda place: place or 0)

    # Early, because nothing says when Chromium has begun to hold file choosers back.
    with page.expect_file_chooser() as chosen:
        page.get_by_role("radio", name="stage3.0").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#viewer").get_by_role("heading", name="stage3.1")).to_be_visible()
        page.get_by_role("button", name="Choose").first.focus()
        page.keyboard.press("Enter")
    chosen.value.set_files(file_of(OTHER, "other.png"))
    expect(page.get_by_role("figure", name="other.png, 375 × 500 pixels")).to_be_visible()
    settled(page)


def test_a_gate_is_moved_by_the_keyboard(page: Page, visited: Visit) -> None:
    slider = page.get_by_role("slider", name="gate of stage3.0")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    settled(page)
    expect(slider).to_have_value("0.8")
    expect(slider).to_be_focused()
    assert shown(page) == predicted(introspected(visited.origin, PHOTO, gates="stage3.0:0.8"))


def test_the_theme_is_the_systems_until_one_is_chosen(browser: Browser, server: LiveServer) -> None:
    brightness = (
        "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    with first_visit(browser, server.url, color_scheme="dark") as visited:
        page = visited.page
        assert max(page.evaluate(brightness)) < 80
        page.get_by_role("button", name="Switch to the light theme").click()
        assert min(page.evaluate(brightness)) > 200
        page.reload()
        settled(page)
        assert min(page.evaluate(brightness)) > 200
