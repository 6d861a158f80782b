"""A model that is swapped or unloaded leaves nothing behind."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from engines.onnxruntime import OnnxRuntimeEngine
from service.runtime import allocator
from service.runtime.repository import Repository
from service.settings import Settings


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to models that are loaded later: an engine `closed`, the memory `trimmed`."""
    done: list[str] = []
    close = OnnxRuntimeEngine.close

    def noted(engine: OnnxRuntimeEngine) -> None:
        close(engine)
        done.append("closed")

    monkeypatch.setattr(OnnxRuntimeEngine, "close", noted)
    monkeypatch.setattr(allocator, "trim", lambda: done.append("trimmed"))
    return done


@pytest.fixture
def repository(artifact: Path) -> Repository:
    settings = Settings(
        model=(str(artifact),),
        engine="onnxruntime",
        precision="fp32",
        device="cpu",
        threads=1,
        max_batch_size=1,
    )
    made = Repository(settings)
    made.load_configured()
    return made


def swap(repository: Repository) -> None:
    """Load the model again, and wait until the former one is closed."""
    repository.put(repository.load(repository.get(None).directory))
    for thread in repository._closing:
        thread.join(60)


def test_nothing_of_a_swapped_model_waits_for_the_garbage_collector(repository: Repository) -> None:
    """The collector runs rarely in a server, and its threads may be idle for long."""
    model = repository.get(None)
    for graph in model.graphs.values():
        graph.probe()
    parts = [model, model.manifest]
    for graph in model.graphs.values():
        parts += [graph, graph.batcher, graph.meter, *graph.engines]
    left = [weakref.ref(part) for part in parts]
    del model, parts, graph
    gc.disable()
    try:
        swap(repository)
        assert [part() for part in left] == [None] * len(left)
    finally:
        gc.enable()
        repository.close()


def test_memory_is_trimmed_after_loading_and_after_closing(done: list[str], repository: Repository) -> None:
    num_engines = sum(len(graph.engines) for graph in repository.get(None).graphs.values())
    done.clear()
    swap(repository)
    assert done == ["trimmed", *["closed"] * num_engines, "trimmed"]
    repository.close()
