"""The downloader against a real server on loopback that misbehaves in every way that servers do."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from export.download import (
    ATTEMPTS,
    Download,
    DownloadError,
    cache_path,
    default_cache,
    discard,
    download,
    is_missing,
)
from tests.conftest import ROOT
from tests.support.files_server import FilesServer, ServedFile, files_server

DATA = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server() -> Iterator[FilesServer]:
    with files_server() as server:
        yield server


def fetch(cache: Path, *urls: str, **options: Any) -> Download:
    return download(urls, cache, retry_delay_s=0, **{"timeout_s": 10, **options})


def files_in(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file()} - {"w.pth.lock"}


@pytest.mark.parametrize("sha256", [SHA256, SHA256.upper(), SHA256[:8]])
def test_a_good_file_is_fetched_once(server: FilesServer, tmp_path: Path, sha256: str) -> None:
    url = server.add("models/w.pth", DATA)
    heard: list[tuple[str, int, int | None]] = []
    found = fetch(tmp_path, url, sha256=sha256, progress=lambda *step: heard.append(step))
    assert found == Download(cache_path(tmp_path, url), url, SHA256, verified=True)
    assert found.path.read_bytes() == DATA
    assert heard[-1] == ("w.pth", len(DATA), len(DATA))
    assert files_in(tmp_path) == {"w.pth", "w.pth.sha256"}
    assert fetch(tmp_path, url, sha256=sha256) == found
    assert len(server.seen) == 1


def test_what_nobody_vouches_for_is_not_verified(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA)
    assert not fetch(tmp_path, url).verified
    assert not fetch(tmp_path, url).verified
    assert fetch(tmp_path, url, sha256=SHA256).verified


@pytest.mark.parametrize("known", [True, False])
def test_a_changed_file_is_refused_and_removed(server: FilesServer, tmp_path: Path, known: bool) -> None:
    """Whether we knew the SHA-256 or the hub's redirect told."""
    url = server.add("w.pth", DATA[:-1] + b"?")
    server.add("hub/w.pth", redirect=url, headers={"X-Linked-ETag": f'"{SHA256}"'})
    with pytest.raises(DownloadError, match="was changed or damaged on its way and was removed") as caught:
        fetch(tmp_path, url if known else f"{server.url}/hub/w.pth", sha256=SHA256 if known else None)
    assert SHA256 in str(caught.value)
    assert files_in(tmp_path) == set()


def test_a_redirect_tells_the_hash_and_what_it_leads_to_does_not(server: FilesServer, tmp_path: Path) -> None:
    target = server.add("storage", DATA, etag='"' + "0" * 64 + '"', headers={"X-Linked-ETag": '"short"'})
    url = server.add("w.pth", redirect=target, headers={"X-Linked-ETag": f'"{SHA256}"'})
    found = fetch(tmp_path, url)
    assert (found.sha256, found.verified, found.url) == (SHA256, True, url)


@pytest.mark.parametrize("known", [True, False])
def test_a_cut_is_resumed(server: FilesServer, tmp_path: Path, known: bool) -> None:
    url = server.add("w.pth", DATA, cuts=[100_000, 50_000])
    assert fetch(tmp_path, url, sha256=SHA256 if known else None).path.read_bytes() == DATA
    first, second, third = server.seen
    assert "range" not in first.headers
    assert (second.headers["range"], second.headers["if-range"]) == ("bytes=100000-", '"1"')
    assert third.headers["range"] == "bytes=150000-"
    assert [request.sent for request in server.seen] == [100_000, 50_000, 150_000]


def test_the_next_run_resumes(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA, cuts=[100_000, *[0] * ATTEMPTS])
    with pytest.raises(DownloadError, match="100,000 bytes are kept, and the next run goes on from there"):
        fetch(tmp_path, url)
    server.files["/w.pth"].cuts.clear()
    assert fetch(tmp_path, url).path.read_bytes() == DATA
    assert server.seen[-1].sent == len(DATA) - 100_000


def test_a_server_that_ignores_ranges_is_read_from_the_start(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA, cuts=[100_000], ranges=False)
    assert fetch(tmp_path, url).path.read_bytes() == DATA
    assert server.seen[1].headers["range"] == "bytes=100000-"
    assert server.seen[1].sent == len(DATA)


def test_the_same_beginning_again_and_again_is_no_progress(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA * 8, cuts=[2_000_000] * 20, ranges=False)
    with pytest.raises(DownloadError, match=rf"\({ATTEMPTS} attempts\)"):
        fetch(tmp_path, url)
    assert len(server.seen) == ATTEMPTS


class Unmeasured(FilesServer):
    """Tells no length: the body ends with the connection."""

    @staticmethod
    def _end_headers(handler: BaseHTTPRequestHandler, file: ServedFile, length: int) -> None:
        handler.end_headers()


def test_a_body_of_no_known_length_needs_a_hash(tmp_path: Path) -> None:
    server = Unmeasured()
    server.start()
    try:
        url = server.add("w.pth", DATA)
        with pytest.raises(DownloadError, match="neither length nor SHA-256, so a cut would not show"):
            fetch(tmp_path, url)
        assert fetch(tmp_path, url, sha256=SHA256).path.read_bytes() == DATA
    finally:
        server.stop()


def test_what_is_discarded_is_fetched_again(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA)
    discard(fetch(tmp_path, url).path)
    assert files_in(tmp_path) == set()
    assert fetch(tmp_path, url).path.read_bytes() == DATA
    assert len(server.seen) == 2


def test_a_file_that_changed_meanwhile_is_read_from_the_start(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA, cuts=[100_000, *[0] * ATTEMPTS])
    with pytest.raises(DownloadError):
        fetch(tmp_path, url)
    other = DATA[::-1] + b"longer"
    server.add("w.pth", other, etag='"2"')
    assert fetch(tmp_path, url).path.read_bytes() == other


def test_without_a_mark_only_a_hash_lets_it_resume(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA, cuts=[100_000], etag=None)
    assert fetch(tmp_path / "a", url).sha256 == SHA256
    assert "range" not in server.seen[1].headers
    server.add("w.pth", DATA, cuts=[100_000], etag=None)
    assert fetch(tmp_path / "b", url, sha256=SHA256).sha256 == SHA256
    assert server.seen[3].headers["range"] == "bytes=100000-"


def test_a_bad_beginning_is_thrown_away(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA)
    for beginning in (b"x" * 1000, b"x" * len(DATA), b"x" * (len(DATA) + 1)):
        partial = cache_path(tmp_path, url).with_name("w.pth.partial")
        partial.parent.mkdir(exist_ok=True)
        partial.write_bytes(beginning)
        found = fetch(tmp_path, url, sha256=SHA256)
        assert found.path.read_bytes() == DATA
        found.path.unlink()


def test_a_whole_part_is_recognised(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA)
    partial = cache_path(tmp_path, url).with_name("w.pth.partial")
    partial.parent.mkdir()
    partial.write_bytes(DATA)
    assert fetch(tmp_path, url, sha256=SHA256).path.read_bytes() == DATA
    assert [request.sent for request in server.seen] == [0]


def test_a_cached_file_that_rotted_is_fetched_again(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA)
    path = fetch(tmp_path, url).path
    path.write_bytes(DATA[:-1] + b"?")
    with pytest.raises(DownloadError, match="not in the cache"):
        fetch(tmp_path, url, offline=True)
    assert fetch(tmp_path, url).path.read_bytes() == DATA


@pytest.mark.parametrize("status", [404, 410, 401, 403])
def test_what_is_not_there_is_named_and_asked_for_once(
    server: FilesServer, tmp_path: Path, status: int
) -> None:
    url = server.add("w.pth", statuses=[status])
    with pytest.raises(DownloadError, match=f"{url}: {status} .*no such file") as caught:
        fetch(tmp_path, url)
    assert is_missing(caught.value)
    assert len(server.seen) == 1


def test_busy_servers_are_asked_again(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA, statuses=[503, 429, 500])
    assert fetch(tmp_path, url).sha256 == SHA256
    server.add("x.pth", DATA, statuses=[503] * 9)
    with pytest.raises(DownloadError, match=rf"503 .*\({ATTEMPTS} attempts\): check the network") as caught:
        fetch(tmp_path, f"{server.url}/x.pth")
    assert not is_missing(caught.value)


def test_silence_runs_into_the_timeout(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA, hold=True)
    with pytest.raises(DownloadError, match=r"timed out \(4 attempts\)"):
        fetch(tmp_path, url, timeout_s=0.05)
    assert len(server.seen) == ATTEMPTS


def test_nobody_listens(tmp_path: Path) -> None:
    with files_server() as server:
        url = f"{server.url}/w.pth"
    with pytest.raises(DownloadError, match="check the network, or give a mirror"):
        fetch(tmp_path, url)


def test_redirects_in_a_circle_end(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", redirect="/w.pth")
    with pytest.raises(DownloadError, match="redirect"):
        fetch(tmp_path, url)


@pytest.mark.parametrize("mirror", ["absent", "damaged", "busy"])
def test_what_the_mirror_lacks_comes_from_the_source(
    server: FilesServer, tmp_path: Path, mirror: str
) -> None:
    how: dict[str, Any] = {"damaged": {"data": DATA[1:]}, "busy": {"statuses": [503] * 9}}.get(mirror, {})
    url = server.add("mirror/w.pth", **how) if how else f"{server.url}/mirror/w.pth"
    source = server.add("source/w.pth", DATA)
    found = fetch(tmp_path, url, source, sha256=SHA256)
    assert (found.url, found.sha256) == (source, SHA256)
    assert fetch(tmp_path, url, source, sha256=SHA256, offline=True).url == source


def test_the_mirror_comes_first(server: FilesServer, tmp_path: Path) -> None:
    mirror, source = server.add("mirror/w.pth", DATA), server.add("source/w.pth", DATA)
    assert fetch(tmp_path, mirror, source).url == mirror
    assert [request.path for request in server.seen] == ["/mirror/w.pth"]


def test_failures_of_all_are_told(server: FilesServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"/a/w\.pth: 404 .*/b/w\.pth: 404") as caught:
        fetch(tmp_path, f"{server.url}/a/w.pth", f"{server.url}/b/w.pth")
    assert is_missing(caught.value)


def test_offline(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA)
    with pytest.raises(DownloadError, match=r"w\.pth is not in the cache .*without --offline"):
        fetch(tmp_path, url, offline=True)
    fetch(tmp_path, url)
    assert fetch(tmp_path, url, offline=True).path.read_bytes() == DATA
    assert len(server.seen) == 1


def test_two_processes_fetch_it_once(server: FilesServer, tmp_path: Path) -> None:
    url = server.add("w.pth", DATA * 10)
    code = (
        "import sys; from pathlib import Path; from export.download import download;"
        "print(download([sys.argv[1]], Path(sys.argv[2])).sha256)"
    )
    command = [sys.executable, "-c", code, url, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert said == {hashlib.sha256(DATA * 10).hexdigest()}
    assert len(server.seen) == 1


@pytest.mark.parametrize("url", ["ftp://host/file", "host/file", "https://host", "https://", ""])
def test_urls_that_are_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError):
        cache_path(tmp_path, url)


def test_a_cache_that_cannot_be_written(server: FilesServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot write"):
        fetch(tmp_path / "file", server.add("w.pth", DATA))


def test_the_cache_is_where_the_platform_has_caches() -> None:
    assert default_cache().name in ("residuum", "Cache")
