"""FastAPI and the int8 graph: a plain `def`, which FastAPI runs on its thread pool.

There is one session with a thread for each core. Requests run in parallel, without batching.
"""

from fastapi import FastAPI, UploadFile

from benchmarks.peers.common import NUM_CORES, answer, open_int8, pixels_of

app = FastAPI()
run = open_int8(threads=NUM_CORES)


@app.get("/health")
def health() -> dict:
    return {"status": "ok"}


@app.post("/predict")
def predict(file: UploadFile) -> dict:
    return answer(run(pixels_of(file.file.read())[None])[0])
