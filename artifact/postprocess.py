"""Turn logits into predictions: which classes, in which order, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.errors import NotFiniteError, ResiduumError
from artifact.manifest import Label, Manifest


class TopKError(ResiduumError):
    """More predictions are asked for than the model has classes, or none."""


@dataclass(slots=True)
class Prediction:
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
    if top_k < len(logits_K):  # sort only the candidates: of a thousand classes, five
        least = np.partition(logits_K, -top_k)[-top_k]
        candidates = np.flatnonzero(logits_K >= least)
        order = np.argsort(-logits_K[candidates], kind="stable")[:top_k]
        best: list[int] = candidates[order].tolist()
        return best
    whole: list[int] = np.argsort(-logits_K, kind="stable").tolist()
    return whole


def top_predictions(logits_K: NDArray[Any], labels: Sequence[Label], top_k: int) -> list[Prediction]:
    """Return the `top_k` classes of highest logit, in the order of `top_classes`.

    Raises:
        NotFiniteError: a logit is NaN or infinite.
    """
    if not np.isfinite(logits_K).all():
        raise NotFiniteError("the graph returned logits that are not finite")
    best = top_classes(logits_K, top_k)
    probabilities, logits = softmax(logits_K)[best].tolist(), logits_K[best].tolist()
    return [
        Prediction(index, labels[index].label, labels[index].wnid, probability, logit)
        for index, probability, logit in zip(best, probabilities, logits, strict=True)
    ]


def allowed_top_k(top_k: int, manifest: Manifest, *, default: bool = False) -> int:
    """Return how many predictions to make: `top_k`, or if it is a `default`, at most as many as classes.

    Raises:
        TopKError: the number was asked for, and the model has fewer classes.
    """
    if not default and not 1 <= top_k <= manifest.num_classes:
        raise TopKError(f"{manifest.name} has {manifest.num_classes} classes")
    return min(top_k, manifest.num_classes)
