"""The sizes of batches, and which one is run for what waits."""

from __future__ import annotations

import pytest

from engines.engine import batch_sizes
from service.batching.sizes import sizes_for


def test_batch_sizes_are_powers_of_two_and_the_maximum() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(2) == [1, 2]
    assert batch_sizes(8) == [1, 2, 4, 8]
    assert batch_sizes(12) == [1, 2, 4, 8, 12]


@pytest.mark.parametrize(
    ("batch_ms", "sizes"),
    [
        # A GPU: a larger batch costs little more, so what waits runs at once, padded.
        ({1: 10, 2: 10.5, 4: 11, 8: 12}, [1, 2, 4, 4, 8, 8, 8, 8]),
        # A CPU on which a batch is no faster an image: one after the other, and each answers sooner.
        ({1: 10, 2: 20, 4: 40, 8: 80}, [1, 1, 1, 1, 1, 1, 1, 1]),
        # Twice as fast an image in pairs: three are a pair and one, not four with one of them empty.
        ({1: 10, 2: 10, 4: 20}, [1, 2, 2, 2]),
        # Five in a hundred faster is not worth the wait.
        ({1: 10, 2: 19.2}, [1, 1]),
        ({1: 10, 2: 18}, [1, 2]),
    ],
)
def test_the_size_that_takes_least_time_an_image(batch_ms: dict[int, float], sizes: list[int]) -> None:
    assert sizes_for(batch_ms)[1:] == sizes


def test_batches_that_take_too_long_are_not_formed() -> None:
    batch_ms = {1: 10.0, 2: 11.0, 4: 12.0}
    assert sizes_for(batch_ms, max_batch_ms=11.5)[-1] == 2
    assert sizes_for(batch_ms, max_batch_ms=1)[-1] == 1
