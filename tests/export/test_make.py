"""What the request changes about a network before it is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export import make
from export.source import Request
from residuum.cli.main import main


@pytest.mark.parametrize("scaled", [False, True])
def test_scaled_decoding_is_for_any_source(
    scaled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[Any] = []
    monkeypatch.setattr(make, "_export", lambda network, _request, _out: exported.append(network))
    make.make_artifact(Request("resnet20", tmp_path, tmp_path / "a", seed=0, scaled_decoding=scaled))
    assert exported[0].metadata.preprocessing.scaled_decoding is scaled


@pytest.mark.parametrize("scaled", [False, True])
def test_it_has_a_flag(scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    def stop(request: Request, *_: object) -> None:
        asked.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "make_artifact", stop)
    flags = ["--scaled-decoding"] if scaled else []
    main(["export", "resnet20", "--weights", "random", "-o", "x", *flags])
    assert asked[0].scaled_decoding is scaled
