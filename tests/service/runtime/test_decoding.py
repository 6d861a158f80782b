"""Images are decoded on the pool, in order; the first bad one is named; what is pending is known."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from PIL import Image

from artifact.image_bytes import ImageTooLong
from artifact.manifest import Preprocessing
from artifact.preprocess import ImageError, Limits, Preprocessed
from service.batching.types import Closed
from service.runtime import decoding
from service.runtime.decoding import DecodePool
from service.telemetry.metrics import Metrics

SPEC = Preprocessing(resize=8, crop=8, mean=(0, 0, 0), std=(1, 1, 1))


def png(shade: int, size: tuple[int, int] = (20, 10)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, "png")
    return file.getvalue()


class Told:
    """What a request is told by the pool."""

    def __init__(self, pool: DecodePool, images: list[bytes], **options: Any) -> None:
        self._future: Future[list[Preprocessed] | Exception] = Future()
        self.decoding = pool.preprocess(images, SPEC, self._future.set_result, **options)

    @property
    def images(self) -> list[Preprocessed]:
        told = self._future.result(60)
        if isinstance(told, Exception):
            raise told
        return told

    @property
    def error(self) -> Exception:
        told = self._future.result(60)
        assert isinstance(told, Exception)
        return told

    @property
    def nothing(self) -> bool:
        return not self._future.done()


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    made = DecodePool(2, Limits(max_bytes=2_000, max_pixels=1_000), 2**30, Metrics())
    yield made
    made.close()


def test_in_order(pool: DecodePool) -> None:
    done = Told(pool, [png(1), png(2), png(3)]).images
    assert [int(image.pixels[0, 0, 0]) for image in done] == [1, 2, 3]
    assert (done[0].format, done[0].width, done[0].height) == ("png", 20, 10)
    assert done[0].original is None


def test_the_original_is_kept_when_asked_for(pool: DecodePool) -> None:
    [image] = Told(pool, [png(1)], keep_original=True).images
    assert image.original is not None
    assert image.original.size == (20, 10)


def test_of_several_the_bad_one_is_named(pool: DecodePool) -> None:
    error = Told(pool, [png(1), b"no image", b""]).error
    assert isinstance(error, ImageError)
    assert error.detail.startswith("Image 1: ")
    assert error.members == {"image_index": 1}
    assert error.code == "unsupported_image"


def test_a_single_one_needs_no_name(pool: DecodePool) -> None:
    error = Told(pool, [png(1, (100, 100))]).error
    assert isinstance(error, ImageError)
    assert error.code == "too_many_pixels"
    assert error.members == {}
    assert "Image 0" not in error.detail


def test_too_many_bytes_are_told_apart(pool: DecodePool) -> None:
    assert isinstance(Told(pool, [b"x" * 2_001]).error, ImageTooLong)


def test_what_is_pending_counts_in_the_estimate_and_in_the_gauge() -> None:
    metrics = Metrics()
    pool = DecodePool(2, Limits(), 2**30, metrics)

    def pending() -> float:
        return next(
            float(line.split()[1])
            for line in metrics.render()[0].decode().splitlines()
            if line.startswith("residuum_decoding_images ")
        )

    alone = pool.seconds_for(1)
    held = threading.Event()
    blocked = Told(pool, [png(1)] * 3, deadline=0, late=lambda: _after(held))
    assert pool.seconds_for(1) > alone
    assert pending() == 3
    left = Told(pool, [png(2)] * 4)
    assert pending() == 7
    left.decoding.cancel()
    left.decoding.cancel()
    assert pending() == 3
    held.set()
    assert isinstance(blocked.error, TimeoutError)
    assert pending() == 0
    assert left.nothing
    pool.close()


def _after(held: threading.Event, begun: threading.Event | None = None) -> Exception:
    """Keep a thread of the pool busy until the event is set."""
    if begun is not None:
        begun.set()
    assert held.wait(60)
    return TimeoutError()


def test_what_nobody_waits_for_is_not_decoded() -> None:
    """One thread is kept busy; meanwhile a request is cancelled and another one comes too late."""
    metrics = Metrics()
    pool = DecodePool(1, Limits(), 2**30, metrics)
    held = threading.Event()
    first = Told(pool, [png(1)], deadline=0, late=lambda: _after(held))
    cancelled = Told(pool, [png(2)] * 20)
    late = Told(pool, [png(3)] * 20, deadline=time.monotonic())
    last = Told(pool, [png(4)])
    cancelled.decoding.cancel()
    held.set()
    assert len(last.images) == 1
    assert isinstance(first.error, TimeoutError)
    assert isinstance(late.error, TimeoutError)
    assert cancelled.nothing
    assert "residuum_decode_seconds_count 1.0" in metrics.render()[0].decode()
    pool.close()


def test_who_leaves_takes_the_files_along() -> None:
    """They are let go while the only thread is busy, although their places in the queue are still there."""
    pool = DecodePool(1, Limits(), 2**30, Metrics())
    held = threading.Event()
    first = Told(pool, [png(1)], deadline=0, late=lambda: _after(held))
    file = png(2)
    before = sys.getrefcount(file)
    leaving = Told(pool, [file, file])
    assert sys.getrefcount(file) > before
    leaving.decoding.cancel()
    assert sys.getrefcount(file) == before
    held.set()
    assert isinstance(first.error, TimeoutError)
    pool.close()


def test_whoever_waits_is_told_that_the_pool_was_closed() -> None:
    pool = DecodePool(1, Limits(), 2**30, Metrics())
    held, begun = threading.Event(), threading.Event()
    first = Told(pool, [png(1)], deadline=0, late=lambda: _after(held, begun))
    waiting = Told(pool, [png(2)] * 3)
    assert begun.wait(60)
    pool.close()
    held.set()
    assert isinstance(first.error, TimeoutError)
    assert isinstance(waiting.error, Closed)
    with pytest.raises(Closed):
        pool.preprocess([png(3)], SPEC, print)


def test_an_error_of_late_is_the_requests() -> None:
    """The thread goes on."""
    pool = DecodePool(1, Limits(), 2**30, Metrics())
    broken = Told(pool, [png(1)], deadline=0, late=lambda: _raise(ZeroDivisionError()))
    assert isinstance(broken.error, ZeroDivisionError)
    assert len(Told(pool, [png(2)]).images) == 1
    pool.close()


def _raise(error: Exception) -> Exception:
    raise error


# Large images: those of 100 x 50 pixels take 40,000 bytes.

LARGE = png(7, (100, 50))


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodePool]:
    """A pool of one thread with memory for one large image."""
    monkeypatch.setattr(decoding, "SMALL_BYTES", 30_000)
    made = DecodePool(1, Limits(), 50_000, Metrics())
    yield made
    made.close()


def test_small_images_pass_large_ones_that_wait_for_memory(tight: DecodePool) -> None:
    with tight._memory.reserved(20_000):
        large = Told(tight, [LARGE, png(1)])
        alone = tight.seconds_for(1)
        assert [len(Told(tight, [png(2)] * 3).images) for _ in range(3)] == [3, 3, 3]
        assert large.nothing
        assert tight.seconds_for(1) <= 2 * alone  # it is not in the way of others
    assert [int(image.pixels[0, 0, 0]) for image in large.images] == [7, 1]


def test_an_image_that_takes_more_than_there_is_can_never_be_decoded(tight: DecodePool) -> None:
    error = Told(tight, [png(1), png(3, (100, 80))]).error
    assert isinstance(error, ImageError)
    assert (error.code, error.members) == ("too_many_pixels", {"image_index": 1})


def test_who_leaves_takes_large_files_along_too(tight: DecodePool) -> None:
    made = io.BytesIO()
    Image.new("RGB", (100, 48)).save(made, "jpeg", progressive=True)  # 48,000 bytes
    file = made.getvalue()
    before = sys.getrefcount(file)
    with tight._memory.reserved(20_000):
        first = Told(tight, [LARGE])  # the thread has it in its hands
        leaving = Told(tight, [file])
        Told(tight, [png(2)]).images  # noqa: B018  # what came before has been set aside
        assert sys.getrefcount(file) > before
        held_bytes = tight._pending.large_bytes
        leaving.decoding.cancel()
        assert sys.getrefcount(file) == before
        assert tight._pending.large_bytes == held_bytes - 48_000  # no other large image waits for it
    assert len(first.images) == 1
    assert leaving.nothing


def test_large_images_that_would_be_late_are_refused_before_they_wait(tight: DecodePool) -> None:
    with tight._memory.reserved(20_000):
        waiting = Told(tight, [LARGE] * 3)
        late = Told(tight, [LARGE], deadline=time.monotonic() + 0.0001)
        assert isinstance(late.error, TimeoutError)
    assert len(waiting.images) == 3


def test_large_images_are_told_that_the_pool_was_closed(tight: DecodePool) -> None:
    with tight._memory.reserved(20_000):
        waiting = Told(tight, [LARGE] * 3)
        Told(tight, [png(2)]).images  # noqa: B018
        tight.close()
    assert isinstance(waiting.error, Closed)
