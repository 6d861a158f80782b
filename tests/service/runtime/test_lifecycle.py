"""The states of a server: which follows which, and what is derived."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.errors import NotReady
from service.runtime.lifecycle import NEXT, Serving, State
from service.settings import Settings


@pytest.fixture
def settings(artifact: Path) -> Settings:
    return Settings(
        model=(str(artifact),),
        engine="onnxruntime",
        precision="fp32",
        device="cpu",
        threads=1,
        max_batch_size=1,
    )


def test_every_state_but_the_derived_one_is_entered_and_draining_is_the_last() -> None:
    assert set(NEXT) == set(State) - {State.UNHEALTHY}
    assert not NEXT[State.DRAINING]
    assert all(State.DRAINING in following for state, following in NEXT.items() if following)


def test_a_server_without_a_model_is_unhealthy(settings: Settings) -> None:
    async def check() -> None:
        serving = Serving(settings)
        assert serving.state is State.LOADING
        with pytest.raises(NotReady, match="loading its models"):
            serving.models.get(None)
        await serving.load()
        assert serving.state is State.READY
        await serving.changes.unload_model("resnet20")
        assert serving.state is State.UNHEALTHY
        assert not serving.is_draining
        serving.drain()
        assert serving.state is State.DRAINING
        assert serving.is_draining
        serving.close(1)

    asyncio.run(check())


def test_a_server_that_drains_while_it_loads_is_never_ready(settings: Settings) -> None:
    told: list[Serving] = []

    async def check() -> None:
        serving = Serving(settings, told.append)
        loading = asyncio.create_task(serving.load())
        await asyncio.sleep(0)
        serving.drain()
        await loading
        assert serving.state is State.DRAINING
        assert serving.failure is None
        serving.close(1)

    asyncio.run(check())
    assert not told
