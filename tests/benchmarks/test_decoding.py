"""The benchmark of decoding measures every way, and leaves the decoder as it found it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifact import jpeg
from benchmarks import decoding
from tests.support.images import encode, photograph


def test_every_photograph_has_a_row_for_every_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(encode(photograph(61, 40), "JPEG"))
    before = jpeg.simplejpeg
    assert decoding.main(["--images", str(tmp_path), "--seconds", "0.001"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["photograph"], row["input"]) for row in rows] == [("a.jpg", "64"), ("a.jpg", "256/224")]
    assert all(ms > 0 for row in rows for ms in row["ms"].values())
    assert jpeg.simplejpeg is before
