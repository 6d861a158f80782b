"""Downloads into a cache: resumed after an interruption, verified, and whole or not at all.

The module knows HTTP and hashes, and nothing of models. A cached file is at `cache/HOST/PATH` with its
SHA-256 beside it. Later calls use it without asking the server for a newer version.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from filelock import FileLock
from platformdirs import user_cache_path

from artifact.errors import ResiduumError

ATTEMPTS = 4  # in a row that bring less than PROGRESS_BYTES
PROGRESS_BYTES = 2**20  # an attempt that brings as many new bytes restarts the count
RETRY_DELAY_S = 0.5  # before the second attempt; doubled before each later one
RETRIED = {408, 425, 429, 500, 502, 503, 504}
SHA256 = re.compile(r"[0-9a-f]{64}")
# The Hugging Face hub gives the SHA-256 of a large file with its redirect; the ETag that the storage behind
# it sends looks like one and is not.
HUB_SHA256 = "x-linked-etag"

Progress = Callable[[str, int, int | None], None]  # the file's name, bytes so far, bytes in all if known


class DownloadError(ResiduumError):
    """The file cannot be downloaded; the message names the URL and says what to do."""


class _Missing(DownloadError):
    """The server has no such file; another attempt would not help."""


@dataclass(frozen=True)
class Download:
    """A file in the cache.

    Attributes:
        verified: the SHA-256 is the one that the caller expected, or that the hub's header announced. False:
            none was known, so only the length was checked.
    """

    path: Path
    url: str
    sha256: str
    verified: bool


def default_cache() -> Path:
    """Return this platform's directory for caches: `~/.cache/residuum` on Linux."""
    return user_cache_path("residuum", appauthor=False)


def cache_path(cache: Path, url: str) -> Path:
    """Return the path of a URL's file.

    Raises:
        DownloadError: not an http or https URL of a file.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise DownloadError(f"{url}: not a URL: {error}") from error
    parts = [part for part in parsed.path.split("/") if part]
    if parsed.scheme not in ("http", "https") or not parsed.host or not parts or ".." in parts:
        raise DownloadError(f"{url}: expected http:// or https://, a host and a path")
    return cache.joinpath(re.sub(r"[^\w.-]", "_", parsed.netloc.decode()), *parts)


def download(
    urls: Sequence[str],
    cache: Path,
    *,
    sha256: str | None = None,
    timeout_s: float = 30.0,
    offline: bool = False,
    progress: Progress | None = None,
    retry_delay_s: float = RETRY_DELAY_S,
) -> Download:
    """Return the file from the first of `urls` that has it; from the cache if it is there.

    Args:
        urls: of the same file: mirrors, then the source.
        sha256: the expected SHA-256 or its beginning; None: the hub's header may tell it.
        timeout_s: for the connection, and for each pause between two pieces.

    Raises:
        DownloadError: what every URL failed with.
    """
    sha256 = sha256.lower() if sha256 else None
    paths = {url: cache_path(cache, url) for url in urls}
    for url, path in paths.items():
        if found := _cached(url, path, sha256):
            return found
    if offline:
        where = paths[urls[-1]]
        raise DownloadError(
            f"{urls[-1]} is not in the cache ({where}): run it once with a network, without --offline"
        )
    failures: list[DownloadError] = []
    timeout = httpx.Timeout(timeout_s)
    with httpx.Client(
        timeout=timeout, follow_redirects=True, headers={"Accept-Encoding": "identity"}
    ) as client:
        for url, path in paths.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                # A second process waits here and then finds the file.
                with FileLock(path.with_name(path.name + ".lock")):
                    return _cached(url, path, sha256) or _fetch(
                        client, url, path, sha256, progress, retry_delay_s
                    )
            except DownloadError as error:
                failures.append(error)
            except OSError as error:
                raise DownloadError(f"cannot write {path}: {error.strerror or error}") from error
    kind = _Missing if all(isinstance(failure, _Missing) for failure in failures) else DownloadError
    raise kind("; ".join(map(str, failures)))


def is_missing(error: DownloadError) -> bool:
    """Return whether every server said that it has no such file."""
    return isinstance(error, _Missing)


def discard(path: Path) -> None:
    """Remove a file from the cache, so that the next call fetches it again."""
    _digest_file(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _cached(url: str, path: Path, sha256: str | None) -> Download | None:
    """Return the cached file; None if it is absent or was changed."""
    try:
        digest, _, verified = _digest_file(path).read_text(encoding="ascii").strip().partition(" ")
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, UnicodeDecodeError):
        return None
    if actual != digest or (sha256 and not actual.startswith(sha256)):
        return None
    return Download(path, url, actual, bool(sha256) or verified == "verified")


def _fetch(
    client: httpx.Client,
    url: str,
    path: Path,
    sha256: str | None,
    progress: Progress | None,
    retry_delay_s: float,
) -> Download:
    """Try until the file is whole, verify it, and move it to its place."""
    partial = _Partial(path)
    was_begun = partial.num_bytes > 0  # by an earlier run
    failed = furthest = 0
    while True:
        try:
            expected = _attempt(client, url, partial, sha256, progress)
            break
        except (_Retry, httpx.TransportError) as error:
            reason = str(error) or type(error).__name__
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DownloadError(f"{url}: {error}") from error
        # Progress counts from the furthest byte: a server that ignores ranges sends the same beginning for
        # ever.
        failed = 1 if partial.num_bytes - furthest >= PROGRESS_BYTES else failed + 1
        furthest = max(furthest, partial.num_bytes)
        if failed >= ATTEMPTS:
            kept = f"; {partial.num_bytes:,} bytes are kept, and the next run goes on from there"
            raise DownloadError(
                f"{url}: {reason} ({failed} attempts): check the network, or give a mirror"
                + (kept if partial.num_bytes else "")
            )
        time.sleep(retry_delay_s * 2 ** (failed - 1))
    digest = partial.digest()
    if expected and not digest.startswith(expected):
        partial.remove()
        if was_begun:  # the old part may be bad: once more from the beginning
            return _fetch(client, url, path, sha256, progress, retry_delay_s)
        raise DownloadError(
            f"{url}: the file's SHA-256 is {digest}, not {expected}{'...' if len(expected) < 64 else ''}: "
            "it was changed or damaged on its way and was removed; try again, or from another mirror"
        )
    _digest_file(path).write_text(digest + (" verified" if expected else ""), encoding="ascii")
    partial.move_to(path)
    return Download(path, url, digest, expected is not None)


class _Retry(Exception):
    """The attempt failed, and another may succeed."""


def _attempt(
    client: httpx.Client, url: str, partial: _Partial, sha256: str | None, progress: Progress | None
) -> str | None:
    """Make one request, append what the partial file lacks, and return the expected SHA-256."""
    with client.stream(
        "GET", url, headers=partial.range_headers(resume_unseen=sha256 is not None)
    ) as response:
        _check_no_downgrade(url, response)
        expected = sha256 or _hub_sha256(response)
        if response.status_code == 416:  # no more bytes: the file is whole, or is another file
            if response.headers.get("content-range") == f"bytes */{partial.num_bytes}" and expected:
                return expected
            partial.remove()
            raise _Retry("the server has another file than the one that was begun")
        _check_status(url, response)
        start = _first_byte(response)
        if start != partial.num_bytes:
            partial.restart()
            if start:
                raise _Retry("the server sent another part than the one asked for")
        length = response.headers.get("content-length", "")
        total = start + int(length) if length.isdigit() else None
        is_chunked = "chunked" in response.headers.get("transfer-encoding", "").lower()
        if total is None and not (is_chunked or expected):
            raise DownloadError(
                f"{url}: the server tells neither length nor SHA-256, so a cut would not show: refused"
            )
        partial.remember(response)
        with partial.path.open("ab") as file:
            for (
                piece
            ) in response.iter_raw():  # of no set size: a cut would lose what waits for the rest of it
                file.write(piece)
                partial.num_bytes += len(piece)
                if progress:
                    progress(partial.path.name.removesuffix(".partial"), partial.num_bytes, total)
    return expected


def _check_no_downgrade(url: str, response: httpx.Response) -> None:
    chain = [*response.history, response]
    if url.startswith("https:") and any(step.request.url.scheme != "https" for step in chain):
        raise DownloadError(f"{url}: redirects to {chain[-1].request.url}, which is not encrypted: refused")


def _check_status(url: str, response: httpx.Response) -> None:
    status = response.status_code
    if status in RETRIED:
        raise _Retry(f"the server answers {status} {response.reason_phrase}")
    if status in (404, 410):
        raise _Missing(f"{url}: {status} {response.reason_phrase}: there is no such file; check the name")
    if status in (401, 403):
        raise _Missing(
            f"{url}: {status} {response.reason_phrase}: no such file, or one that is not for everyone"
        )
    if status not in (200, 206):
        raise DownloadError(f"{url}: {status} {response.reason_phrase}: expected a file")


def _hub_sha256(response: httpx.Response) -> str | None:
    """Return the SHA-256 from the first response with the header: the redirect, not its target."""
    for step in (*response.history, response):
        digest = step.headers.get(HUB_SHA256, "").removeprefix("W/").strip('"').lower()
        if SHA256.fullmatch(digest):
            return str(digest)
    return None


def _first_byte(response: httpx.Response) -> int:
    """Return the position in the file at which the body begins."""
    found = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(found[1]) if response.status_code == 206 and found else 0


class _Partial:
    """The part of a file that has arrived, and the mark (ETag or date) of the server's version."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".partial")
        self.mark_path = path.with_name(path.name + ".partial.mark")
        self.num_bytes = self.path.stat().st_size if self.path.is_file() else 0

    def range_headers(self, *, resume_unseen: bool) -> dict[str, str]:
        """Return headers that ask for the rest.

        Without a mark they do so only if a SHA-256 will be checked (`resume_unseen`).
        """
        mark = self.mark_path.read_text(encoding="ascii") if self.mark_path.is_file() else ""
        if not self.num_bytes or not (mark or resume_unseen):
            self.restart()
            return {}
        return {"Range": f"bytes={self.num_bytes}-"} | ({"If-Range": mark} if mark else {})

    def remember(self, response: httpx.Response) -> None:
        """Store the mark of the server's version; a weak ETag is none: the bytes may differ."""
        etag = response.headers.get("etag", "")
        mark = etag if etag.startswith('"') else response.headers.get("last-modified", "")
        self.mark_path.write_text(mark, encoding="ascii", errors="ignore")

    def restart(self) -> None:
        self.path.write_bytes(b"")
        self.num_bytes = 0

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.mark_path.unlink(missing_ok=True)
        self.num_bytes = 0

    def digest(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def move_to(self, path: Path) -> None:
        self.path.replace(path)
        self.mark_path.unlink(missing_ok=True)
