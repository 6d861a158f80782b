"""BentoML with adaptive batching: a batchable API over images, one worker process a core, one thread each.

BentoML adapts batch size and waiting time. `max_latency_ms` keeps its default, since a shorter one makes it
refuse requests.
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
