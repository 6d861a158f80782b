"""FastAPI and torch in fp32 as in many tutorials: decode, transform and run within `async def`."""

import io
import os

import numpy as np
import torch
from fastapi import FastAPI, UploadFile
from PIL import Image

from benchmarks.peers.common import MANIFEST, resize_and_crop
from models.resnet import build

app = FastAPI()
mean, std = (torch.tensor(MANIFEST["preprocessing"][name])[:, None, None] for name in ("mean", "std"))
model = build(MANIFEST["architecture"]).eval()
if "PEER_WEIGHTS" in os.environ:
    model.load_state_dict(torch.load(os.environ["PEER_WEIGHTS"]))


def transform(image: Image.Image) -> torch.Tensor:
    """Apply torchvision's Resize, CenterCrop, ToTensor and Normalize."""
    pixels = torch.from_numpy(np.array(resize_and_crop(image))).permute(2, 0, 1)
    return (pixels.contiguous().float().div(255) - mean) / std


@app.get("/health")
async def health() -> dict:
    return {"status": "ok"}


@app.post("/predict")
async def predict(file: UploadFile) -> dict:
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    with torch.no_grad():
        logits = model(transform(image).unsqueeze(0))
    probabilities, indices = torch.softmax(logits[0], 0).topk(5)
    return {
        "predictions": [
            {"index": index, "probability": probability}
            for index, probability in zip(indices.tolist(), probabilities.tolist(), strict=True)
        ]
    }
