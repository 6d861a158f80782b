"""Every metric, declared once; docs/observability.md says what each one means.

A server has its own registry, so that several servers can live in one process. With `--workers`, the values
are in files of PROMETHEUS_MULTIPROC_DIR, which prometheus_client shares between the processes, and every
worker answers with the sum of all. This module knows no HTTP and no models: it is told numbers and names.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from threading import Lock

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    values,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics

UNMATCHED = "unmatched"  # the route of a request whose path does not exist

# fmt: off
SECONDS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30,
)
# fmt: on
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text"
BATCH_SIZES = tuple(2**n for n in range(11))
GRAPH = ("model", "graph")
INFO = ("model", "version", "graph", "precision", "engine", "device")


class ServerState(StrEnum):
    """What a server is doing; runtime/lifecycle.py says which state follows which."""

    LOADING = "loading"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    FAILED = "failed"


# Created metrics would be a second series beside every counter; the files of workers do not have them.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Duration:
    """How often something happened, and the sum of its durations."""

    count: int = 0
    total_s: float = 0.0

    def plus(self, count: int, seconds: float) -> Duration:
        return Duration(self.count + count, self.total_s + seconds)


@dataclass(frozen=True)
class GraphStatistics:
    """What a graph has done since it was loaded, in this process; all but `batches` count entries."""

    success: Duration = Duration()  # from queued to done
    fail: Duration = Duration()  # of the batches that failed
    queue: Duration = Duration()
    infer: Duration = Duration()  # every entry counts the whole time of its batch, for which it waits
    decode: Duration = Duration()
    batches: Mapping[int, Duration] = field(default_factory=dict)  # by the number of entries, without padding
    execution_count: int = 0  # batches that succeeded
    inference_count: int = 0  # entries in them
    last_inference_epoch_ms: int = 0


def count_as(number: int) -> None:
    """Count in the files of worker `number`, continuing those of its predecessor; call it before Metrics().

    There are thus as many files as workers, however often workers die, and counters never fall.
    """
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._shared: bool = values.ValueClass._multiprocess
        if not self._shared:
            ProcessCollector(registry=registry)

        def histogram(
            name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS
        ) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(name, text, labels, multiprocess_mode="livesum", registry=registry)

        self._request = histogram(
            "residuum_request_seconds", "Requests, from head to last byte", ("route", "model", "status")
        )
        self._decode = histogram("residuum_decode_seconds", "Decoding and resizing one image")
        self._queue = histogram("residuum_queue_seconds", "An image's wait for its batch", GRAPH)
        self._inference = histogram("residuum_inference_seconds", "Running one batch", GRAPH)
        self._batch_size = histogram("residuum_batch_size", "Images in a batch", GRAPH, BATCH_SIZES)
        self._failed_batches = counter(
            "residuum_failed_batches_total", "Batches on which the engine failed", GRAPH
        )
        self._queue_entries = gauge("residuum_queue_entries", "Images that wait for a batch", GRAPH)
        self._decoding = gauge("residuum_decoding_images", "Images that are decoded or wait for it")
        self._refused = counter("residuum_refused_total", "Requests refused, by problem code", ("code",))
        self._cancelled = counter("residuum_cancelled_total", "Requests whose client left before the answer")
        self._cache = counter("residuum_cache_lookups_total", "Images looked up in the cache", ("result",))
        self._golden = counter(
            "residuum_golden_checks_total", "Golden checks while serving", (*GRAPH, "result")
        )
        self._rebuilt = counter("residuum_engine_rebuilds_total", "Engines rebuilt while serving", GRAPH)
        self._state = gauge("residuum_state", "Whether the server is in this state", ("state",))
        self._ready = gauge("residuum_ready", "Whether the server is ready")
        self._model_info = gauge("residuum_model_info", "A graph that is loaded, and what runs it", INFO)
        self._loaded: dict[tuple[str, str], tuple[str, ...]] = {}  # model and graph -> labels of its info
        self._lock = Lock()
        self.state(ServerState.LOADING)

    def request(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count an answered request: `route` is a template or UNMATCHED, `model` a loaded model or empty."""
        self._request.labels(route, model, status).observe(seconds)

    def decoded(self, seconds: float) -> None:
        """Count an image that was decoded and resized."""
        self._decode.observe(seconds)

    def decoding(self, num_images: int) -> None:
        """Note the number of images in the decode pool."""
        self._decoding.set(num_images)

    def graph(self, model: str, kind: str) -> GraphMeter:
        """Return the meter of a graph that is being loaded; a new version's statistics begin at zero."""
        return GraphMeter(
            self._queue.labels(model, kind),
            self._inference.labels(model, kind),
            self._batch_size.labels(model, kind),
            self._failed_batches.labels(model, kind),
            self._queue_entries.labels(model, kind),
        )

    def refused(self, code: str) -> None:
        """Count a request that was refused for load or state, by its problem code."""
        self._refused.labels(code).inc()

    def cancelled(self) -> None:
        """Count a client that left before its answer."""
        self._cancelled.inc()

    def cache(self, hit: bool) -> None:
        """Count an image that was looked up in the cache."""
        self._cache.labels("hit" if hit else "miss").inc()

    def golden_check(self, model: str, kind: str, passed: bool) -> None:
        """Count a check of a graph against its golden answer while serving."""
        self._golden.labels(model, kind, "passed" if passed else "failed").inc()

    def rebuilt(self, model: str, kind: str) -> None:
        """Count a graph whose engines were replaced by new ones."""
        self._rebuilt.labels(model, kind).inc()

    def state(self, state: str) -> None:
        """Note the ServerState that the server is in now."""
        for each in ServerState:
            self._state.labels(each.value).set(each == state)
        self._ready.set(state == ServerState.READY)

    def loaded(self, model: str, version: str, kind: str, precision: str, engine: str, device: str) -> None:
        """Note a graph that serves from now on, in place of the one of its model and kind."""
        info = (model, version, kind, precision, engine, device)
        with self._lock:
            former = self._loaded.get((model, kind))
            if former and former != info:
                self._drop_info(former)
            self._loaded[model, kind] = info
            self._model_info.labels(*info).set(1)

    def unloaded(self, model: str, *, all_but: Iterable[str] = ()) -> None:
        """Remove the gauges of a model that is unloaded, or of graphs that its new version lacks.

        Counters stay.

        Args:
            all_but: the kinds of graph that are still loaded.
        """
        kept = {(model, kind) for kind in all_but}
        with self._lock:
            for key in [key for key in self._loaded if key[0] == model and key not in kept]:
                self._drop_info(self._loaded.pop(key))
                if not self._shared:
                    self._queue_entries.remove(*key)

    def _drop_info(self, info: tuple[str, ...]) -> None:
        if self._shared:
            self._model_info.labels(*info).set(0)  # nothing can be removed from the files; see _SumOfWorkers
        else:
            self._model_info.remove(*info)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the answer to a scrape and its content type; the header Accept may ask for OpenMetrics."""
        registry = self._registry
        if self._shared:
            registry = CollectorRegistry()
            _SumOfWorkers(registry)  # type: ignore[no-untyped-call]
        if OPENMETRICS in accept:
            return openmetrics.generate_latest(registry), openmetrics.CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]
        return generate_latest(registry), TEXT


class _SumOfWorkers(MultiProcessCollector):
    """The sum of what all workers counted, without the models that no worker has any more."""

    def collect(self) -> Iterable[Metric]:
        for metric in super().collect():  # type: ignore[no-untyped-call]
            if metric.name == "residuum_model_info":
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric


class GraphMeter:
    """Counts what one graph's batcher does (a BatchObserver); thread-safe."""

    def __init__(
        self,
        queue: Histogram,
        inference: Histogram,
        batch_size: Histogram,
        failed_batches: Counter,
        queue_entries: Gauge,
    ) -> None:
        self._queue = queue
        self._inference = inference
        self._batch_size = batch_size
        self._failed_batches = failed_batches
        self._queue_entries = queue_entries
        self._lock = Lock()
        self._num_waiting = 0
        self._statistics = GraphStatistics()
        self._batches: dict[int, Duration] = {}

    @property
    def statistics(self) -> GraphStatistics:
        """Return a copy of what was counted until now."""
        with self._lock:
            return replace(self._statistics, batches=dict(self._batches))

    def queue_changed(self, num_waiting: int) -> None:
        """Note how many entries wait; an old version that drains shares the gauge with the new one."""
        with self._lock:
            self._queue_entries.inc(num_waiting - self._num_waiting)
            self._num_waiting = num_waiting

    def batch_done(
        self, num_entries: int, padded_size: int, queue_s: Sequence[float], inference_s: float
    ) -> None:
        """Count a batch that ran; `queue_s` has the wait of each entry."""
        for seconds in queue_s:
            self._queue.observe(seconds)
        self._inference.observe(inference_s)
        self._batch_size.observe(num_entries)
        waited_s, ran_s = sum(queue_s), inference_s * num_entries
        with self._lock:
            before = self._statistics
            self._batches[num_entries] = self._batches.get(num_entries, Duration()).plus(1, inference_s)
            self._statistics = replace(
                before,
                success=before.success.plus(num_entries, waited_s + ran_s),
                queue=before.queue.plus(num_entries, waited_s),
                infer=before.infer.plus(num_entries, ran_s),
                execution_count=before.execution_count + 1,
                inference_count=before.inference_count + num_entries,
                last_inference_epoch_ms=time.time_ns() // 1_000_000,
            )

    def batch_failed(self, num_entries: int, inference_s: float) -> None:
        """Count a batch on which the engine failed."""
        self._failed_batches.inc()
        with self._lock:
            before = self._statistics
            fail = before.fail.plus(num_entries, inference_s * num_entries)
            self._statistics = replace(before, fail=fail)

    def decoded(self, seconds: float) -> None:
        """Count an image that was decoded for this graph."""
        with self._lock:
            before = self._statistics
            self._statistics = replace(before, decode=before.decode.plus(1, seconds))
