"""Images are decoded on the pool, in order; the first bad one is named; what is pending is known."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from PIL import Image

from artifact.image_bytes import ImageTooLong
from artifact.manifest import Preprocessing
from artifact.preprocess import ImageError, Limits, Preprocessed
from service.runtime.decoding import DecodePool
from service.telemetry.metrics import Metrics

SPEC = Preprocessing(resize=8, crop=8, mean=(0, 0, 0), std=(1, 1, 1))


def png(shade: int, size: tuple[int, int] = (20, 10)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, "png")
    return file.getvalue()


def preprocessed(work: Future[list[Preprocessed]]) -> list[Preprocessed]:
    return work.result(60)


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    made = DecodePool(2, Limits(max_bytes=2_000, max_pixels=1_000), Metrics())
    yield made
    made.close()


def test_in_order(pool: DecodePool) -> None:
    done = preprocessed(pool.preprocess([png(1), png(2), png(3)], SPEC))
    assert [int(image.pixels[0, 0, 0]) for image in done] == [1, 2, 3]
    assert (done[0].format, done[0].width, done[0].height) == ("png", 20, 10)
    assert done[0].original is None


def test_the_original_is_kept_when_asked_for(pool: DecodePool) -> None:
    [image] = preprocessed(pool.preprocess([png(1)], SPEC, keep_original=True))
    assert image.original is not None
    assert image.original.size == (20, 10)


def test_of_several_the_bad_one_is_named(pool: DecodePool) -> None:
    with pytest.raises(ImageError, match=r"^Image 1: ") as refused:
        preprocessed(pool.preprocess([png(1), b"no image", b""], SPEC))
    assert refused.value.members == {"image_index": 1}
    assert refused.value.code == "unsupported_image"


def test_a_single_one_needs_no_name(pool: DecodePool) -> None:
    with pytest.raises(ImageError) as refused:
        preprocessed(pool.preprocess([png(1, (100, 100))], SPEC))
    assert refused.value.code == "too_many_pixels"
    assert refused.value.members == {}
    assert "Image 0" not in refused.value.detail


def test_too_many_bytes_are_told_apart(pool: DecodePool) -> None:
    with pytest.raises(ImageTooLong):
        preprocessed(pool.preprocess([b"x" * 2_001], SPEC))


def test_what_is_pending_counts_in_the_estimate_and_in_the_gauge() -> None:
    metrics = Metrics()
    pool = DecodePool(2, Limits(), metrics)

    def decoding() -> float:
        return next(
            float(line.split()[1])
            for line in metrics.render()[0].decode().splitlines()
            if line.startswith("residuum_decoding_images ")
        )

    alone = pool.seconds_for(1)
    held = threading.Event()
    blocked = pool.preprocess([png(1)] * 3, SPEC, deadline=0, late=lambda: _after(held))
    assert pool.seconds_for(1) > alone
    assert decoding() == 3
    held.set()
    with pytest.raises(TimeoutError):
        blocked.result(60)
    assert decoding() == 0
    pool.close()


def _after(held: threading.Event) -> Exception:
    """Keep a thread of the pool busy until the event is set."""
    assert held.wait(60)
    return TimeoutError()


def test_what_nobody_waits_for_is_not_decoded() -> None:
    """One thread is kept busy; meanwhile a request is cancelled and another one comes too late."""
    metrics = Metrics()
    pool = DecodePool(1, Limits(), metrics)
    held = threading.Event()
    first = pool.preprocess([png(1)], SPEC, deadline=0, late=lambda: _after(held))
    cancelled = pool.preprocess([png(2)] * 20, SPEC)
    late = pool.preprocess([png(3)] * 20, SPEC, deadline=time.monotonic())
    last = pool.preprocess([png(4)], SPEC)
    assert cancelled.cancel()
    held.set()
    assert len(last.result(60)) == 1
    assert isinstance(first.exception(60), TimeoutError)
    assert isinstance(late.exception(60), TimeoutError)
    assert "residuum_decode_seconds_count 1.0" in metrics.render()[0].decode()
    pool.close()
