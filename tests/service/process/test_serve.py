"""The log says where more processes would answer more requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from service.process import serve
from service.process.serve import CHEAP_MS, cheap_image_ms
from service.runtime.lifecycle import Serving


def serving(batch_ms: float, size: int, instances: int, device: str = "cpu") -> Serving:
    batcher = SimpleNamespace(longest_batch_ms=batch_ms, largest_batch=size)
    graph = SimpleNamespace(batcher=batcher, instances=instances, engine=SimpleNamespace(device=device))
    models = SimpleNamespace(get=lambda _: SimpleNamespace(graphs={"classify": graph}))
    return cast(Serving, SimpleNamespace(models=models))


@pytest.mark.parametrize(
    ("loaded", "cores", "expected"),
    [
        (serving(8.0, 8, 2), 2, 1.0),  # two batches at once, each on one core
        (serving(4.0, 8, 1), 2, 1.0),  # one batch on both cores
        (serving(8 * CHEAP_MS, 8, 2), 2, None),
        (serving(8.0, 8, 1), 1, None),
        (serving(1.0, 8, 2, "cuda"), 2, None),
    ],
)
def test_the_processor_time_of_an_image(
    loaded: Serving, cores: int, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "num_cores", lambda: cores)
    assert cheap_image_ms(loaded) == expected
