"""Changes to the models of a running server: load, swap and unload, one at a time.

A change is asked for by a client or, with `--watch`, by an artifact that appears or changes on disk. A server
with several workers has its fleet repeat a client's change in every worker. This module knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, Protocol

from artifact.store import artifacts_in
from service.errors import LoadRefused
from service.runtime.repository import Repository
from service.runtime.watch import changed_artifacts

logger = logging.getLogger("residuum")

Action = Literal["load", "unload"]
Apply = Callable[[Action, str], Awaitable[None]]  # makes the action on the model of that name


class Fleet(Protocol):
    """The workers of one server, which all make the same changes to their models."""

    async def submit(self, action: Action, name: str) -> None:
        """Have every worker make a change, this worker included."""

    async def catch_up(self, apply: Apply) -> None:
        """Make the changes that the server had made before this worker started."""

    async def follow(self, apply: Apply) -> None:
        """Make every change that any worker submits, until cancelled."""


class Changes:
    """Loads, swaps and unloads the models of a repository while it serves.

    Args:
        artifacts: the directory to watch.
        fleet: the workers of this server; None if this process is the only one.
        changed: called after every change.
    """

    def __init__(
        self, models: Repository, artifacts: Path, fleet: Fleet | None, changed: Callable[[], None]
    ) -> None:
        self._models = models
        self._artifacts = artifacts
        self._fleet = fleet
        self._changed = changed
        self._lock = asyncio.Lock()  # one model is loaded or unloaded at a time

    async def load_model(self, name: str) -> None:
        """Load an artifact by its name, or swap a loaded model for the version that its directory has now.

        Raises:
            UnknownModel: there is no artifact of that name.
            LoadRefused: the artifact cannot be served; a model that was loaded before is served on.
        """
        await self._submit("load", name)

    async def unload_model(self, name: str) -> None:
        """Serve the model no more; requests that have leased it finish.

        Raises:
            UnknownModel: no loaded model has that name.
        """
        await self._submit("unload", name)

    async def catch_up(self) -> None:
        """Make the changes that the fleet had made before this worker started."""
        if self._fleet is not None:
            await self._fleet.catch_up(self._make)

    async def follow(self) -> None:
        """Make every change that any worker submits, until cancelled."""
        if self._fleet is not None:
            await self._fleet.follow(self._make)

    async def load_all_found(self) -> None:
        """Load every artifact in the watched directory that is not loaded yet; log those that are refused."""
        for directory in artifacts_in(self._artifacts):
            await self._load_found(directory)

    async def watch(self) -> None:
        """Load every artifact that appears or changes in the watched directory, until cancelled."""
        async for directory in changed_artifacts(self._artifacts):
            await self._load_found(directory)

    async def _submit(self, action: Action, name: str) -> None:
        if self._fleet is not None:
            await self._fleet.submit(action, name)
        else:
            await self._make(action, name)

    async def _make(self, action: Action, name: str) -> None:
        async with self._lock:
            if action == "load":
                await self._load_from(await asyncio.to_thread(self._models.locate, name))
            else:
                self._models.remove(name)
                self._changed()
                logger.info("%s is unloaded", name)

    async def _load_found(self, directory: Path) -> None:
        async with self._lock:
            try:
                if not await asyncio.to_thread(self._models.is_current, directory):
                    await self._load_from(directory)
            except LoadRefused as error:
                logger.error("%s", error.detail)

    async def _load_from(self, directory: Path) -> None:
        model = await asyncio.to_thread(self._models.load, directory)
        self._models.put(model)
        self._changed()
        logger.info("%s is loaded: version %s", model.name, model.manifest.version)
