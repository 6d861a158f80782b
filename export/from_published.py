"""Published weights, fetched by name: `models/pretrained.py` is the table of what there is.

Settings come in as plain values; this module reads no environment and prints nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from artifact.manifest import Preprocessing
from export.download import Download, DownloadError, Progress, discard, download, is_missing
from export.from_weights import Found, Say, discarded_if_bad
from models.pretrained import Kind, Pretrained, PretrainedError, read_preprocessing


@dataclass(frozen=True)
class Access:
    """How to reach the sources: base URLs in the order of the attempts, and the cache."""

    pytorch_urls: tuple[str, ...]
    hub_urls: tuple[str, ...]
    cache: Path
    timeout_s: float = 30.0
    offline: bool = False
    progress: Progress | None = None

    def urls(self, kind: Kind, path: str) -> tuple[str, ...]:
        bases = self.pytorch_urls if kind == "torchvision" else self.hub_urls
        return tuple(f"{base.rstrip('/')}/{path}" for base in bases)

    def get(self, kind: Kind, path: str, sha256: str | None = None) -> Download:
        return download(
            self.urls(kind, path),
            self.cache,
            sha256=sha256,
            timeout_s=self.timeout_s,
            offline=self.offline,
            progress=self.progress,
        )


def fetch(row: Pretrained, access: Access, say: Say) -> Found:
    """Return the file of published weights, from the cache or from the network, and its preprocessing.

    Raises:
        DownloadError: the file cannot be downloaded.
        SourceError, PretrainedError: its description cannot be read.
    """
    say(f"{row.key} ({row.licence})")
    if not row.is_commercial:
        say(f"its licence, {row.licence}, forbids commercial use")
    preprocessing = row.preprocessing
    if path := row.config_path():
        config = access.get(row.kind, path)
        with discarded_if_bad(_discard(config)):
            preprocessing = _read_config(row, config.path)
    weights = _first_file(row, access)
    if not weights.verified:
        say(f"no SHA-256 is published for {weights.url}: the file's SHA-256 is {weights.sha256}")
    return Found(weights.path, weights.url, weights.sha256, preprocessing, row, _discard(weights))


def _discard(file: Download) -> Callable[[], None] | None:
    """Return a function that removes the file from the cache; None: its published SHA-256 was right."""
    return None if file.verified else partial(discard, file.path)


def _first_file(row: Pretrained, access: Access) -> Download:
    """Download the first file that exists of those that the source may have."""
    failures = []
    for path in row.weight_paths():
        try:
            return access.get(row.kind, path, row.sha256)
        except DownloadError as error:
            if not (is_missing(error) or access.offline):
                raise
            failures.append(error)
    raise failures[0]


def _read_config(row: Pretrained, path: Path) -> Preprocessing:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise PretrainedError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise PretrainedError(f"{path} does not hold a description: expected a JSON object")
    return read_preprocessing(row.kind, config)
