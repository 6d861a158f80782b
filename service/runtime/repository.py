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
from service.runtime.wanted import Change
from service.settings import Settings
from service.telemetry.metrics import Metrics

logger = logging.getLogger("residuum")

NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"
)  # never a path, and no longer than a file's name may be
SERVED_ON = "What was loaded before is served on."


class Repository:
    """The loaded models by name; the first one is the default. It is empty until `load_configured`.

    A worker may lack a model that it should have: it has its place in the order, but no request gets it.
    """

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self.missing: dict[str, str] = {}  # name -> why, of the models that are lacking
        self._settings = settings
        self._metrics = metrics or Metrics()
        self._order: list[str] = []  # of the models, loaded or missing
        self._devices = Devices(settings)
        self._models: dict[str, LoadedModel] = {}
        self._directories: dict[str, Path] = {}  # of every model that was ever loaded
        self._leases: dict[LoadedModel, int] = {}
        self._closing: list[Thread] = []
        self._why_not_ready: str | None = "loading its models"

    @property
    def num_configured(self) -> int:
        """The number of models that `load_configured` loads."""
        return len(self._settings.model)

    def load_configured(self, stop: Event | None = None) -> None:
        """Load every model of `settings.model`; end early once `stop` is set.

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
                model = self._load(find_artifact(name, self._settings.artifacts), stop)
                if model.name in self._models:
                    model.close()
                    raise LoadError(f"--model {name}: a model named {model.name!r} is loaded already")
                self.put(model)
        except BaseException as error:
            self._why_not_ready = f"failed: {str(error) or repr(error)}"
            self.close()
            raise
        self.open()

    def expect(self, change: Change) -> None:
        """Keep a place for a model that this worker should have, until `put`."""
        assert change.directory is not None
        self._order.append(change.name)
        self._directories[change.name] = change.directory
        self.missing[change.name] = ""

    def miss(self, name: str, why: str) -> None:
        """Note why a model that was expected cannot be loaded."""
        self.missing[name] = why

    @property
    def is_open(self) -> bool:
        """Whether requests can have what is loaded."""
        return not self._why_not_ready

    def open(self) -> None:
        """Let requests have what is loaded."""
        self._why_not_ready = None

    def __iter__(self) -> Iterator[LoadedModel]:
        """Iterate over the loaded models, in their order; raise NotReady before they are loaded."""
        self._check_ready()
        return iter([self._models[name] for name in self._order if name in self._models])

    @property
    def default(self) -> LoadedModel | None:
        """The model for requests that name none; None if it is missing or all are unloaded."""
        return self._models.get(self._order[0]) if self._order else None

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
            NotReady: models are being loaded or could not be, this one is missing, or all are unloaded.
        """
        self._check_ready()
        if name is None:
            if not self._order:
                raise NotReady("No model is loaded.")
            name = self._order[0]
        try:
            return self._models[name]
        except KeyError:
            self.check_known(name)
        raise NotReady(f"The model {name!r} could not be loaded again. Its reason is in the log.")

    def check_known(self, name: str) -> None:
        """Raise UnknownModel unless a model of that name is loaded or missing; NotReady as `get`."""
        self._check_ready()
        if name not in self._order:
            loaded = ", ".join(self._models) or "none"
            raise UnknownModel(f"There is no model named {shown(name)}.", f"Loaded: {loaded}.")

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
        raise UnknownModel(f"There is no artifact named {shown(name)}.", "Put it below --artifacts.")

    def load(self, directory: Path, stop: Event | None = None) -> LoadedModel:
        """Load an artifact, which is served after `put`; end early once `stop` is set.

        Raises:
            LoadRefused: the artifact cannot be served; the models that are loaded are served on.
        """
        if (name := _manifest_name(directory)) is not None:
            self._check_place(name, directory)
        try:
            return self._load(directory, stop, keep=False)
        except LoadError as error:
            raise LoadRefused(f"{error}.", SERVED_ON) from error
        except Exception as error:  # an unforeseen error refuses the artifact too
            logger.exception("%s cannot be loaded", directory)
            raise LoadRefused(f"cannot load {directory}: {error!r}.", SERVED_ON) from error

    def _check_place(self, name: str, directory: Path) -> None:
        """Raise LoadRefused unless a model has one directory, and a directory one model."""
        for loaded, path in dict(self._directories).items():
            if loaded not in self._order or (loaded == name) == (path == directory):
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
        self.missing.pop(model.name, None)
        if model.name not in self._order:
            self._order.append(model.name)
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

    def fingerprint(self, name: str) -> str | None:
        """Return which version of a model is loaded."""
        model = self._models.get(name)
        return None if model is None else model.fingerprint

    def remove(self, name: str) -> LoadedModel | None:
        """Serve the model no more; return it, or None if there is none of that name."""
        if name in self._order:
            self._order.remove(name)
        self.missing.pop(name, None)
        if (model := self._models.pop(name, None)) is not None:
            self._metrics.unloaded(name)
            self._close_unused(model)
        return model

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

    def _load(self, directory: Path, stop: Event | None, keep: bool = True) -> LoadedModel:
        try:
            return load_model(
                directory, self._settings, stop, devices=self._devices, metrics=self._metrics, keep=keep
            )
        finally:
            allocator.trim()  # of the engines that were tried, too

    def _close_unused(self, model: LoadedModel) -> None:
        """Close a model that is served no more and that no request has leased."""
        if self._models.get(model.name) is model or self._leases.get(model) != 0:
            return
        del self._leases[model]
        self._closing = [thread for thread in self._closing if thread.is_alive()]
        thread = Thread(target=close_model, args=(model,), name=f"close-{model.name}", daemon=True)
        self._closing.append(thread)
        thread.start()


def close_model(model: LoadedModel) -> None:
    """Close the model, and return the memory of its engines to the system."""
    model.close()
    allocator.trim()


def shown(name: str) -> str:
    """Return a name that a client has sent as a message shows it."""
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _manifest_name(directory: Path) -> str | None:
    """Return the model's name in the artifact there, or None if its manifest cannot be read."""
    try:
        return read_manifest(directory, verify=False).name
    except ManifestError:
        return None
