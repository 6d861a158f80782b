"""Artifacts are found by name and by path; unfinished ones are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifact.manifest import MANIFEST_FILE
from artifact.store import EMBEDDED, ArtifactNotFound, artifacts_in, find_artifact, is_artifact


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Directories with a manifest, one of them being written, and one without."""
    for name in ("resnet50", "resnet18", ".resnet34"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST_FILE).touch()
    (tmp_path / "photographs").mkdir()
    return tmp_path


def test_what_is_below_a_directory(artifacts: Path) -> None:
    assert artifacts_in(artifacts) == [artifacts / "resnet18", artifacts / "resnet50"]
    assert artifacts_in(artifacts / "nowhere") == []
    assert is_artifact(artifacts / ".resnet34")
    assert not is_artifact(artifacts / "photographs")


def test_by_name_by_path_and_the_embedded_one(artifacts: Path) -> None:
    assert find_artifact("resnet50", artifacts) == artifacts / "resnet50"
    assert find_artifact(str(artifacts / ".resnet34"), artifacts) == artifacts / ".resnet34"
    assert is_artifact(find_artifact(EMBEDDED, artifacts))
    with pytest.raises(ArtifactNotFound, match=r"there is: embedded, resnet18, resnet50$"):
        find_artifact("resnet101", artifacts)
