"""The models of a server: load, lease to requests, swap, unload.

A request leases its model. A model that is swapped for another version or unloaded takes no new requests, and
is closed when its last lease ends. `load_configured`, `load`, `locate`, `is_current` and `known` block, and
run on other threads; every other method belongs to the event loop's thread. This module knows no HTTP but the
errors for an unknown name, a refused change and a server that is not ready.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from artifact.manifest import ManifestError, read_manifest
from artifact.store import EMBEDDED, artifacts_in, find_artifact, is_artifact
from service.errors import LoadRefused, NotReady, UnknownModel
from service.runtime import allocator
from service.runtime.loading import load_model
from service.runtime.model import Devices, LoadedGraph, LoadedModel
from service.runtime.opening import LoadError
from service.settings import Settings
from service.telemetry.metrics import Metrics

logger = logging.getLogger("residuum")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # never a path
SERVED_ON = "What was loaded before is served on."


class Repository:
    """The loaded models by name; the first one is the default. It is empty until `load_configured`.

    Args:
        stop: set when loading should end early.
    """

    def __init__(self, settings: Settings, metrics: Metrics | None = None, stop: Event | None = None) -> None:
        self._settings = settings
        self._metrics = metrics or Metrics()
        self._stop = stop
        self._devices = Devices(settings)
        self._models: dict[str, LoadedModel] = {}
        self._directories: dict[str, Path] = {}  # of every model that was ever loaded
        self._leases: dict[LoadedModel, int] = {}
        self._closing: list[Thread] = []
        self._why_not_ready: str | None = "loading its models"

    def load_configured(self) -> None:
        """Load every model of `settings.model`.

        Raises:
            LoadError: a model cannot be served, loading was stopped, or there is no directory to watch; the
                models that were loaded before are closed again.
        """
        try:
            if self._settings.watch and not self._settings.artifacts.is_dir():
                raise LoadError(
                    f"--watch: there is no directory {self._settings.artifacts}; --artifacts says which"
                )
            for name in self._settings.model:
                model = self._load(find_artifact(name, self._settings.artifacts))
                if model.name in self._models:
                    model.close()
                    raise LoadError(f"--model {name}: a model named {model.name!r} is loaded already")
                self.put(model)
        except BaseException as error:
            self._why_not_ready = f"failed: {str(error) or repr(error)}"
            self.close()
            raise
        self._why_not_ready = None

    def __iter__(self) -> Iterator[LoadedModel]:
        """Iterate over the loaded models; raise NotReady before they are loaded."""
        self._check_ready()
        return iter(tuple(self._models.values()))

    def graphs(self) -> list[tuple[LoadedModel, LoadedGraph]]:
        """Return every graph that is loaded now, with its model."""
        return [(model, graph) for model in [*self._models.values()] for graph in model.graphs.values()]

    @property
    def devices(self) -> Devices:
        return self._devices

    def get(self, name: str | None) -> LoadedModel:
        """Return the model of that name, or the default one.

        Raises:
            UnknownModel: no loaded model has that name.
            NotReady: models are being loaded or could not be, or there is no default one: all are unloaded.
        """
        self._check_ready()
        if name is None:
            for model in self._models.values():
                return model
            raise NotReady("No model is loaded.")
        try:
            return self._models[name]
        except KeyError:
            loaded = ", ".join(self._models) or "none"
            raise UnknownModel(f"There is no model named {name!r}.", f"Loaded: {loaded}.") from None

    @contextmanager
    def lease(self, name: str | None) -> Iterator[LoadedModel]:
        """Keep a model open until the end of `with`, whatever is swapped or unloaded; raise as `get`."""
        model = self.get(name)
        self._leases[model] += 1
        try:
            yield model
        finally:
            self._leases[model] -= 1
            self._close_unused(model)

    def locate(self, name: str) -> Path:
        """Return an artifact's directory by its model's name, or by its own name below --artifacts.

        Raises:
            UnknownModel: there is no such artifact, or `name` is a path.
            NotReady: models are being loaded, or could not be.
        """
        self._check_ready()
        if NAME.fullmatch(name):
            known = self.known()
            if name in known:
                return known[name]
            if name == EMBEDDED or is_artifact(self._settings.artifacts / name):
                return find_artifact(name, self._settings.artifacts)
        raise UnknownModel(f"There is no artifact named {name!r}.", "Put it below --artifacts.")

    def load(self, directory: Path) -> LoadedModel:
        """Load an artifact, which is served after `put`.

        Raises:
            LoadRefused: the artifact cannot be served; the models that are loaded are served on.
        """
        if (name := _manifest_name(directory)) is not None:
            self._check_place(name, directory)
        try:
            return self._load(directory, keep=False)
        except LoadError as error:
            raise LoadRefused(f"{error}.", SERVED_ON) from error
        except Exception as error:  # an unforeseen error refuses the artifact too
            logger.exception("%s cannot be loaded", directory)
            raise LoadRefused(f"cannot load {directory}: {error!r}.", SERVED_ON) from error

    def _check_place(self, name: str, directory: Path) -> None:
        """Raise LoadRefused unless a model has one directory, and a directory one model."""
        for loaded, path in dict(self._directories).items():
            if loaded not in self._models or (loaded == name) == (path == directory):
                continue
            if path == directory:
                raise LoadRefused(
                    f"cannot load {directory}: {loaded!r} came from there, and now it is of {name!r}.",
                    SERVED_ON,
                )
            if is_artifact(path):
                raise LoadRefused(
                    f"cannot load {directory}: {name!r} is loaded from {path}.",
                    "Put the new version in its place, or unload it first.",
                )

    def is_current(self, directory: Path) -> bool:
        """Return whether the loaded model is the artifact that lies in `directory` now."""
        loaded = [model for model in [*self._models.values()] if model.directory == directory]
        try:
            return bool(loaded) and loaded[0].manifest == read_manifest(directory, verify=False)
        except ManifestError:
            return False

    def put(self, model: LoadedModel) -> None:
        """Serve the model from now on, in place of the model of its name."""
        replaced = self._models.get(model.name)
        self._models[model.name] = model
        self._leases[model] = 0
        self._directories[model.name] = model.directory
        self._metrics.unloaded(model.name, all_but=model.graphs)
        for kind, graph in model.graphs.items():
            self._metrics.loaded(
                model.name,
                model.manifest.version,
                kind,
                graph.precision,
                graph.engine.name,
                graph.engine.device,
            )
        if replaced is not None:
            self._close_unused(replaced)

    def remove(self, name: str) -> None:
        """Serve the model no more; raise UnknownModel if there is none of that name."""
        model = self.get(name)
        del self._models[name]
        self._metrics.unloaded(name)
        self._close_unused(model)

    def known(self) -> dict[str, Path]:
        """Return name -> directory of every model that is loaded, was loaded, or lies below --artifacts."""
        known = dict(self._directories)  # which the event loop may change meanwhile
        loaded = {name: path for name, path in known.items() if name in self._models or is_artifact(path)}
        others = [path for path in artifacts_in(self._settings.artifacts) if path not in loaded.values()]
        names = ((_manifest_name(path), path) for path in others)
        return {name: path for name, path in names if name is not None} | loaded

    def close(self, timeout_s: float | None = None) -> None:
        """Close every model and end the threads of the devices; wait `timeout_s` at most for each."""
        for model in {**self._leases}:
            model.close(timeout_s)
        for thread in self._closing:
            thread.join(timeout_s)
        self._devices.close(timeout_s)

    def _check_ready(self) -> None:
        if self._why_not_ready:
            raise NotReady(f"The server is not ready: {self._why_not_ready}.")

    def _load(self, directory: Path, keep: bool = True) -> LoadedModel:
        try:
            return load_model(
                directory, self._settings, self._stop, devices=self._devices, metrics=self._metrics, keep=keep
            )
        finally:
            allocator.trim()  # of the engines that were tried, too

    def _close_unused(self, model: LoadedModel) -> None:
        """Close a model that is served no more and that no request has leased."""
        if self._models.get(model.name) is model or self._leases.get(model) != 0:
            return
        del self._leases[model]
        self._closing = [thread for thread in self._closing if thread.is_alive()]
        self._closing.append(Thread(target=_close, args=(model,), name=f"close-{model.name}", daemon=True))
        self._closing[-1].start()


def _close(model: LoadedModel) -> None:
    """Close the model, and return the memory of its engines to the system."""
    model.close()
    allocator.trim()


def _manifest_name(directory: Path) -> str | None:
    """Return the model's name in the artifact there, or None if its manifest cannot be read."""
    try:
        return read_manifest(directory, verify=False).name
    except ManifestError:
        return None
