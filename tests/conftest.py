"""Fixtures: the embedded artifact, and a small random one from the export pipeline. The option --fast."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.fast import is_heavy, is_slow

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="leave out what needs a server, browser, export or process"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes long for a reason that tests/support/fast.py cannot see")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    return True if is_test and config.getoption("fast") and is_heavy(collection_path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("fast"):
        slow = [item for item in items if is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Set torch up for the tests, if one of them imports it."""
    if "torch" in sys.modules:
        import tests.support.networks
    if "export" in sys.modules and not session.config.getoption("fast"):
        import tests.support.exporting  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def _engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a choice of engines leaves behind lies in a folder of this run's, and beside no artifact."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RESIDUUM_ENGINE_CACHE", str(tmp_path_factory.mktemp("engines")))
        yield


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The default model's artifact."""
    return ROOT / "models" / "embedded"


@pytest.fixture(scope="session")
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20 with random weights and ten classes for 32x32 images, as an artifact; made once a run."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent  # of all workers
    out = folder / "artifacts" / "resnet20"
    with FileLock(folder / "artifacts.lock"):
        if not out.exists():
            # Imported here, because torch takes two seconds that most of the tests do not need.
            from export.pipeline import export_artifact
            from models.resnet import build
            from tests.support.networks import liven, network_of

            export_artifact(network_of(liven(build("resnet20", seed=1))), "resnet20", out)
    return out
