"""Trials of earlier starts, stored in the JSON file `engines.json` of the artifact's cache.

The file holds a few entries, the newest last. An entry's key is everything that could change the outcome. A
file that cannot be read, or that another version wrote in another form, counts as empty. A file that cannot
be written is no error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkstemp

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.machine import cpu_features, cpu_name, gpu_name, num_cores
from engines.registry import ENGINES, installed_version
from engines.selection.candidates import Candidate, cpu_threads
from engines.selection.source import S, Source
from engines.selection.trial import EngineTrial

logger = logging.getLogger("residuum")

FILE = "engines.json"
MAX_ENTRIES = 16  # an artifact's graphs under several settings


class Key(BaseModel):
    """The machine, the software, the artifact, the settings and the candidates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    gpu: str | None
    tensorrt: int | None  # None: no GPU, or not installed
    engines: dict[str, str | None]
    artifact: tuple[str, ...]  # name, version, SHA-256 of each graph
    max_batch_size: int
    threads: int
    instances: int
    candidates: tuple[str, ...]


class Entry(BaseModel):
    """The trials that were measured under a key."""

    key: Key
    trials: tuple[EngineTrial, ...]


class Entries(BaseModel):
    """The whole file."""

    entries: tuple[Entry, ...] = ()


def find_trials(source: Source[S], candidates: Sequence[Candidate]) -> tuple[EngineTrial, ...] | None:
    """Return what was measured under exactly this key, or None."""
    key = _key(source, candidates)
    return next((entry.trials for entry in _read(source.cache / FILE).entries if entry.key == key), None)


def keep_trials(source: Source[S], candidates: Sequence[Candidate], trials: tuple[EngineTrial, ...]) -> None:
    """Store an entry in place of an older one of the same key, atomically."""
    file, key = source.cache / FILE, _key(source, candidates)
    others = [entry for entry in _read(file).entries if entry.key != key]
    entries = Entries(entries=(*others, Entry(key=key, trials=trials))[-MAX_ENTRIES:])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = mkstemp(dir=file.parent)
        try:
            with open(handle, "w", encoding="utf-8") as new:
                new.write(entries.model_dump_json(indent=1) + "\n")
            os.chmod(name, 0o644)  # a server of another user may start from the same volume
            os.replace(name, file)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        logger.info("The choice of engines is not stored: %s", error)


def _key(source: Source[S], candidates: Sequence[Candidate]) -> Key:
    manifest, settings = source.manifest, source.settings
    return Key(
        cpu=cpu_name(),
        cpu_features=cpu_features(),
        cores=num_cores(),
        gpu=gpu_name(),
        tensorrt=_tensorrt_version(),
        engines={name: installed_version(name) for name in ENGINES},
        artifact=(manifest.name, manifest.version, *(graph.sha256 for graph in manifest.graphs)),
        max_batch_size=settings.max_batch_size,
        threads=cpu_threads(settings),
        instances=settings.instances,
        candidates=tuple(f"{source.kind}: {candidate}" for candidate in candidates),
    )


def _tensorrt_version() -> int | None:
    if gpu_name() is None:
        return None
    try:
        from engines.tensorrt import load_libraries
    except Exception:  # ONNX Runtime, which it imports, is not installed or does not start
        return None
    return load_libraries()


def _read(file: Path) -> Entries:
    try:
        return Entries.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return Entries()
