"""Changes to the models of a running server: load, swap and unload, one at a time.

A change is asked for by a client or, with `--watch`, by an artifact that appears or changes on disk. A server
with several workers has its fleet repeat a client's change in every worker, and gives the state that all of
them should have to a worker that comes later. This module knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import chain, repeat
from pathlib import Path
from threading import Event
from typing import Protocol

from artifact.manifest import Manifest, ManifestError, read_manifest
from artifact.store import artifacts_in
from service.errors import LoadRefused
from service.runtime.load_threads import LoadThreads, LoadTimedOut
from service.runtime.model import LoadedModel
from service.runtime.repository import Repository, close_model
from service.runtime.wanted import Change, Wanted
from service.runtime.watch import changed_artifacts

logger = logging.getLogger("residuum")

Make = Callable[
    [Change], Awaitable[Change]
]  # makes a change; returns it with the model's own name and version

# Pauses between attempts to load what a worker should have and lacks; the last one repeats.
RETRY_S = (1, 5, 30, 60, 300)


class Fleet(Protocol):
    """The workers of one server, which all make the same changes to their models."""

    @property
    def wanted(self) -> Wanted | None:
        """What this worker should load at its start; None: what the settings name."""

    async def submit(self, change: Change) -> None:
        """Have every worker make a change, this worker included."""

    def found(self, change: Change) -> None:
        """Tell that this worker has loaded an artifact by itself."""

    async def follow(self, make: Make) -> None:
        """Make every change that any worker submits, until cancelled."""


class Changes:
    """Loads, swaps and unloads the models of a repository while it serves.

    Args:
        artifacts: the directory to watch; None: it is not watched.
        fleet: the workers of this server; None if this process is the only one.
        changed: called after every change.
    """

    def __init__(
        self,
        models: Repository,
        threads: LoadThreads,
        artifacts: Path | None,
        fleet: Fleet | None,
        changed: Callable[[], None],
    ) -> None:
        self._models = models
        self._threads = threads
        self._artifacts = artifacts
        self._fleet = fleet
        self._changed = changed
        self._lock = asyncio.Lock()  # one model is loaded or unloaded at a time
        self._unloaded: dict[Path, Manifest] = {}  # the watch leaves these alone until they change
        self._lacking: dict[str, Change] = {}  # what this worker should have, and tries to load again

    async def load_model(self, name: str) -> None:
        """Load an artifact by its name, or swap a loaded model for the version that its directory has now.

        Raises:
            UnknownModel: there is no artifact of that name.
            LoadRefused: the artifact cannot be served; a model that was loaded before is served on.
            NotReady: models are being loaded, or the server is shutting down.
        """
        await self._submit(Change(name, await asyncio.to_thread(self._models.locate, name)))

    async def unload_model(self, name: str) -> None:
        """Serve the model no more; requests that have leased it finish.

        Raises:
            UnknownModel: no loaded model has that name.
            NotReady: models are being loaded, or the server is shutting down.
        """
        self._models.check_known(name)
        await self._submit(Change(name, None))

    async def load_at_start(self) -> None:
        """Load what the settings name, or what the fleet wants; then every artifact found by the watch.

        Raises:
            LoadError, LoadRefused: a model that the settings name cannot be served. What the fleet wants and
                cannot be loaded is logged and tried again later, and the rest is served.
        """
        wanted = self._fleet.wanted if self._fleet is not None else None
        if wanted is None:
            await self._threads.run(
                self._models.load_configured, "the models", num_loads=self._models.num_configured
            )
        else:
            await self._load_wanted(wanted)
        if self._artifacts is not None:
            for directory in artifacts_in(self._artifacts):
                await self._load_found(directory)

    async def follow(self) -> None:
        """Make every change that any worker submits, until cancelled."""
        if self._fleet is not None:
            await self._fleet.follow(self._make)

    async def watch(self) -> None:
        """Load every artifact that appears or changes in the watched directory, until cancelled."""
        if self._artifacts is not None:
            async for directory in changed_artifacts(self._artifacts):
                if (change := await self._load_found(directory)) is not None and self._fleet is not None:
                    self._fleet.found(change)

    async def load_lacking(self) -> None:
        """Try to load what this worker should have and lacks, until it lacks nothing more."""
        for pause_s in chain(RETRY_S, repeat(RETRY_S[-1])):
            if not self._lacking:
                return
            await asyncio.sleep(pause_s)
            for change in [*self._lacking.values()]:
                async with self._lock:
                    if change.name in self._models.missing:
                        made = await self._try_to_load(change)
                        if made is not None and self._fleet is not None:
                            self._fleet.found(made)
                    else:  # a client has loaded or unloaded the model
                        del self._lacking[change.name]

    async def _submit(self, change: Change) -> None:
        if self._fleet is not None:
            await self._fleet.submit(change)
        else:
            await self._make(change)

    async def _make(self, change: Change) -> Change:
        """Make a change, unless it is made already."""
        async with self._lock:
            if change.directory is not None:
                if change.fingerprint and self._models.fingerprint(change.name) == change.fingerprint:
                    return change
                return await self._load_from(change.directory)
            if (model := self._models.remove(change.name)) is not None:
                self._unloaded[model.directory] = model.manifest
            self._changed()
            logger.info("%s is unloaded", change.name)
            return change

    async def _load_wanted(self, wanted: Wanted) -> None:
        if self._artifacts is not None:
            found = {path: _manifest(path) for path in artifacts_in(self._artifacts)}
            unloaded = set(wanted.unloaded)
            self._unloaded = {path: each for path, each in found.items() if each and each.name in unloaded}
        for change in wanted.loaded:
            self._models.expect(change)
        for change in wanted.loaded:
            await self._try_to_load(change)
        self._models.open()

    async def _try_to_load(self, change: Change) -> Change | None:
        """Load what this worker should have; if that fails, log why when the reason is a new one."""
        assert change.directory is not None
        try:
            made = await self._load_from(change.directory)
        except LoadRefused as error:
            if self._models.missing.get(change.name) != error.detail:
                logger.error("%s is not served by this worker: %s", change.name, error.detail)
            self._models.miss(change.name, error.detail)
            if isinstance(error, LoadTimedOut):  # each attempt may cost a thread that never ends
                self._lacking.pop(change.name, None)
            else:
                self._lacking[change.name] = change
            return None
        self._lacking.pop(change.name, None)
        return made

    async def _load_found(self, directory: Path) -> Change | None:
        """Load what the watch has found, unless it is loaded or was unloaded as it is."""

        def load(stop: Event) -> LoadedModel | None:
            return None if self._is_settled(directory) else self._models.load(directory, stop)

        def discard(model: LoadedModel | None) -> None:
            if model is not None:
                close_model(model)

        async with self._lock:
            try:
                model = await self._threads.run(load, str(directory), discard)
            except LoadRefused as error:
                logger.error("%s", error.detail)
                return None
            return None if model is None else self._serve(model)

    async def _load_from(self, directory: Path) -> Change:
        def load(stop: Event) -> LoadedModel:
            return self._models.load(directory, stop)

        return self._serve(await self._threads.run(load, str(directory), close_model))

    def _serve(self, model: LoadedModel) -> Change:
        self._models.put(model)
        self._unloaded.pop(model.directory, None)
        self._changed()
        if self._models.is_open:  # else the supervisor says what the server has
            logger.info("%s is loaded: version %s", model.name, model.manifest.version)
        return Change(model.name, model.directory, model.fingerprint)

    def _is_settled(self, directory: Path) -> bool:
        """Return whether the artifact in `directory` is loaded as it is now, or was unloaded as it is."""
        unloaded = self._unloaded.get(directory)
        return self._models.is_current(directory) or (
            unloaded is not None and unloaded == _manifest(directory)
        )


def _manifest(directory: Path) -> Manifest | None:
    try:
        return read_manifest(directory, verify=False)
    except ManifestError:
        return None
