"""Which models a server has: loaded, leased to requests, swapped, unloaded.

A request leases its model. One that is swapped for another version or unloaded takes no new requests from
then on, and is closed when the last one that has it is done. Everything but `load`, `locate` and `is_current`
belongs to the thread of the event loop. It knows no HTTP but the errors for an unknown name and a refused
change.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from artifact.manifest import MANIFEST_FILE, ManifestError, read_manifest
from artifact.store import EMBEDDED, artifacts_in, find_artifact
from service.errors import LoadRefused, NotReady, UnknownModel
from service.runtime.loading import load_model
from service.runtime.model import Devices, LoadedModel
from service.runtime.opening import LoadError
from service.settings import Settings
from service.telemetry.metrics import Metrics

logger = logging.getLogger("residuum")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # never a path
SERVED_ON = "What was loaded before is served on."


class Repository:
    """The loaded models by name; the first one is the default."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None, stop: Event | None = None) -> None:
        """Load every model of `settings.model`, unless `stop` is set meanwhile.

        Raises:
            LoadError: one of them cannot be served, or stopped; those loaded before it are closed again. Or
                there is no directory to watch.
        """
        if settings.watch and not settings.artifacts.is_dir():
            raise LoadError(f"--watch: there is no directory {settings.artifacts}; --artifacts says which")
        self._settings = settings
        self._metrics = metrics or Metrics()
        self._stop = stop
        self._devices = Devices(settings)
        self._models: dict[str, LoadedModel] = {}
        self._directories: dict[str, Path] = {}  # of all that were ever loaded
        self._leases: dict[LoadedModel, int] = {}
        self._closing: list[Thread] = []
        try:
            for name in settings.model:
                model = self._load(find_artifact(name, settings.artifacts))
                if model.name in self._models:
                    model.close()
                    raise LoadError(f"--model {name}: a model named {model.name!r} is loaded already")
                self.put(model)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(tuple(self._models.values()))

    @property
    def devices(self) -> Devices:
        return self._devices

    def get(self, name: str | None) -> LoadedModel:
        """The model of that name, or the default one.

        Raises:
            UnknownModel: none has that name.
            NotReady: there is no default one: all are unloaded.
        """
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
        """The model, which stays open meanwhile, whatever is swapped or unloaded; raises what `get` does."""
        model = self.get(name)
        self._leases[model] += 1
        try:
            yield model
        finally:
            self._leases[model] -= 1
            self._close_unused(model)

    def locate(self, name: str) -> Path:
        """The directory of an artifact by its model's name, or by its own below --artifacts; never a path.

        Raises:
            UnknownModel: there is none.
        """
        if NAME.fullmatch(name):
            known = self.known()
            if name in known:
                return known[name]
            if name == EMBEDDED or (self._settings.artifacts / name / MANIFEST_FILE).is_file():
                return find_artifact(name, self._settings.artifacts)
        raise UnknownModel(f"There is no artifact named {name!r}.", "Put it below --artifacts.")

    def load(self, directory: Path) -> LoadedModel:
        """Load an artifact, which is served after `put`. For a thread of its own.

        Raises:
            LoadRefused: it cannot be served; what is loaded is served on.
        """
        if (name := _manifest_name(directory)) is not None:
            self._check_place(name, directory)
        try:
            return self._load(directory, keep=False)
        except LoadError as error:
            raise LoadRefused(f"{error}.", SERVED_ON) from error
        except Exception as error:  # what nobody foresaw is wrong with the artifact too
            logger.exception("%s cannot be loaded", directory)
            raise LoadRefused(f"cannot load {directory}: {error!r}.", SERVED_ON) from error

    def _check_place(self, name: str, directory: Path) -> None:
        """A model has one directory, and a directory one model; raises LoadRefused."""
        for loaded, path in dict(self._directories).items():
            if loaded not in self._models or (loaded == name) == (path == directory):
                continue
            if path == directory:
                raise LoadRefused(
                    f"cannot load {directory}: {loaded!r} came from there, and now it is of {name!r}.",
                    SERVED_ON,
                )
            if (path / MANIFEST_FILE).is_file():
                raise LoadRefused(
                    f"cannot load {directory}: {name!r} is loaded from {path}.",
                    "Put the new version in its place, or unload it first.",
                )

    def is_current(self, directory: Path) -> bool:
        """Whether the artifact is loaded as it lies there."""
        loaded = [model for model in self if model.directory == directory]
        try:
            return bool(loaded) and loaded[0].manifest == read_manifest(directory, verify=False)
        except ManifestError:
            return False

    def put(self, model: LoadedModel) -> None:
        """Serve the model from now on, in place of the one of its name."""
        replaced = self._models.get(model.name)
        self._models[model.name] = model
        self._leases[model] = 0
        self._directories[model.name] = model.directory
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
        """Serve it no more; raises UnknownModel."""
        model = self.get(name)
        del self._models[name]
        self._metrics.unloaded(name)
        self._close_unused(model)

    def known(self) -> dict[str, Path]:
        """Names and directories of all that is loaded, was loaded, or lies among the artifacts."""
        known = dict(self._directories)  # which the event loop may change meanwhile
        loaded = {
            name: path
            for name, path in known.items()
            if name in self._models or (path / MANIFEST_FILE).is_file()
        }
        others = [path for path in artifacts_in(self._settings.artifacts) if path not in loaded.values()]
        names = ((_manifest_name(path), path) for path in others)
        return {name: path for name, path in names if name is not None} | loaded

    def close(self, timeout_s: float | None = None) -> None:
        for model in {**self._leases}:
            model.close(timeout_s)
        for thread in self._closing:
            thread.join(timeout_s)
        self._devices.close(timeout_s)

    def _load(self, directory: Path, keep: bool = True) -> LoadedModel:
        return load_model(
            directory, self._settings, self._stop, devices=self._devices, metrics=self._metrics, keep=keep
        )

    def _close_unused(self, model: LoadedModel) -> None:
        """Close a model that is served no more once nobody has it."""
        if self._models.get(model.name) is model or self._leases.get(model) != 0:
            return
        del self._leases[model]
        self._closing = [thread for thread in self._closing if thread.is_alive()]
        self._closing.append(Thread(target=model.close, name=f"close-{model.name}", daemon=True))
        self._closing[-1].start()


def _manifest_name(directory: Path) -> str | None:
    """The model's name in the artifact there; None: it cannot be read."""
    try:
        return read_manifest(directory, verify=False).name
    except ManifestError:
        return None
