"""Logits -> predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from artifact.manifest import Label


def softmax(logits_K: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities [K], in float64."""
    exponentials = np.exp(logits_K.astype(np.float64) - float(logits_K.max()))
    return np.asarray(exponentials / exponentials.sum())


def top_predictions(logits_K: NDArray[Any], labels: Sequence[Label], top_k: int) -> list[Prediction]:
    """The `top_k` classes of highest logit, best first; of equal ones the lower index first."""
    probabilities_K = softmax(logits_K)
    best = np.argsort(-logits_K, kind="stable")[:top_k]
    return [
        Prediction(
            index=int(index),
            label=labels[index].label,
            wnid=labels[index].wnid,
            probability=float(probabilities_K[index]),
            logit=float(logits_K[index]),
        )
        for index in best
    ]


class Prediction(BaseModel):
    index: int
    label: str
    wnid: str | None
    probability: float
    logit: float
