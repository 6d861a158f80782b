"""What every server of another project shares: preprocessing, the engine, and the form of an answer.

The preprocessing is that of torchvision's Resize and CenterCrop in Pillow, as in our own. The servers differ
in when they call these functions, and in which batches.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ARTIFACT = Path(os.environ["PEER_ARTIFACT"])  # the artifact's directory
ENGINE = os.environ.get("PEER_ENGINE", "onnxruntime")
MANIFEST: dict[str, Any] = json.loads((ARTIFACT / "manifest.json").read_text(encoding="utf-8"))
RESIZE, CROP = MANIFEST["preprocessing"]["resize"], MANIFEST["preprocessing"]["crop"]
SCALED_DECODING = MANIFEST["preprocessing"].get("scaled_decoding", False)
SCALED_MARGIN = 2.75  # as artifact/preprocess.py has it
NUM_CORES = len(os.sched_getaffinity(0))

Run = Callable[[np.ndarray], np.ndarray]


def resize_and_crop(image: Image.Image) -> Image.Image:
    """Resize the shorter side to RESIZE, and return the centre crop of CROP x CROP pixels.

    A large JPEG that is not decoded yet is decoded at a smaller scale, if the artifact says so.
    """
    full = image.size
    width, height = (RESIZE * side // min(full) for side in full)
    scale = 1
    if SCALED_DECODING and image.format == "JPEG":
        scale = next((scale for scale in (8, 4, 2) if min(full) >= SCALED_MARGIN * RESIZE * scale), 1)
        image.draft(None, (full[0] // scale, full[1] // scale))
    if image.mode != "RGB":  # converting RGB to RGB copies
        image = image.convert("RGB")
    box = (0, 0, full[0] / scale, full[1] / scale)
    image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    return image.crop((left, top, left + CROP, top + CROP))


def pixels_of(data: bytes) -> np.ndarray:
    """Return the pixels of an image file for the int8 graph: uint8 [H, W, 3]."""
    return np.asarray(resize_and_crop(Image.open(io.BytesIO(data))))


def open_int8(threads: int) -> Run:
    """Open the artifact's int8 graph; the function takes uint8 [N, H, W, 3] and returns logits [N, K]."""
    graph = next(
        ARTIFACT / graph["file"]
        for graph in MANIFEST["graphs"]
        if graph["kind"] == "classify" and graph["precision"] == "int8"
    )
    return {"onnxruntime": _onnxruntime, "openvino": _openvino}[ENGINE](graph, threads)


def _onnxruntime(graph: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def _openvino(graph: Path, threads: int) -> Run:
    import openvino

    # With pinning, the single threads of two worker processes would share the first core.
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    compiled = openvino.Core().compile_model(graph, "CPU", hints)
    return lambda images: compiled({"images": images})["logits"]


def answer(logits: np.ndarray, top_k: int = 5) -> dict[str, Any]:
    """Return the top classes and their probabilities, from one row of logits."""
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-logits)[:top_k]
    return {"predictions": [{"index": int(i), "probability": float(probabilities[i])} for i in best]}
