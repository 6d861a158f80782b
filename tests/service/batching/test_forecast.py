"""Forecasts are corrected by what became of them, within bounds, and by long enough waits only."""

from __future__ import annotations

import pytest

from service.batching.forecast import LEAST_S, RANGE, Forecast


@pytest.mark.parametrize("truth", [0.7, 1.0, 3.0])
def test_the_ratio_is_learnt(truth: float) -> None:
    forecast = Forecast()
    for _ in range(50):
        forecast.note(0.2, 0.2 * truth)
    assert forecast.ratio == pytest.approx(truth, rel=0.01)


def test_it_stays_within_bounds() -> None:
    forecast = Forecast()
    for took_s, bound in ((1e6, RANGE[1]), (0.0, RANGE[0])):
        for _ in range(200):
            forecast.note(1.0, took_s)
        assert forecast.ratio == bound


def test_short_waits_can_only_heal() -> None:
    """Where deadlines are short, a ratio that is too high lets nothing longer in, and would stay for ever."""
    forecast = Forecast()
    forecast.note(LEAST_S / 2, 10.0)
    assert forecast.ratio == 1.0
    for _ in range(200):
        forecast.note(1.0, 10.0)
    for _ in range(50):
        forecast.note(LEAST_S / 2, LEAST_S)
    assert forecast.ratio == pytest.approx(2.0, rel=0.01)
    for _ in range(50):
        forecast.note(LEAST_S / 2, 0.0)
    assert forecast.ratio == pytest.approx(1.0, rel=0.01)


def test_what_was_given_up_counts_only_if_it_took_too_long() -> None:
    forecast = Forecast()
    forecast.note(1.0, 0.1, done=False)  # its client left early
    assert forecast.ratio == 1.0
    forecast.note(1.0, 5.0, done=False)
    assert forecast.ratio > 1.0
