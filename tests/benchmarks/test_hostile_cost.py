"""The worst requests are found by what the server's process took, and the server goes on beside them."""

from __future__ import annotations

import json

import pytest

from benchmarks.hostile_cost import Cost, attacks, main


def test_every_file_comes_alone_in_a_form_and_to_be_drawn() -> None:
    known = attacks([16])
    assert len({attack.name for attack in known}) == len(known) == 30
    assert all(attack.num_bytes > 0 for attack in known)


def test_what_costs_most_a_byte_is_worst() -> None:
    small, large = (Cost("", size, 200, 1.0, 1.0, 100.0) for size in (10, 1000))
    cheap = Cost("", 10, 200, 1.0, 0.1, 0.0)
    assert small.badness > large.badness
    assert small.badness > cheap.badness


@pytest.mark.slow
def test_the_search_and_the_flood(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--clients 6 --seconds 2 --worst 4 --side 64 --side 400 --decode-mib 64"
    assert main(arguments.split()) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {cost["status"] for cost in document["costs"]} == {200}
    assert set(document["busy"]["statuses"]) == {"200"}
    assert document["attackers"]["stalled"] >= 1
