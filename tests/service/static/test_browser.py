"""The page at `/` in a real Chromium: what it shows is what the API answers, and whoever comes can use it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from artifact.manifest import Manifest, read_manifest
from artifact.preprocess import preprocess
from introspection.pictures.cells import Paint, cells_of_pixels, grey_input, overlay
from tests.support.browser import (
    OTHER,
    PHOTO,
    Visit,
    barriers,
    choose,
    file_of,
    introspected,
    number,
    pick,
    predicted,
    rows_of,
    said,
    settled,
    shown,
)
from tests.support.images import encode, photograph


@pytest.fixture(scope="module")
def manifest(embedded: Path) -> Manifest:
    return read_manifest(embedded)


def test_the_first_visit_shows_a_sample_by_itself(visited: Visit) -> None:
    samples = [request for request in visited.requests if "/samples/" in request.url]
    sample = httpx.get(samples[0].url).content
    assert shown(visited.page) == predicted(introspected(visited.origin, sample))
    assert said(visited.page)[0].is_target
    expect(visited.page.locator("#labels")).to_contain_text("inference")


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_a_photograph_comes_in_by(way: str, visited: Visit) -> None:
    """However it comes, the labels are those that /classify gives."""
    page = visited.page
    encoded = base64.b64encode(PHOTO).decode()
    if way == "choose":
        page.get_by_label("Photograph file").set_input_files(file_of(PHOTO, "photo.jpg"))
    else:
        page.evaluate(
            """([way, encoded]) => {
                const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
                const data = new DataTransfer();
                data.items.add(new File([bytes], "photo.jpg", {type: "image/jpeg"}));
                const told = {bubbles: true, cancelable: true};
                document.querySelector("#depth").dispatchEvent(way === "drop"
                    ? new DragEvent("drop", {...told, dataTransfer: data})
                    : new ClipboardEvent("paste", {...told, clipboardData: data}));
            }""",
            [way, encoded],
        )
    expect(page.get_by_role("figure", name="photo.jpg, 500 × 375 pixels")).to_be_visible()
    settled(page)
    classified = httpx.post(f"{visited.origin}/classify?top_k=5", content=PHOTO).json()
    [result] = classified["results"]
    shown = [(each.label, each.percent) for each in said(page)[:5]]
    assert [label for label, _ in shown] == [each["label"] for each in result["predictions"]]
    for (_, percent), prediction in zip(shown, result["predictions"], strict=True):
        assert float(percent) == pytest.approx(100 * prediction["probability"], abs=0.051)


def test_of_two_in_a_row_the_last_wins(visited: Visit) -> None:
    files = visited.page.get_by_label("Photograph file")
    files.set_input_files(file_of(OTHER, "other.png"))
    files.set_input_files(file_of(PHOTO, "photo.jpg"))
    expect(visited.page.get_by_role("img", name="The photograph photo.jpg")).to_be_visible()
    settled(visited.page)
    assert shown(visited.page) == predicted(introspected(visited.origin, PHOTO))


def test_what_only_the_server_can_read_is_answered_too(visited: Visit) -> None:
    page = visited.page
    tiff = encode(photograph(300, 300, seed=7), "TIFF")
    before = canvas_pixels(page)
    page.get_by_label("Photograph file").set_input_files(file_of(tiff, "scan.tiff"))
    expect(page.locator("#input")).to_contain_text("This browser cannot show the file")
    settled(page)
    assert shown(page) == predicted(introspected(visited.origin, tiff))
    drawn = canvas_pixels(page)
    assert drawn.shape != before.shape or (drawn != before).any()


def test_the_camera_takes_one(visited: Visit) -> None:
    page = visited.page
    before = shown(page)
    page.get_by_role("button", name="Camera").first.click()
    take = page.get_by_role("dialog").get_by_role("button", name="Take the photograph")
    expect(take).to_be_enabled()
    assert barriers(page) == []
    take.click()
    expect(page.get_by_role("figure", name="camera.jpg, 640 × 480 pixels")).to_be_visible()
    settled(page)
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert shown(page) != before


def test_a_gate_moves_the_answer_and_reset_brings_it_back(page: Page, visited: Visit) -> None:
    trained = shown(page)
    page.get_by_role("slider", name="gate of stage3.1").fill("0.5")
    settled(page)
    moved = introspected(visited.origin, PHOTO, gates="stage3.1:0.5")
    assert shown(page) == predicted(moved) != trained
    expect(page.locator("#labels")).to_contain_text("stage3.1 × 0.5")
    expect(page.locator("#status")).to_contain_text(f"The network says {said(page)[0].label}")

    page.get_by_role("slider", name="gate of stage2.0").fill("1.5")
    settled(page)
    both = introspected(visited.origin, PHOTO, gates="stage2.0:1.5,stage3.1:0.5")
    assert shown(page) == predicted(both)

    page.get_by_role("slider", name="gate of stage2.0").dblclick()
    settled(page)
    assert shown(page) == predicted(moved)

    page.get_by_role("button", name="Reset all gates").click()
    settled(page)
    assert shown(page) == trained
    expect(page.get_by_role("slider", name="gate of stage3.1")).to_have_value("1")


def test_while_a_slider_is_dragged_the_last_value_wins(page: Page, visited: Visit) -> None:
    """One request at a time, and none for what was overtaken."""
    slider = page.get_by_role("slider", name="gate of stage4.0")
    num_before = len(visited.asked("/introspect"))
    values = [round(1 - 0.05 * step, 2) for step in range(1, 21)]
    slider.evaluate(
        """async (slider, values) => {
            for (const value of values) {
                slider.value = value;
                slider.dispatchEvent(new Event("input", {bubbles: true}));
                await new Promise((resolve) => setTimeout(resolve));
            }
        }""",
        values,
    )
    settled(page)
    asked = visited.asked("/introspect")[num_before:]
    assert 1 <= len(asked) < len(values)
    assert parse_qs(urlsplit(asked[-1].url).query)["gates"] == ["stage4.0:0"]
    assert shown(page) == predicted(introspected(visited.origin, PHOTO, gates="stage4.0:0"))


def test_a_block_is_removed_and_put_back(page: Page, visited: Visit) -> None:
    trained = shown(page)
    pick(page.get_by_role("radio", name="stage2.1"))
    expect(page.locator("#viewer").get_by_role("heading", name="stage2.1")).to_be_visible()
    page.get_by_role("button", name="Remove this block").click()
    settled(page)
    assert shown(page) == predicted(introspected(visited.origin, PHOTO, gates="stage2.1:0"))
    page.get_by_role("button", name="Put this block back").click()
    settled(page)
    assert shown(page) == trained


def canvas_pixels(
    page: Page, selector: str = "#viewer canvas.picture"
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """RGB [height, width, 3] of a canvas."""
    url = page.locator(selector).first.evaluate("(canvas) => canvas.toDataURL()")
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return np.asarray(image.convert("RGB")).astype(np.int64)


def test_every_map_is_drawn_and_no_two_alike(page: Page, manifest: Manifest) -> None:
    pictures = []
    titles = page.get_by_role("group", name="Quantity shown").get_by_role("radio").all()
    assert len(titles) == 7
    for title in titles:
        pick(title)
        pictures.append((canvas_pixels(page), canvas_pixels(page, "#strip .thumbs canvas")))
    for number_, (large, small) in enumerate(pictures):
        for other_large, other_small in pictures[:number_]:
            assert (large != other_large).any()
            assert (small != other_small).any()


def selected(page: Page, block: str, quantity: str) -> None:
    pick(page.get_by_role("radio", name=block))
    pick(page.get_by_role("group", name="Quantity shown").get_by_role("radio", name=quantity, exact=True))


def map_of(answer: dict[str, Any], block: str, quantity: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Of an answer with maps=f32: [rows, columns]."""
    [entry] = [each["maps"][quantity] for each in answer["blocks"] if each["name"] == block]
    return np.frombuffer(base64.b64decode(entry["data"]), "<f4").reshape(entry["shape"])


@pytest.mark.parametrize("block", ["stage2.0", "stage4.1"])
def test_cells_lie_where_they_look(block: str, visited: Visit, manifest: Manifest) -> None:
    """Cells lie in the browser where introspection/pictures/cells.py draws them, upright and in colour."""
    page = visited.page
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = encode(photograph(500, 400, seed=3), "JPEG", quality=95, exif=exif)
    choose(page, turned, "turned.jpg")
    expect(page.get_by_role("figure", name="turned.jpg, 400 × 500 pixels")).to_be_visible()
    selected(page, block, "Residual branch")
    x0, y0, x1, y1 = introspected(visited.origin, turned)["image"]["model_box"]
    drawn = canvas_pixels(page)
    scale = drawn.shape[1] / 400
    left, top, right, bottom = (round(edge * scale) for edge in (x0, y0, x1, y1))
    size = right - left
    assert bottom - top == size  # else the picture below would be none of overlay's

    answer = introspected(visited.origin, turned, maps="f32")
    values = map_of(answer, block, "residual")
    vmax = max(map_of(answer, each.name, "residual").max() for each in manifest.blocks)
    image = preprocess(turned, manifest.preprocessing, keep_original=True)
    [described] = [each for each in manifest.blocks if each.name == block]
    grey = grey_input(image, size)
    crop = manifest.preprocessing.crop
    expected = overlay(values, described, crop, grey, Paint(0, vmax, "viridis", 0.6)).astype(np.int64)
    # The browser resizes the photograph below in its own way.
    assert np.abs(drawn[top:bottom, left:right] - expected).max() <= 4

    page.locator("#viewer").get_by_role("combobox", name="Show").select_option("cells only")
    raw = overlay(values, described, crop, grey, Paint(0, vmax, "viridis", 1)).astype(np.int64)
    assert np.abs(canvas_pixels(page)[top:bottom, left:right] - raw).max() <= 1


def test_scales_colours_and_opacity(page: Page, visited: Visit, manifest: Manifest) -> None:
    """What is one block's own scale says that it is; the others are those of the answer and the manifest."""
    assert manifest.reference is not None
    selected(page, "stage4.1", "Residual branch")
    answer = introspected(visited.origin, PHOTO, maps="f32")
    largest = {each.name: map_of(answer, each.name, "residual").max() for each in manifest.blocks}
    scale = page.get_by_label("Scale")
    for name, vmax in {
        "image": max(largest.values()),
        "stage": max(value for block, value in largest.items() if block.startswith("stage4")),
        "reference": max(manifest.reference.maps["residual"]),
        "own": largest["stage4.1"],
    }.items():
        scale.select_option(name)
        assert largest_of_bar(page) == pytest.approx(vmax, abs=0.0051)
    expect(scale.locator("option:checked")).to_contain_text("do not compare")
    for change in (
        lambda: page.get_by_label("Colours").select_option("inferno"),
        lambda: page.get_by_role("slider", name="Opacity").fill("0.2"),
    ):
        before = canvas_pixels(page)
        change()
        assert (canvas_pixels(page) != before).any()


def largest_of_bar(page: Page) -> float:
    """The number at the colour bar's right end."""
    return number(page.locator("#viewer .largest").inner_text().split()[-1])


def test_the_probe_reads_the_numbers_of_a_place(page: Page, visited: Visit, manifest: Manifest) -> None:
    """By mouse the cell that lies there; by keyboard the next ones."""
    selected(page, "stage3.0", "Contribution")
    answer = introspected(visited.origin, PHOTO, maps="f32")
    [block] = [each for each in manifest.blocks if each.name == "stage3.0"]
    canvas = page.locator("#viewer canvas.picture")
    canvas.scroll_into_view_if_needed()
    bounds = canvas.bounding_box()
    assert bounds
    x0, y0, x1, y1 = answer["image"]["model_box"]
    x, y = 0.3, 0.8  # of what the model saw
    place = (x0 + x * (x1 - x0)) / 500 * bounds["width"], (y0 + y * (y1 - y0)) / 375 * bounds["height"]
    canvas.hover(position={"x": place[0], "y": place[1]})
    crop, cells = manifest.preprocessing.crop, block.shape[1]
    row, column = (int(cells_of_pixels(block, cells, crop, 1000)[int(1000 * at)]) for at in (y, x))

    for key, (down, right) in {None: (0, 0), "ArrowRight": (0, 1), "ArrowUp": (-1, 1)}.items():
        if key:
            canvas.press(key)
        at = (row + down, column + right)
        readings = page.locator("#viewer table.readout")
        expect(readings).to_contain_text(f"Row {at[0] + 1}, column {at[1] + 1} of {cells} × {cells}")
        read = {row["Here"]: row["value"] for row in rows_of(readings)}
        assert number(read["Contribution"]) == pytest.approx(
            map_of(answer, "stage3.0", "contribution")[at], abs=5.1e-4
        )
        assert number(read["Residual branch"]) == pytest.approx(
            map_of(answer, "stage3.0", "residual")[at], abs=5.1e-4
        )
        assert number(read["Share"]) == pytest.approx(
            100 * map_of(answer, "stage3.0", "share")[at], abs=0.051
        )


@pytest.mark.parametrize("gate", ["1", "0.5"])
def test_the_parts_of_the_logit_sum_to_it(gate: str, page: Page) -> None:
    page.get_by_role("slider", name="gate of stage3.0").fill(gate)
    settled(page)
    *parts, total = rows_of(page.locator("#waterfall table"))
    assert [part["part"] for part in parts[:3]] == ["head bias", "stem", "shortcut biases"]
    assert len(parts) == 3 + 8
    logit = number(total["adds"])
    rounding = 5.1e-4 * len(parts)
    assert sum(number(part["adds"]) for part in parts) == pytest.approx(logit, abs=rounding)
    [target] = [each for each in said(page) if each.is_target]
    assert total["part"] == f"= logit of {target.label}"
    assert logit == pytest.approx(float(target.logit), abs=0.0051)


def test_lesions_are_measured_when_asked_for(page: Page, visited: Visit) -> None:
    page.get_by_role("button", name="Remove each block in turn").click()
    settled(page)
    answer = introspected(visited.origin, PHOTO, lesion="true")
    rows = rows_of(page.locator("#lesions table"))
    assert [row["block"] for row in rows] == [block["name"] for block in answer["blocks"]]
    for row, block in zip(rows, answer["blocks"], strict=True):
        lesion = block["lesion"]
        assert number(row["direct"]) == pytest.approx(block["contribution"], abs=0.0051)
        assert number(row["lost without it"]) == pytest.approx(-lesion["target_delta_logit"], abs=0.0051)
        assert row["answer without it"] == (lesion["label"] if lesion["flipped"] else "same")
    assert any(block["lesion"]["flipped"] for block in answer["blocks"])
    expect(page.locator("#lesions")).to_contain_text("They differ because")


def test_the_lens_and_the_depth_chart_have_the_numbers_of_the_answer(page: Page, visited: Visit) -> None:
    answer = introspected(visited.origin, PHOTO)
    seen = [block for block in answer["blocks"] if block["lens"]]
    rows = rows_of(page.locator("#lens table"))
    assert [row["stopped after"] for row in rows] == [block["name"] for block in seen]
    for row, block in zip(rows, seen, strict=True):
        lens = block["lens"]
        assert row["answer"] == lens["label"]
        assert number(row["probability"]) == pytest.approx(100 * lens["probability"], abs=0.051)
        assert number(row[answer["target"]["label"]]) == pytest.approx(
            100 * lens["target_probability"], abs=0.051
        )

    depth = page.locator("#depth")
    depth.get_by_text("As a table").click()
    depth.get_by_label("Shown").select_option(label="Size of the branch F")
    expect(depth.get_by_role("img", name="Size of the branch F of 8 blocks")).to_be_visible()
    for row, block in zip(rows_of(depth.locator("table")), answer["blocks"], strict=True):
        assert row["block"] == block["name"]
        assert number(row["this photograph"]) == pytest.approx(block["rms"]["residual"], abs=5.1e-4)


def test_charts_select_the_block_that_is_clicked(page: Page) -> None:
    heading = page.locator("#viewer h3")
    chart = page.locator("#depth").get_by_role("img")
    bounds = chart.bounding_box()
    assert bounds
    chart.click(position={"x": bounds["width"] - 30, "y": 100})
    expect(heading).to_have_text("stage4.1")
    page.locator("#waterfall").get_by_role("rowheader", name="stage2.1").click()
    expect(heading).to_have_text("stage2.1")
    expect(page.get_by_role("radio", name="stage2.1")).to_be_checked()


def test_the_depth_chart_shows_what_is_usual(page: Page, manifest: Manifest) -> None:
    assert manifest.reference is not None
    depth = page.locator("#depth")
    depth.get_by_text("As a table").click()
    depth.get_by_label("Shown").select_option(label="Size of the branch F")
    for row, usual in zip(
        rows_of(depth.locator("table")), manifest.reference.scalars["rms.residual"], strict=True
    ):
        assert usual is not None
        assert [number(row[name]) for name in ("5 %", "median", "95 %")] == pytest.approx(
            list(usual), abs=5.1e-4
        )
    expect(depth).to_contain_text(f"{manifest.reference.num_images} images of {manifest.reference.dataset}")


def test_two_photographs_on_one_scale(page: Page, visited: Visit) -> None:
    selected(page, "stage3.1", "Residual branch")
    page.get_by_role("button", name="Compare with another photograph").click()
    choose(page, OTHER, "other.png", slot=1)
    answers = [introspected(visited.origin, image, maps="f32") for image in (PHOTO, OTHER)]
    for slot, answer in enumerate(answers):
        listed = shown(page, slot)
        assert listed
        assert listed == predicted(answer, len(listed))
    expect(page.locator("#viewer canvas.picture")).to_have_count(2)
    largest = max(
        map_of(answer, block["name"], "residual").max() for answer in answers for block in answer["blocks"]
    )
    assert largest_of_bar(page) == pytest.approx(largest, abs=0.0051)
    for place in ("#waterfall", "#lens"):
        expect(page.locator(f"{place} table")).to_have_count(2)

    page.get_by_role("button", name="Remove", exact=True).click()
    settled(page)
    expect(page.locator("#viewer canvas.picture")).to_have_count(1)
    assert shown(page) == predicted(answers[0])


def logit_of_sum(page: Page) -> float:
    return number(rows_of(page.locator("#waterfall table"))[-1]["adds"])


def test_another_class_is_chosen(page: Page, visited: Visit) -> None:
    second = said(page)[1]
    page.locator("#labels").get_by_role("button", name=second.label).click()
    total = page.locator("#waterfall tr.total")
    expect(total).to_contain_text(f"= logit of {second.label}")
    assert [each.label for each in said(page) if each.is_target] == [second.label]
    assert logit_of_sum(page) == pytest.approx(float(second.logit), abs=0.0051)

    chooser = page.get_by_label("Target class")
    chooser.fill("no such thing")
    chooser.press("Enter")
    expect(page.locator("#labels")).to_contain_text("no class “no such thing”")
    chooser.fill("cauliflower")
    chooser.press("Enter")
    expect(total).to_contain_text("= logit of cauliflower")
    answer = introspected(visited.origin, PHOTO, target="cauliflower")
    assert logit_of_sum(page) == pytest.approx(answer["target"]["logit"], abs=5.1e-4)

    page.get_by_role("button", name="Follow the most probable").click()
    expect(total).to_contain_text(f"= logit of {said(page)[0].label}")
    expect(chooser).to_have_value("")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_copied_command_gives_what_is_shown(page: Page, visited: Visit, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    page.get_by_role("slider", name="gate of stage3.1").fill("0.25")
    settled(page)
    pick(page.get_by_role("group", name="Quantity shown").get_by_role("radio", name="Ratio"))

    def run_copied(form: str) -> bytes:
        curl = page.locator("#curl")
        pick(curl.get_by_role("radio", name=form))
        curl.get_by_role("button", name="Copy as curl").click()
        expect(curl.get_by_role("status")).to_have_text("Copied.")
        command = page.evaluate("() => navigator.clipboard.readText()")
        assert command == curl.locator("code").inner_text()
        ran = subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True)
        return ran.stdout

    answer = json.loads(run_copied("JSON"))
    assert predicted(answer) == shown(page)
    run_copied("NPZ")
    with np.load(tmp_path / "introspection.npz") as arrays:
        assert "maps/stage3.1/contribution" in arrays
    run_copied("PNG")
    with Image.open(tmp_path / "introspection.png") as sheet:
        assert sheet.width > 100
    run_copied("ZIP")
    with zipfile.ZipFile(tmp_path / "introspection.zip") as archive:
        assert {"introspection.json", "sheet.png", "blocks/stage3.1.png"} <= set(archive.namelist())


def test_two_photographs_are_made_to_be_about_one_class(page: Page, visited: Visit) -> None:
    page.get_by_role("button", name="Compare with another photograph").click()
    choose(page, OTHER, "other.png", slot=1)
    targets = [introspected(visited.origin, image)["target"] for image in (PHOTO, OTHER)]
    assert targets[0]["index"] != targets[1]["index"]
    labels = page.locator("#labels")
    expect(labels).to_contain_text(f"A is about {targets[0]['label']}, B about {targets[1]['label']}")
    page.get_by_role("slider", name="gate of stage3.1").fill("0.5")
    settled(page)
    for letter, target in zip("ab", targets, strict=True):
        expect(page.locator("#curl code")).to_contain_text(
            re.compile(rf'-T photo-{letter}\.jpg "\S+target={target["index"]}&')
        )

    labels.get_by_role("button", name=f"Both about {targets[0]['label']}").click()
    expect(labels).not_to_contain_text("A is about")
    for total in page.locator("#waterfall tr.total").all():
        expect(total).to_contain_text(f"= logit of {targets[0]['label']}")


@pytest.mark.parametrize("two", [False, True])
def test_all_beside_the_views_is_reached_without_a_scroll_of_its_own(two: bool, page: Page) -> None:
    if two:
        page.get_by_role("button", name="Compare with another photograph").click()
        choose(page, OTHER, "other.png", slot=1)
    side = page.locator(".side")
    assert side.evaluate("(side) => side.scrollHeight - side.clientHeight") <= 0
    for place in (page.get_by_role("button", name="Follow the most probable"), page.locator(".timing")):
        page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
        expect(place).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("size", [(2400, 120), (120, 2400), (400, 640)], ids=["wide", "tall", "portrait"])
def test_a_map_is_seen_whatever_the_photographs_shape(size: tuple[int, int], visited: Visit) -> None:
    """It fits the window, and is no line: where the model saw little of it, only that is drawn."""
    page = visited.page
    choose(page, encode(photograph(*size, seed=4), "PNG"), "odd.png")
    canvas = page.locator("#viewer canvas.picture")
    bounds = canvas.bounding_box()
    assert bounds
    height = page.viewport_size["height"] if page.viewport_size else 0
    assert 0.3 * height < bounds["height"] <= 0.75 * height + 1
    caption = page.locator("#viewer figcaption")
    if max(size) == 2400:
        expect(caption).to_contain_text(f"a part of its {size[0]} × {size[1]} pixels")
        assert bounds["width"] / bounds["height"] == pytest.approx(
            1.5 if size[0] > size[1] else 1 / 1.5, rel=0.02
        )
    else:
        expect(caption).not_to_contain_text("a part of")
        assert bounds["width"] / bounds["height"] == pytest.approx(size[0] / size[1], rel=0.02)

    # The cell that is read is outlined where the pointer is.
    canvas.scroll_into_view_if_needed()
    canvas.hover(position={"x": bounds["width"] / 2, "y": bounds["height"] / 2})
    canvas_box, cell = canvas.bounding_box(), page.locator("#viewer .cell").bounding_box()
    assert canvas_box
    assert cell
    for at, length in (("x", "width"), ("y", "height")):
        middle = canvas_box[at] + canvas_box[length] / 2
        assert cell[at] - 1 <= middle <= cell[at] + cell[length] + 1


def test_a_transparent_photograph_lies_on_white(visited: Visit, manifest: Manifest) -> None:
    """As the server lays it: what is below the map is what the model saw."""
    page = visited.page
    image = Image.open(io.BytesIO(encode(photograph(300, 300, seed=6), "PNG"))).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((300, 300)))
    transparent = encode(image, "PNG")
    choose(page, transparent, "transparent.png")
    selected(page, "stage3.0", "Share")
    page.get_by_role("slider", name="Opacity").fill("0")
    drawn = canvas_pixels(page)
    original = preprocess(transparent, manifest.preprocessing, keep_original=True)
    size = drawn.shape[0]
    assert introspected(visited.origin, transparent)["image"]["model_box"] == [0, 0, 300, 300]
    expected = grey_input(original, size).astype(np.int64)
    assert np.abs(drawn - expected[..., None]).max() <= 4


def test_what_is_usual_is_held_against_nothing_else(page: Page) -> None:
    """Neither against another class than it is known of, nor against what moved gates do."""
    depth = page.locator("#depth")
    depth.get_by_label("Shown").select_option(label="Contribution")
    expect(depth.locator(".band").first).to_be_attached()
    page.locator("#labels").get_by_role("button", name=said(page)[1].label).click()
    expect(depth.locator(".band")).to_have_count(0)
    expect(depth.locator(".outside")).to_have_count(0)
    expect(depth).not_to_contain_text("usually")
    page.get_by_role("button", name="Follow the most probable").click()
    expect(depth.locator(".band").first).to_be_attached()

    depth.get_by_label("Shown").select_option(label="Size of the branch F")
    page.get_by_role("slider", name="gate of stage1.0").fill("2")
    settled(page)
    expect(depth.locator(".before").first).to_be_attached()
    expect(depth.locator(".outside")).to_have_count(0)
    expect(page.locator("#viewer")).not_to_contain_text("Outside of the usual")


def test_the_lesions_have_room(page: Page) -> None:
    """Measured, they take the width, and no column is out of sight."""
    page.get_by_role("button", name="Remove each block in turn").click()
    settled(page)
    for width in (1440, 360):
        page.set_viewport_size({"width": width, "height": 900})
        for place in ("#lesions", "#lens"):
            hidden = page.locator(f"{place} .bars-scroll").evaluate(
                "(box) => box.scrollWidth - box.clientWidth"
            )
            assert hidden < 8, (place, width)  # of fonts that are wider than these
        expect(page.locator("#lesions").get_by_role("columnheader", name="change of")).to_be_visible()
