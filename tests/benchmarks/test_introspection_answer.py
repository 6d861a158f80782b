"""The benchmark of what follows an introspect graph measures every stage, and says what it cannot measure."""

from __future__ import annotations

import json

import pytest

from benchmarks import introspection_answer


def test_every_stage_and_form_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert introspection_answer.main(["--rounds", "2", "--query", "maps=f16&blocks=stage1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found["ms"]) == [
        "the question",
        "measuring every quantity",
        "the document",
        "its JSON",
        "question to json, all of it",
        "question to npz, all of it",
    ]
    assert all(ms > 0 for ms in found["ms"].values())


@pytest.mark.parametrize("query", ["lesion=true", "blocks=stage9", "top_k=none"])
def test_a_question_that_cannot_be_measured_is_refused(
    query: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert introspection_answer.main(["--rounds", "1", "--query", query]) == 2
    assert "introspection_answer" in capsys.readouterr().err
