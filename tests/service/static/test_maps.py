"""The page's arithmetic, run in a real Chromium, against the server's: maps, places, colours and words."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from playwright.sync_api import Page, Route

from artifact.manifest import Block, ReceptiveField
from introspection.catalogue import words
from introspection.document import to_json
from introspection.encoding import decode_map
from introspection.pictures import colormaps
from introspection.pictures.cells import Paint, cells_of_pixels, overlay
from introspection.quantities import MAPS, NUMBERS
from tests.support.browser import chromium
from tests.support.live import ROOT
from tests.support.measured import encoded

STATIC = ROOT / "service" / "static"
ORIGIN = "http://page.test"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A blank page of an origin whose files are service/static, without a server."""

    def serve(route: Route) -> None:
        path = urlsplit(route.request.url).path
        if path == "/":
            route.fulfill(content_type="text/html", body="<!doctype html><title>blank</title>")
        elif path == "/quantities.json":
            route.fulfill(content_type="application/json", body=to_json(words()))
        else:
            kind = mimetypes.guess_type(path)[0]
            route.fulfill(content_type=kind, body=(STATIC / path.lstrip("/")).read_bytes())

    with chromium() as browser, browser.new_page() as page:
        page.route(f"{ORIGIN}/**", serve)
        page.goto(f"{ORIGIN}/")
        yield page


def block(num_cells: int, stride: int, center0: float = 0.0, stage: int = 1) -> Block:
    return Block(
        name=f"stage{stage}.0",
        stage=stage,
        index=0,
        shortcut="identity",
        shape=(8, num_cells, num_cells),
        stride=stride,
        receptive_field=ReceptiveField(center0=center0, size=3 * stride),
    )


def test_color_tables_are_the_servers() -> None:
    """Read as text, so that they are held together where there is no browser too."""
    source = (STATIC / "colormaps.js").read_text()
    tables = {
        name: "".join(re.findall(r'"([0-9a-f]+)"', body))
        for name, body in re.findall(r'(\w+):\s*((?:"[0-9a-f]+"[\s+]*)+)', source)
    }
    for name in set(colormaps.COLORMAPS) - {"jet"}:
        ends = colormaps.colorize(np.linspace(0, 1, 33), name).round().astype(np.uint8)
        assert bytes.fromhex(tables[name]) == ends.tobytes()


@pytest.mark.parametrize("name", colormaps.COLORMAPS)
def test_colors_are_the_servers(page: Page, name: colormaps.ColormapName) -> None:
    units = [-0.5, *np.linspace(0, 1, 101).tolist(), 1.5]
    ours = page.evaluate(
        """async ([units, name]) => {
          const { colorize } = await import("/colormaps.js");
          return units.map((unit) => {
            const out = new Float64Array(3);
            colorize(unit, name, out);
            return [...out];
          });
        }""",
        [units, name],
    )
    np.testing.assert_allclose(ours, colormaps.colorize(np.array(units), name), atol=1e-9)


@pytest.mark.parametrize("encoding", ["u8", "f16", "f32"])
@pytest.mark.parametrize("quantity", ["residual", "cosine", "contribution"])
def test_maps_are_read_as_they_were_written(page: Page, encoding: Any, quantity: Any) -> None:
    values = np.random.default_rng(0).normal(0, 0.4, (5, 7)).clip(-1, 1)
    vmin, vmax = MAPS[quantity].range or (-1.0 if MAPS[quantity].symmetric else 0.0, 1.0)
    values[1, 2] = 1e-6  # a subnormal in float16
    if quantity == "cosine":
        values[2, 3] = np.nan
    entry = encoded(values.clip(vmin, vmax), quantity, vmin, vmax, encoding)
    decoded = page.evaluate(
        """async (entry) => {
          const { decodeMap } = await import("/maps.js");
          const { values, least, largest } = decodeMap(entry);
          return { values: [...values].map((value) => (Number.isNaN(value) ? null : value)), least, largest };
        }""",
        entry,
    )
    expected = decode_map(entry)
    ours = np.array([np.nan if value is None else value for value in decoded["values"]])
    np.testing.assert_allclose(ours, expected.reshape(-1), rtol=1e-6, atol=1e-9)
    assert decoded["least"] == pytest.approx(np.nanmin(expected))
    assert decoded["largest"] == pytest.approx(np.nanmax(expected))


@pytest.mark.parametrize(
    ("num_cells", "stride", "center0", "crop", "size"),
    [(4, 16, 0.0, 64, 301), (7, 32, 0.0, 224, 224), (56, 4, 1.5, 224, 97), (32, 1, 0.0, 32, 200)],
)
def test_cells_lie_where_the_server_puts_them(
    page: Page, num_cells: int, stride: int, center0: float, crop: int, size: int
) -> None:
    a_block = block(num_cells, stride, center0)
    ours = page.evaluate(
        """async ([block, numCells, crop, size]) => {
          const { cellsOfPixels, extentOfCell } = await import("/maps.js");
          const cells = [...cellsOfPixels(block, numCells, crop, size)];
          const all = [...Array(numCells).keys()];
          const extents = all.map((cell) => extentOfCell(block, numCells, crop, cell));
          return { cells, extents };
        }""",
        [a_block.model_dump(), num_cells, crop, size],
    )
    expected = cells_of_pixels(a_block, num_cells, crop, size)
    assert ours["cells"] == expected.tolist()
    # The outline of a cell runs around the pixels that show it.
    middles = (np.arange(size) + 0.5) / size
    for cell, (start, end) in enumerate(ours["extents"]):
        inside = (middles > start + 1e-9) & (middles < end - 1e-9)
        assert set(expected[inside]) <= {cell}


def test_pictures_are_the_servers(page: Page) -> None:
    """Pixel by pixel, with cells that are null, on a picture that is not square."""
    random = np.random.default_rng(1)
    values = random.normal(0, 1, (4, 4))
    values[1, 1] = np.nan
    grey = random.integers(0, 256, (90, 91), dtype=np.uint8)
    a_block = block(4, 16)
    for name, alpha in (("coolwarm", 0.6), ("jet", 1.0)):
        ours = page.evaluate(
            """async ([values, block, grey, width, style]) => {
              const { overlay } = await import("/picture.js");
              const map = { shape: [4, 4], values: Float32Array.from(values, (value) => value ?? NaN) };
              const below = Float64Array.from(grey);
              const { data } = overlay(map, block, [64, 64], below, width, grey.length / width, style);
              return btoa(String.fromCharCode(...data));
            }""",
            [
                [None if np.isnan(value) else value for value in values.reshape(-1).tolist()],
                a_block.model_dump(),
                grey.reshape(-1).tolist(),
                grey.shape[1],
                {"vmin": -2, "vmax": 2, "colormap": name, "alpha": alpha},
            ],
        )
        rgba = np.frombuffer(base64.b64decode(ours), np.uint8).reshape(*grey.shape, 4)
        theirs = overlay(values, a_block, 64, grey, Paint(-2.0, 2.0, name, alpha))  # type: ignore[arg-type]
        difference = np.abs(rgba[..., :3].astype(int) - theirs)
        assert difference.max() <= 1  # values in float32 here, in float64 there
        assert (difference > 0).mean() < 0.01
        assert (rgba[..., 3] == 255).all()


def test_scales(page: Page) -> None:
    """One for all blocks of all answers, or as chosen; signed ones symmetric; fixed ranges stay."""

    def answer(*peaks: tuple[int, float, float]) -> dict[str, Any]:
        blocks = []
        for stage, least, largest in peaks:
            maps = {
                "residual": {"least": 0.1, "largest": largest},
                "contribution": {"least": least, "largest": largest},
                "share": {"least": 0.2, "largest": 0.7},
            }
            blocks.append({"name": f"stage{stage}.0", "stage": stage, "maps": maps})
        return {"blocks": blocks}

    answers = [answer((1, -3.0, 1.0), (2, -1.0, 2.0)), answer((1, -1.0, 4.0), (2, 0.0, 0.5))]
    manifest = {"reference": {"maps": {"residual": [5, 6], "contribution": [7, 3]}}}

    def scale(quantity: str, choice: str) -> list[float]:
        ends: list[float] = page.evaluate(
            """async ([quantity, answers, scale, manifest]) => {
              const { mapRange } = await import("/maps.js");
              const { vmin, vmax } = mapRange(quantity, answers[0].blocks[1], answers, scale, manifest);
              return [vmin, vmax];
            }""",
            [quantity, answers, choice, manifest],
        )
        return ends

    assert scale("residual", "image") == [0, 4]
    assert scale("residual", "stage") == [0, 2]
    assert scale("residual", "reference") == [0, 6]
    assert scale("residual", "own") == [0, 2]
    assert scale("contribution", "image") == [-4, 4]
    assert scale("contribution", "stage") == [-2, 2]
    assert scale("contribution", "reference") == [-7, 7]
    assert scale("share", "image") == scale("share", "reference") == [0, 1]
    assert scale("share", "own") == [0.2, 0.7]


def test_every_quantity_has_its_words(page: Page) -> None:
    shown = page.evaluate(
        """async () => {
          const { QUANTITIES, SCALARS, SCALAR_GROUPS } = await import("/quantities.js");
          const { format } = await import("/numbers.js");
          const offered = SCALAR_GROUPS.flatMap(([, names]) => names);
          const numbers = [
            [0.531, SCALARS["share.residual"]], [-1.3249, SCALARS.contribution], [null, SCALARS.ratio],
            [-0.0001, { digits: 2, signed: true }],
          ];
          const written = numbers.map(([value, words]) => format(value, words));
          return { maps: QUANTITIES, scalars: SCALARS, offered, written };
        }"""
    )
    assert set(shown["maps"]) == set(MAPS)
    for quantity, each in shown["maps"].items():
        assert each["sentence"], quantity
        assert each["not"], quantity
        assert each["scalar"] in shown["scalars"]
        fixed = MAPS[quantity].range
        assert each["range"] == (list(fixed) if fixed else None)
    assert set(shown["scalars"]) == set(shown["offered"])
    assert set(NUMBERS) == set(shown["scalars"])
    assert shown["written"] == ["53.1 %", "−1.325", "–", "0.00"]


def told(page: Page, block: dict[str, Any], variant: str = "v1") -> str:
    sentences: list[str] = page.evaluate(
        """async ([block, variant]) => {
          const { story } = await import("/story.js");
          return story(block, { model: { variant }, target: { label: "teapot" } }, 1);
        }""",
        [block, variant],
    )
    return " ".join(sentences)


@pytest.mark.parametrize(
    ("contribution", "expected"),
    [
        (-0.0042, "takes 0.004 from the logit of teapot"),
        (0.00001, "hardly changes the logit of teapot"),
        (1.234, "adds 1.23 to the logit of teapot"),
    ],
)
def test_small_contributions_are_no_zeros(page: Page, contribution: float, expected: str) -> None:
    assert expected in told(page, {"contribution": contribution})


def test_the_direction_is_told_as_strongly_as_it_is(page: Page) -> None:
    def direction(cosine: float, shortcut: str = "identity") -> str:
        return told(page, {"share": {"residual": 0.4}, "cosine": cosine, "shortcut": shortcut})

    assert "leans slightly the shortcut’s way (cosine +0.25)" in direction(0.25)
    assert "leans slightly against the shortcut" in direction(-0.25)
    assert "leans the shortcut’s way (cosine +0.50)" in direction(0.5)
    assert "neither along the shortcut nor against" in direction(0.02)
    assert "cosine" not in direction(0.0, "pad")  # a concatenation's is 0 whatever it does


def test_how_many_numbers_are_unusual_beside_how_many_are_by_chance(page: Page) -> None:
    band = [[0, 1, 2]]
    compared = ["ratio", "cosine", "std_residual", "contribution"]
    block = dict.fromkeys(compared, 1.0) | {"ratio": 3.0, "outside_band": {"ratio": "above"}}
    found = [
        page.evaluate(
            """async ([block, answer, reference]) => {
              const { unusual } = await import("/story.js");
              return unusual(block, 0, answer, reference);
            }""",
            [block, {"target": {"index": 1}, "predictions": [{"index": top}]}, {"scalars": scalars}],
        )
        for top in (1, 2)
        for scalars in [dict.fromkeys(compared, band)]
    ]
    assert "1 of 4 numbers (0 or 1 would be chance)" in found[0]["summary"]
    assert "1 of 3 numbers" in found[1]["summary"]  # none is known of another class's contribution
    assert found[0]["names"] == ["Ratio |F| / |s|: above"]
