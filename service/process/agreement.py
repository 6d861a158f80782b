"""The models that all workers of a server have, as the supervisor sees to it.

A worker makes a change that a client asked it for; then all others make it. A worker that starts is given the
state that results, and not the changes. A new version that one worker has found is loaded by all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Set
from dataclasses import replace

from service.process.member import CannotChange, Member
from service.runtime.wanted import Change, Wanted

logger = logging.getLogger("residuum")


class Agreement:
    """The desired state, and the changes that lead to it, one at a time.

    Args:
        members: the processes that have not ended; the supervisor changes the set.

    Attributes:
        wanted: None until a worker has loaded what the settings name.
    """

    def __init__(self, members: Set[Member]) -> None:
        self.wanted: Wanted | None = None
        self._members = members
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def take_over(self, member: Member, loaded: list[Change]) -> None:
        """Note what a worker has loaded at its start."""
        if self.wanted is None:
            self.wanted = Wanted(loaded)
        for change in loaded:
            if change.name not in self.wanted or self.wanted.differs_from(change):
                self.note(member, change)

    def note(self, member: Member, change: Change) -> None:
        """Note what a worker has loaded by itself; another version than before is for all workers."""
        assert self.wanted is not None
        differs = self.wanted.differs_from(change)
        self.wanted.note(change)
        if differs:
            self._keep(self._follow(member, change))

    def submit(self, taker: Member, number: int, change: Change) -> None:
        """Have a change made by the worker that a client asked for it, then by all others.

        Args:
            number: the id with which the worker has submitted the change.
        """
        self._keep(self._change(taker, number, change))

    async def _change(self, taker: Member, number: int, change: Change) -> None:
        async with self._changing:
            try:
                made = await taker.make(change, number)
            except (CannotChange, ConnectionError):
                return  # the worker has told its client, or has ended
            problem = None
            for member, why in await self._spread(taker, made, again=True):
                problem = problem or f"{member} could not do it, and is replaced: {why}"
                member.process.terminate()
            # Again: a worker's watch may have found something before the change reached the worker.
            self._want(made)
            taker.say("answer", id=number, why=problem)

    async def _spread(self, taker: Member, made: Change, again: bool) -> list[tuple[Member, str]]:
        """Have a change made by all workers but the one that has; return those that cannot, and why.

        A worker that starts meanwhile begins with the change. One that ends is none that cannot: its
        successor begins with the change.

        Args:
            again: load the model also in workers that have this version.
        """
        self._want(made)
        change = replace(made, fingerprint="") if again else made
        others = [member for member in self._members if member is not taker]
        answers = await asyncio.gather(
            *(member.make(change, None) for member in others), return_exceptions=True
        )
        return [
            (member, str(why))
            for member, why in zip(others, answers, strict=True)
            if isinstance(why, CannotChange)
        ]

    async def _follow(self, member: Member, change: Change) -> None:
        """Have all workers load the version that one of them has found in the place of the former one."""
        async with self._changing:
            assert self.wanted is not None
            if self.wanted.differs_from(change):
                return  # a client has changed the model meanwhile
            for other, why in await self._spread(member, change, again=False):
                logger.error("%s has another version than %s, and cannot load it: %s", other, member, why)

    def _want(self, change: Change) -> None:
        assert self.wanted is not None, "a worker makes changes only when it has loaded"
        self.wanted.note(change)

    def _keep(self, work: Coroutine[object, object, None]) -> None:
        """Run `work`, which no caller awaits."""

        def forget(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("%s has failed", task.get_coro(), exc_info=error)

        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(forget)
