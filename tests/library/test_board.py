"""The board on which a worker shows whose step it carries out."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from craft_easy_jobs.board import MARK_BYTES, Board, Mark, read_mark

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class Shown:
    """A board on a loop, with what another process would read of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.fd = os.memfd_create("board")
        os.ftruncate(self.fd, MARK_BYTES)
        self._loop = loop
        self._board = Board(os.dup(self.fd))
        self._board.watch(loop)

    def now(self) -> str | None:
        mark = read_mark(os.pread(self.fd, MARK_BYTES, 0))
        return mark and mark.run_id

    def start(self, run_id: str, function: Callable[[], Any]) -> "asyncio.Task[Any]":
        work, context = self._board.marked(function(), Mark(run_id, 1))
        return self._loop.create_task(work, context=context)


async def turn() -> None:
    """Let the loop turn once."""
    loop = asyncio.get_running_loop()
    turned = loop.create_future()
    loop.call_soon(turned.set_result, None)
    await turned


@pytest.mark.parametrize("loop", LOOPS)
def test_it_shows_the_attempt_of_the_step_and_nobody_between(loop: str) -> None:
    async def scenario() -> None:
        shown = Shown(asyncio.get_running_loop())
        seen: list[tuple[str, str | None]] = []

        async def work(name: str) -> None:
            for _ in range(3):
                seen.append((name, shown.now()))
                await turn()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append((name, shown.now()))

        async def start_others() -> None:
            part = asyncio.create_task(work("a"))
            await asyncio.gather(work("a"), work("a"), part)

        tasks = [shown.start("a", start_others), shown.start("b", lambda: work("b"))]
        for _ in range(10):
            await turn()
            assert shown.now() is None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.create_task(work_of_nobody(shown))
        assert {run for run, _ in seen} == {"a", "b"}
        assert len(seen) == 16
        assert all(run == mark for run, mark in seen)
        os.close(shown.fd)

    async def work_of_nobody(shown: Shown) -> None:
        assert shown.now() is None

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(scenario())


async def test_tasks_look_as_they_do_without_it() -> None:
    shown = Shown(asyncio.get_running_loop())

    async def settle() -> str:
        await turn()
        return "settled"

    async def refuse() -> None:
        raise ValueError("no rows")

    async def no_coroutine() -> None:
        asyncio.get_running_loop().create_task(3)  # type: ignore[arg-type]

    task = shown.start("a", settle)
    await turn()
    assert "settle()" in repr(task)
    assert [frame.f_code.co_name for frame in task.get_stack()] == ["settle"]
    assert await task == "settled"
    with pytest.raises(ValueError, match="no rows"):
        await shown.start("a", refuse)
    with pytest.raises(TypeError, match="a coroutine was expected"):
        await shown.start("a", no_coroutine)
    os.close(shown.fd)


def test_a_mark_holds_the_longest_id_and_the_largest_token() -> None:
    mark = Mark("x" * 128, 2**63 - 1)
    assert len(mark.pack()) == MARK_BYTES
    assert read_mark(mark.pack()) == mark
    assert read_mark(bytes(MARK_BYTES)) is None
