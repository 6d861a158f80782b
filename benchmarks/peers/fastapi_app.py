"""FastAPI and the int8 graph: a plain `def`, which FastAPI runs on its thread pool.

`uvicorn --workers` starts one process a core, each with a session of one thread. Requests run in parallel,
without batching.
"""

from fastapi import FastAPI, UploadFile

from benchmarks.peers.common import answer, open_int8, pixels_of

app = FastAPI()
run = open_int8(threads=1)


@app.get("/health")
def health() -> dict:
    return {"status": "ok"}


@app.post("/predict")
def predict(file: UploadFile) -> dict:
    return answer(run(pixels_of(file.file.read())[None])[0])
