"""FastAPI and the int8 graph: a plain `def`, which FastAPI runs on its thread pool, for work that blocks.

One session with a thread a core; requests run it side by side, and there are no batches.
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
