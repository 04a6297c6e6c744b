"""Work beside other work."""

import asyncio

import pytest

from craft_easy_jobd.background import begin


async def test_nothing_begins_when_an_error_ends_all_tasks() -> None:
    begun: list[str] = []

    async def work(name: str) -> None:
        begun.append(name)

    async def begins_at_its_end(tasks: asyncio.TaskGroup) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            begin(tasks, work("late"), "late")

    async def fails() -> None:
        raise OSError("the disk is gone")

    async def all_of_it() -> None:
        async with asyncio.TaskGroup() as tasks:
            begin(tasks, work("in time"), "in time")
            tasks.create_task(begins_at_its_end(tasks))
            tasks.create_task(fails())

    with pytest.raises(ExceptionGroup) as caught:
        await all_of_it()
    assert [str(error) for error in caught.value.exceptions] == ["the disk is gone"]
    assert begun == ["in time"]
