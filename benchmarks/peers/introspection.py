"""Introspection of every residual block by other libraries: rows of benchmarks/introspection.py.

    python -m benchmarks.peers.introspection ARCHITECTURE CLASSES PIXELS THREADS      # in its own venv

The process prints the rows that it can time, then answers each line `[ROW, SECONDS]` with the times of that
row. The network is ours in torch with random weights; their values do not affect the time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from models.resnet import build

TARGET = 3
STEPS = 50  # the default of InternalInfluence

Work = Callable[[], object]


def time_slice(work: Work, seconds: float) -> list[float]:
    """Call `work` for about `seconds`, at least once; return the milliseconds of each call.

    A first call is not counted.
    """
    work()
    times_ms: list[float] = []
    while sum(times_ms) < 1000 * seconds:
        started = time.perf_counter()
        work()
        times_ms.append(1000 * (time.perf_counter() - started))
    return times_ms


def rows_of(model: Any, x_NCHW: torch.Tensor) -> tuple[dict[str, Work], dict[str, str]]:
    """Return the work by row title; and why libraries are missing, by name."""
    blocks = [block for _, block in model.named_blocks()]
    rows: dict[str, Work] = {"torch: the forward pass alone": _without_gradients(lambda: model(x_NCHW))}
    missing: dict[str, str] = {}
    for name, make in {"captum": _captum, "grad-cam": _grad_cam, "torchlens": _torchlens}.items():
        try:
            rows |= {
                f"{name} {version(name)}: {title}": work
                for title, work in make(model, blocks, x_NCHW).items()
            }
        except Exception as error:  # the library is not installed, or fails on this machine
            missing[name] = f"{type(error).__name__}: {error}"
    return rows, missing


def _without_gradients(work: Work) -> Work:
    def run() -> object:
        with torch.no_grad():
            return work()

    return run


def _captum(model: Any, blocks: list[Any], x: torch.Tensor) -> dict[str, Work]:
    from captum.attr import InternalInfluence, LayerFeatureAblation, LayerGradCam, LayerGradientXActivation

    branches = [block.branch for block in blocks]
    whole = torch.zeros(1, 1, 1, 1, dtype=torch.long)  # treats the whole branch as one feature
    return {
        "LayerGradientXActivation, all branches at once": lambda: LayerGradientXActivation(
            model, branches
        ).attribute(x, target=TARGET),
        "LayerGradCam, each block": lambda: [
            LayerGradCam(model, block).attribute(x, target=TARGET) for block in blocks
        ],
        f"InternalInfluence, {STEPS} steps, last block": lambda: InternalInfluence(
            model, blocks[-1]
        ).attribute(x, target=TARGET, n_steps=STEPS),
        "LayerFeatureAblation, each branch": _without_gradients(
            lambda: [
                LayerFeatureAblation(model, branch).attribute(x, target=TARGET, layer_mask=whole)
                for branch in branches
            ]
        ),
    }


def _grad_cam(model: Any, blocks: list[Any], x: torch.Tensor) -> dict[str, Work]:
    _declare_operators()
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def cam_of(layers: list[Any]) -> object:
        with GradCAM(model=model, target_layers=layers) as cam:
            return cam(input_tensor=x, targets=[ClassifierOutputTarget(TARGET)])

    return {
        "GradCAM, each block": lambda: [cam_of([block]) for block in blocks],
        "GradCAM, one mean map of all blocks": lambda: cam_of(blocks),
    }


@cache
def _declare_operators() -> torch.library.Library | None:
    """Declare torchvision's operators, if they are missing: its import fails without them. None is called
    here.
    """
    try:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # torchvision has declared them
        return None
    return library  # the operators exist as long as this object


def _torchlens(model: Any, blocks: list[Any], x: torch.Tensor) -> dict[str, Work]:
    import torchlens

    return {"trace, every activation kept": _without_gradients(lambda: torchlens.trace(model, x))}


def main(architecture: str, num_classes: str, pixels: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print; only answers go to stdout
    model = build(architecture, num_classes=int(num_classes)).eval()
    rows, missing = rows_of(model, torch.randn(1, 3, int(pixels), int(pixels)))
    print(
        json.dumps({"rows": list(rows), "missing": missing, "torch": version("torch")}),
        file=answers,
        flush=True,
    )
    for line in sys.stdin:
        title, seconds = json.loads(line)
        try:
            answer = {"times_ms": time_slice(rows[title], seconds)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
