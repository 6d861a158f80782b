"""BentoML with adaptive batching: a batchable API over images, a worker process a core, a thread each.

Its dispatcher finds size and wait by itself; `max_latency_ms` stays at its default: a shorter one refuses.
"""

import os

import bentoml
import numpy as np
from PIL import Image

from benchmarks.peers.common import NUM_CORES, answer, open_int8, resize_and_crop


@bentoml.service(workers=NUM_CORES, logging={"access": {"enabled": False}})
class Classifier:
    def __init__(self) -> None:
        self.run = open_int8(threads=1)

    @bentoml.api(batchable=True, max_batch_size=int(os.environ.get("PEER_BATCH", "4")))
    def predict(self, images: list[Image.Image]) -> list[dict]:
        logits = self.run(np.stack([np.asarray(resize_and_crop(image)) for image in images]))
        return [answer(row) for row in logits]
