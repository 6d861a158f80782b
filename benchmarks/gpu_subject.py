"""The artifact that the steps of benchmarks/gpu.py measure: ResNet-50 with random weights, or a small one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from artifact.manifest import read_manifest
from benchmarks.gpu import Context
from benchmarks.subjects import random_artifact


def subject(context: Context) -> dict[str, Any]:
    """Export the artifact with graphs in fp32 and fp16, which takes minutes of one core for ResNet-50."""
    os.nice(5)  # the steps that run meanwhile are waited for
    started = time.perf_counter()
    name = "resnet20" if context.quick else "resnet50"
    directory = random_artifact(name, ("fp16",))
    return {
        "directory": str(directory),
        "model": read_manifest(directory).name,
        "export_s": round(time.perf_counter() - started, 1),
    }


def directory_of(context: Context) -> Path:
    """Return the artifact's directory."""
    return Path(context.found("subject")["directory"])
