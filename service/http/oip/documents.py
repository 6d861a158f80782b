"""The protocol's documents about a server and its models: metadata, configuration, index and statistics.

A model's version in the protocol is the version of its artifact, and its graph is the classify graph.
"""

from __future__ import annotations

from typing import Any

from artifact.manifest import Manifest
from service.http.oip.request import LOGITS, PIXELS
from service.runtime.model import LoadedModel
from service.settings import Settings
from service.telemetry.metrics import Duration

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
NO_TIME = Duration()


def server_metadata(version: str) -> dict[str, Any]:
    return {"name": "residuum", "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(model: LoadedModel) -> dict[str, Any]:
    """Return names and shapes; the batch dimension is -1, any number."""
    return {
        "name": model.name,
        "versions": [model.manifest.version],
        "platform": _platform(model),
        "inputs": [{"name": PIXELS, "datatype": "UINT8", "shape": [-1, *_input_dims(model.manifest)]}],
        "outputs": [{"name": LOGITS, "datatype": "FP32", "shape": [-1, model.manifest.num_classes]}],
    }


def model_config(model: LoadedModel, settings: Settings) -> dict[str, Any]:
    """Return the configuration; `dims` do not include the batch dimension."""
    graph = model.graphs["classify"]
    return {
        "name": model.name,
        "platform": _platform(model),
        "backend": model.engine.name,
        "version_policy": {"latest": {"num_versions": 1}},
        # A request may have up to max_images images; the batcher splits them.
        "max_batch_size": min(settings.max_batch_size, settings.max_images),
        "input": [
            {
                "name": PIXELS,
                "data_type": "TYPE_UINT8",
                "format": "FORMAT_NHWC",
                "dims": _input_dims(model.manifest),
            }
        ],
        "output": [{"name": LOGITS, "data_type": "TYPE_FP32", "dims": [model.manifest.num_classes]}],
        "dynamic_batching": {
            "preferred_batch_size": list(graph.batcher.batch_ms),
            "max_queue_delay_microseconds": int(settings.max_wait_ms * 1000),
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": settings.timeout_ms * 1000,
                "allow_timeout_override": True,
                "max_queue_size": settings.queue_capacity,
            },
        },
        "instance_group": [
            {
                "name": model.name,
                "kind": "KIND_CPU" if model.engine.device == "cpu" else "KIND_GPU",
                "count": graph.instances,
            }
        ],
        "parameters": {"precision": {"string_value": model.precision}},
    }


def model_statistics(model: LoadedModel) -> dict[str, Any]:
    """Return what the classify graph did in this process since it was loaded, counted in images."""
    statistics = model.graphs["classify"].meter.statistics
    return {
        "name": model.name,
        "version": model.manifest.version,
        "last_inference": statistics.last_inference_epoch_ms,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": {
            "success": _duration(statistics.success),
            "fail": _duration(statistics.fail),
            "queue": _duration(statistics.queue),
            "compute_input": _duration(statistics.decode),
            "compute_infer": _duration(statistics.infer),
            "compute_output": _duration(NO_TIME),  # a part of compute_infer
            "cache_hit": _duration(NO_TIME),  # an answer from the cache never reaches a model
            "cache_miss": _duration(NO_TIME),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(NO_TIME),  # images are decoded one by one
                "compute_infer": _duration(duration),
                "compute_output": _duration(NO_TIME),
            }
            for size, duration in sorted(statistics.batches.items())
        ],
    }


def index_entry(name: str, model: LoadedModel | None) -> dict[str, str]:
    """Return an entry of the repository's index; `model` is None for an artifact that is not loaded."""
    if model is None:
        return {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "not loaded"}
    return {"name": name, "version": model.manifest.version, "state": "READY", "reason": ""}


def _platform(model: LoadedModel) -> str:
    return f"{model.engine.name}_onnx"


def _input_dims(manifest: Manifest) -> list[int]:
    return [manifest.preprocessing.crop, manifest.preprocessing.crop, 3]


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": round(duration.total_s * 1e9)}
