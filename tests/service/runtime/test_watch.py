"""What appears below a directory is found, whenever it appears, and nothing else is."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from artifact.manifest import MANIFEST_FILE
from artifact.store import artifacts_in
from service.runtime.opening import LoadError
from service.runtime.repository import Repository
from service.runtime.watch import changed_artifacts
from service.settings import Settings


def put(directory: Path, text: str = "{}") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path / "root" / "first")
    return tmp_path / "root"


@asynccontextmanager
async def watching(root: Path) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """What is found next, from the moment on when it watches."""
    async with aclosing(changed_artifacts(root)) as found:

        async def next_one() -> str:
            async with asyncio.timeout(60):
                return (await anext(found)).name

        first = asyncio.create_task(next_one())
        while not first.done():  # until it watches, which shows in what it finds
            put(root / "first")
            await asyncio.sleep(0.01)
        assert await first == "first"
        yield next_one


def test_those_that_are_there(root: Path) -> None:
    put(root / "second")
    put(root / ".hidden")
    put(root / "deep" / "deeper")
    (root / "empty").mkdir()
    (root / MANIFEST_FILE).touch()
    assert [path.name for path in artifacts_in(root)] == ["first", "second"]
    assert artifacts_in(root / "nix") == []


def test_the_first_look_finds_all_that_came_before_it_watched(root: Path) -> None:
    async def check() -> None:
        put(root / "second")
        async with watching(root) as next_one:
            assert await next_one() == "second"

    asyncio.run(check())


@pytest.mark.parametrize("how", ["written", "renamed", "linked", "changed inside"])
def test_what_appears_or_changes_is_found(root: Path, tmp_path: Path, how: str) -> None:
    async def check() -> None:
        async with watching(root) as next_one:
            new = put(tmp_path / "new")
            put(root / ".hidden")
            (root / "empty").mkdir()
            if how == "written":
                put(root / "second")
            elif how == "renamed":
                new.rename(root / "second")
            elif how == "linked":
                (root / "second").symlink_to(new)
            else:
                put(root / "second")
                while await next_one() != "second":
                    pass
                (root / "second" / "graph.onnx").touch()
            while (name := await next_one()) != "second":
                assert name == "first"  # which the fixture touched

    asyncio.run(check())


def test_a_place_that_others_do_not_watch_is_watched(tmp_path: Path) -> None:
    """watchfiles leaves out directories such as .venv by itself."""

    async def check() -> None:
        root = tmp_path / ".venv" / "node_modules" / "root"
        put(root / "first")
        async with watching(root) as next_one:
            put(root / "second")
            while await next_one() != "second":
                pass

    asyncio.run(check())


def test_a_directory_that_goes_away_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with watching(root) as next_one:
            shutil.rmtree(root)
            while True:
                await next_one()

    with pytest.raises(StopAsyncIteration):
        asyncio.run(check())
    assert f"{root} is watched no more" in caplog.text


def test_a_directory_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"--watch: there is no directory .*nix; --artifacts says which"):
        Repository(Settings(artifacts=tmp_path / "nix", watch=True)).load_configured()
