"""The page at / as files: complete, of the right types, nothing inline, and nothing from another host."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin

import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.http.app import create_app
from service.settings import Settings
from tests.support.live import ROOT

STATIC = ROOT / "service" / "static"
SAMPLES = STATIC / "samples"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# How files name others: attributes of the page; imports of modules, and paths in their text; url() in styles.
REFERENCES = {
    ".html": r'(?:src|href)="([^"#]+)"',
    ".js": r'(?:from|import) "(\./[^"]+)"|"(static/[^"]+)"',
    ".css": r'(?:url\(|@import )"?([^")]+)',
}
SOURCES = sorted(path for path in STATIC.rglob("*") if path.suffix in (".html", ".css", ".js", ".svg"))


@pytest.fixture(scope="module")
def client() -> TestClient:
    """The application with keys, of which the page needs none; it needs no loaded model either."""
    return TestClient(create_app(Settings(api_key=("an-api-key",))), base_url="http://page")


def references(path: str, text: str) -> set[str]:
    """The paths that the file at the URL path `path` names, with static/... counted from the page's place."""
    suffix = PurePosixPath(path).suffix or ".html"
    names = ["".join(found) for found in re.findall(REFERENCES.get(suffix, "(?!)"), text)]
    return {urljoin("/" if name.startswith("static/") else path, name) for name in names}


def crawl(client: TestClient) -> dict[str, str]:
    """Path -> content type, of everything that the page is made of."""
    found: dict[str, str] = {}
    left = {"/"}
    while left:
        path = left.pop()
        answer = client.get(path)
        assert answer.status_code == 200, path
        found[path] = answer.headers["content-type"]
        named = references(path, answer.text) if not found[path].startswith("image/jpeg") else set()
        left |= {name for name in named if name != "/docs"} - found.keys()
    return found


# What is served


def test_the_front_page(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == POLICY
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.content == (STATIC / "index.html").read_bytes()


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/static/base.css", "/static/quantities.json"])
def test_a_browser_asks_whether_its_copy_is_still_right(client: TestClient, path: str) -> None:
    first = client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "no-cache"
    assert client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/static/quantities.json"])
def test_head(client: TestClient, path: str) -> None:
    head = client.head(path)
    assert head.status_code == 200
    assert int(head.headers["content-length"]) == len(client.get(path).content)


def test_every_file_that_the_page_names_is_there_and_of_its_type(client: TestClient) -> None:
    found = crawl(client)
    assert len(found) > 20
    for path, content_type in found.items():
        if path != "/":
            assert content_type == TYPES[PurePosixPath(path).suffix], path
    held = {f"/static/{path.relative_to(STATIC).as_posix()}" for path in STATIC.rglob("*") if path.is_file()}
    unnamed = held - found.keys()
    assert unnamed == {"/static/index.html", "/static/samples/README.md"}


@pytest.mark.parametrize(
    "path",
    [
        "/static/nix.js",
        "/static/",
        "/static/samples",
        "/static/..%2Fsettings.py",
        "/static/%2Fetc%2Fpasswd",
        "/static/a%00b",
    ],
)
def test_what_is_no_file_of_the_page(client: TestClient, path: str) -> None:
    answer = client.get(path, headers={"X-API-Key": "an-api-key"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_files_are_only_read(client: TestClient) -> None:
    answer = client.post("/static/app.js", headers={"X-API-Key": "an-api-key"})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "HEAD, OPTIONS, GET"


# What a browser may run


def test_the_page_has_no_inline_script_or_style() -> None:
    page = (STATIC / "index.html").read_text()
    for script in re.findall(r"<script\b[^>]*>[^<]*", page):
        assert re.fullmatch(r'<script( type="module")? src="static/[\w.]+"( type="module")?>', script.strip())
    assert "<style" not in page
    assert not re.search(r"<[^>]+\s(?:style|on\w+)\s*=", page)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_sources(path: Path) -> None:
    """Nothing from another host, no markup or code made from text; the SVG namespace is no request."""
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"\b(?:https?|wss?|ftp)://", text)
    assert not re.search(r"""["'(]//\w""", text)  # of the same scheme
    if path.suffix == ".js":
        made_from_text = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        assert not re.search(made_from_text, text)
        assert not re.search(r"""setAttribute\(\s*["'](?:style|on)""", text)
        assert not re.search(r"""\bstyle: ["'`]""", text)


def test_the_page_names_its_api_from_where_it_lies() -> None:
    """Behind a proxy that serves it under a path of its own, an absolute path would miss it."""
    named = references("/", (STATIC / "index.html").read_text())
    assert "/static/app.js" in named
    assert not re.search(r'(?:src|href)="/', (STATIC / "index.html").read_text())
    for path in STATIC.glob("*.js"):
        assert not re.search(r"""(?:fetch|request)\(["'`]/""", path.read_text()), path.name


# Samples


def test_samples_are_small_and_say_where_they_are_from() -> None:
    listed = re.findall(r'file: "static/samples/([^"]+)"', (STATIC / "samples.js").read_text())
    files = {path.name for path in SAMPLES.glob("*.jpg")}
    assert set(listed) == files
    assert len(files) >= 2
    readme = (SAMPLES / "README.md").read_text()
    for name in files:
        row = re.search(rf"\| `{re.escape(name)}` \|[^|]+\|[^|]+\|([^|]+)\|", readme)
        assert row
        assert row[1].strip()
        assert (SAMPLES / name).stat().st_size <= 45_000
        with Image.open(SAMPLES / name) as image:
            assert image.format == "JPEG"
            assert max(image.size) <= 480
