"""LitServe with batching: `python -m benchmarks.peers.litserve_app PORT`.

Set up as its documentation advises for CPUs: one worker for each core, with one thread each; `fast_queue` for
more than 100 requests a second; as many HTTP servers as workers, which is the default.
"""

import os
import sys
from typing import Annotated

import litserve
import numpy as np
from fastapi import File

from benchmarks.peers.common import NUM_CORES, answer, open_int8, pixels_of

BATCH = int(os.environ.get("PEER_BATCH", "4"))
BATCH_TIMEOUT_S = float(os.environ.get("PEER_WAIT_MS", "5")) / 1000


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.run = open_int8(threads=1)

    def decode_request(self, request: Annotated[bytes, File()]) -> np.ndarray:
        return pixels_of(request)

    def predict(self, images: np.ndarray) -> np.ndarray:
        return self.run(images)

    def encode_response(self, output: np.ndarray) -> dict:
        return answer(output)


if __name__ == "__main__":
    api = Classifier(max_batch_size=BATCH, batch_timeout=BATCH_TIMEOUT_S)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=NUM_CORES, fast_queue=True, track_requests=False
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
