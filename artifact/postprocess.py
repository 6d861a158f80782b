"""Turn logits into predictions: which classes, in which order, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from artifact.errors import ResiduumError
from artifact.manifest import Label, Manifest


class TopKError(ResiduumError):
    """More predictions are asked for than the model has classes, or none."""


class Prediction(BaseModel):
    """A class and how probable it is."""

    index: int
    label: str
    wnid: str | None
    probability: float
    logit: float


def softmax(logits_K: NDArray[Any]) -> NDArray[np.float64]:
    """Return the probabilities [K], in float64."""
    exponentials = np.exp(logits_K.astype(np.float64) - float(logits_K.max()))
    return np.asarray(exponentials / exponentials.sum())


def top_classes(logits_K: NDArray[Any], top_k: int) -> list[int]:
    """Return the indices of the `top_k` highest logits, best first; of equal ones the lower index first."""
    return [int(index) for index in np.argsort(-logits_K, kind="stable")[:top_k]]


def top_predictions(logits_K: NDArray[Any], labels: Sequence[Label], top_k: int) -> list[Prediction]:
    """Return the `top_k` classes of highest logit, in the order of `top_classes`."""
    probabilities_K = softmax(logits_K)
    return [
        Prediction(
            index=index,
            label=labels[index].label,
            wnid=labels[index].wnid,
            probability=float(probabilities_K[index]),
            logit=float(logits_K[index]),
        )
        for index in top_classes(logits_K, top_k)
    ]


def allowed_top_k(top_k: int, manifest: Manifest, *, default: bool = False) -> int:
    """Return how many predictions to make: `top_k`, or if it is a `default`, at most as many as classes.

    Raises:
        TopKError: the number was asked for, and the model has fewer classes.
    """
    if not default and not 1 <= top_k <= manifest.num_classes:
        raise TopKError(f"{manifest.name} has {manifest.num_classes} classes")
    return min(top_k, manifest.num_classes)
