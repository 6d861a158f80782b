"""What counts as right, and how much of it a precision may lose."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from artifact.manifest import Precision
from export.accuracy import check_accuracy, check_agreement, score
from export.verify import GateError

Logits = NDArray[np.float32]
NAN = math.nan


def logits_for(classes: Sequence[int] | NDArray[np.int64], num_classes: int = 10) -> Logits:
    """Of images whose top classes are those."""
    return np.eye(num_classes, dtype=np.float32)[np.asarray(classes)]


def answers(num_images: int, *, wrong: Sequence[int] = ()) -> tuple[Logits, NDArray[np.int64]]:
    """Logits that are right but for the images `wrong`, and the labels."""
    labels = np.arange(num_images) % 10
    said = labels.copy()
    said[list(wrong)] = (said[list(wrong)] + 1) % 10
    return logits_for(said), labels


def test_score_counts_the_first_and_the_first_five() -> None:
    logits = np.arange(10, dtype=np.float32)[None].repeat(4, 0)
    found = score(logits, np.array([9, 5, 4, 0]), "made up")
    assert (found.top1, found.top5, found.num_images, found.dataset) == (0.25, 0.5, 4, "made up")
    assert found.agreement is None


@pytest.mark.parametrize(
    ("row", "top1", "top5"),
    [
        ([3, 3, 0, 0, 0, 0, 0], 0, 1),  # as good as another
        ([3, 3, 3, 3, 3, 3, 3], 0, 0),  # it says nothing
        ([NAN, 1, 2, 0, 0, 0, 0], 0, 0),  # its own is not a number
        ([3, 1, NAN, 0, 0, 0, 0], 0, 1),  # another one is not
        ([NAN] * 7, 0, 0),
        ([math.inf, 1, 2, 0, 0, 0, 0], 1, 1),
    ],
)
def test_ties_and_nan_count_against(row: list[float], top1: float, top5: float) -> None:
    found = score(np.array([row], np.float32), np.array([0]), "made up")
    assert (found.top1, found.top5) == (top1, top5)


def test_score_says_how_often_fp32_says_the_same() -> None:
    logits, labels = answers(8, wrong=(0, 1))
    reference, _ = answers(8, wrong=(0,))
    found = score(logits, labels, "made up", reference)
    assert (found.top1, found.agreement) == (0.75, 0.875)


@pytest.mark.parametrize(
    ("precision", "allowed"), [("fp16", 10), ("bf16", 10), ("int8", 30), ("int8-trt", 30)]
)
def test_the_limit_on_ten_thousand_images(precision: Precision, allowed: int) -> None:
    """Exactly at the limit passes, one image more does not."""
    fp32, labels = answers(10_000)
    at_limit, _ = answers(10_000, wrong=range(allowed))
    beyond, _ = answers(10_000, wrong=range(allowed + 1))
    limit = f"{allowed / 100:.1f} is allowed"
    assert check_accuracy(precision, at_limit, fp32, labels) == (
        f"{precision} loses {allowed / 100:.2f} point of top-1 against fp32 "
        f"({100 - allowed / 100:.2f} % after 100.00 % of 10,000 images); {limit}."
    )
    with pytest.raises(GateError, match=rf"loses 0\.\d1 point .*; {limit}\. .*--allow-loss exports it"):
        check_accuracy(precision, beyond, fp32, labels)
    assert check_accuracy(precision, beyond, fp32, labels, allow_loss=True).endswith(
        f"{limit}, but --allow-loss let it pass."
    )


def test_no_loss_and_a_gain_are_said() -> None:
    fp32, labels = answers(100, wrong=(0, 1))
    assert "fp16 loses no point of top-1" in check_accuracy("fp16", fp32, fp32, labels)
    better, _ = answers(100, wrong=(0,))
    assert "int8 gains 1.00 point of top-1" in check_accuracy("int8", better, fp32, labels)


def test_chance_on_few_images_is_by_those_that_one_gets_right_and_the_other_wrong() -> None:
    """Two losses of 4 points of 100 images: of 4 images it is a loss, of 5 with 1 won it may be chance."""
    fp32, labels = answers(100, wrong=range(90, 100))
    four_lost, _ = answers(100, wrong=range(86, 100))
    with pytest.raises(GateError, match=r"loses 4\.00 .* 0\.3 is allowed, and 3\.29 more for chance on so"):
        check_accuracy("int8", four_lost, fp32, labels)
    five_lost, _ = answers(100, wrong=range(85, 99))
    verdict = check_accuracy("int8", five_lost, fp32, labels)
    assert "loses 4.00 point" in verdict
    assert f"and {164.5 * math.sqrt(6) / 100:.2f} more for chance" in verdict
    # fp16 may lose less, and wrong answers that only differ from one another are none of its business.
    other_mistakes = logits_for(np.where(np.arange(100) < 90, labels, (labels + 2) % 10))
    assert "loses no point" in check_accuracy("fp16", other_mistakes, fp32, labels)


def test_enough_images_leave_no_room_for_chance() -> None:
    fp32, labels = answers(10_000)
    eleven, _ = answers(10_000, wrong=range(11))
    with pytest.raises(GateError):
        check_accuracy("fp16", eleven, fp32, labels)
    assert "for chance" in check_accuracy("fp16", eleven[:-1], fp32[:-1], labels[:-1])


def test_nan_never_passes() -> None:
    fp32, labels = answers(10_000)
    with pytest.raises(GateError, match=r"loses 100\.00 "):
        check_accuracy("fp16", np.full_like(fp32, NAN), fp32, labels)


def test_without_labels_the_top_class_has_to_agree() -> None:
    fp32, _ = answers(100)
    nine_of_ten, _ = answers(100, wrong=range(10))
    assert check_agreement("int8", nine_of_ten, fp32) == (
        "int8 gives fp32's top class for 90.00 % of 100 images without labels (90 % is needed); "
        "its accuracy was not measured."
    )
    fewer, _ = answers(100, wrong=range(11))
    with pytest.raises(GateError, match=r"for 89\.00 % .* Give labelled images with --data, or --allow-loss"):
        check_agreement("int8", fewer, fp32)
    assert check_agreement("int8", fewer, fp32, allow_loss=True).endswith("; --allow-loss let it pass.")
