"""Logits become predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from artifact.errors import NotFiniteError
from artifact.manifest import Label, read_manifest
from artifact.postprocess import TopKError, allowed_top_k, softmax, top_classes, top_predictions

LABELS = [Label(label=f"class {index}", wnid=f"n{index}" if index else None) for index in range(4)]


def test_softmax_is_float64_and_does_not_overflow() -> None:
    probabilities = softmax(np.array([1e4, 1e4, -1e4], np.float32))
    assert probabilities.dtype == np.float64
    assert probabilities.tolist() == [0.5, 0.5, 0.0]


def test_best_first_and_of_equal_ones_the_lower_index() -> None:
    predictions = top_predictions(np.array([1, 3, 0, 3], np.float32), LABELS, 3)
    assert [prediction.index for prediction in predictions] == [1, 3, 0]
    assert predictions[2].label == "class 0"
    assert predictions[2].wnid is None
    assert predictions[0].logit == 3
    assert predictions[0].probability == pytest.approx(np.e**3 / (np.e + 2 * np.e**3 + 1))


@given(arrays.arrays(np.float32, st.integers(1, 40), elements=st.integers(-3, 3)), st.integers(1, 40))
def test_the_order_is_that_of_a_stable_sort(logits_K: NDArray[np.float32], top_k: int) -> None:
    """Few values, so that equal ones stand on both sides of the last place."""
    assert top_classes(logits_K, top_k) == np.argsort(-logits_K, kind="stable")[:top_k].tolist()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_no_answer(wrong: float) -> None:
    with pytest.raises(NotFiniteError):
        top_predictions(np.array([1, wrong, 0, 3], np.float32), LABELS, 2)


def test_a_number_of_predictions_that_was_asked_for_must_exist(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert [allowed_top_k(number, manifest) for number in (1, manifest.num_classes)] == [1, 10]
    assert allowed_top_k(11, manifest, default=True) == manifest.num_classes
    for wrong in (0, 11):
        with pytest.raises(TopKError, match=f"{manifest.name} has 10 classes"):
            allowed_top_k(wrong, manifest)
