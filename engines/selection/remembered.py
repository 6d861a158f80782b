"""Which engine won, kept beside the artifact for the next start: a JSON file, read and written without fuss.

It holds a few entries, newest last, each under a key: everything that could change the outcome. A file that
cannot be read says nothing, and one that cannot be written is left.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkstemp

from pydantic import BaseModel, ConfigDict, ValidationError

from artifact.manifest import Manifest
from engines.machine import cpu_features, cpu_name, gpu_name, num_cores
from engines.registry import ENGINE_NAMES, installed_version
from engines.selection.trial import EngineTrial
from engines.settings import EngineSettings

logger = logging.getLogger("residuum")

KEPT = 16  # entries: two graphs, and some ways of starting the server


class Key(BaseModel):
    """The machine, the software, the artifact and what was asked for."""

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


class _Entry(BaseModel):
    key: Key
    trials: tuple[EngineTrial, ...]


class _File(BaseModel):
    entries: tuple[_Entry, ...] = ()


def trials_key(manifest: Manifest, settings: EngineSettings, threads: int, candidates: Sequence[str]) -> Key:
    return Key(
        cpu=cpu_name(),
        cpu_features=cpu_features(),
        cores=num_cores(),
        gpu=gpu_name(),
        tensorrt=_tensorrt_version(),
        engines={name: installed_version(name) for name in ENGINE_NAMES},
        artifact=(manifest.name, manifest.version, *(graph.sha256 for graph in manifest.graphs)),
        max_batch_size=settings.max_batch_size,
        threads=threads,
        instances=settings.instances,
        candidates=tuple(candidates),
    )


def find_trials(file: Path, key: Key) -> tuple[EngineTrial, ...] | None:
    """What was measured under that very key, or None."""
    return next((entry.trials for entry in _read(file).entries if entry.key == key), None)


def keep_trials(file: Path, key: Key, trials: tuple[EngineTrial, ...]) -> None:
    """Put an entry into the file, in place of an older one of the same key; all or nothing."""
    others = [entry for entry in _read(file).entries if entry.key != key]
    entries = _File(entries=(*others, _Entry(key=key, trials=trials))[-KEPT:])
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
        logger.info("The choice of engines is not kept: %s", error)


def _tensorrt_version() -> int | None:
    if gpu_name() is None:
        return None
    try:
        from engines.tensorrt import load_libraries
    except Exception:  # which is not installed, or does not start
        return None
    return load_libraries()


def _read(file: Path) -> _File:
    try:
        return _File.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return _File()
