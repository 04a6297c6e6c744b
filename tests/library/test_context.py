"""JobContext: its log, its stop flag, its tenants."""

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from craft_easy_jobs import JobContext

if TYPE_CHECKING:
    from craft_easy_jobs.model import LogEntry


async def test_each_call_writes_an_entry_of_the_specified_shape() -> None:
    seen: list[LogEntry] = []
    ctx = JobContext("r1", "a", emit=seen.append)
    await ctx.log("one")
    await ctx.progress("two", percentage=42)
    await ctx.progress("three")
    await ctx.warning("four")
    await ctx.error("five")
    logs = ctx.get_logs()
    assert [(entry["level"], entry["message"], entry["percentage"]) for entry in logs] == [
        ("info", "one", None),
        ("progress", "two", 42),
        ("progress", "three", None),
        ("warning", "four", None),
        ("error", "five", None),
    ]
    assert all(list(entry) == ["timestamp", "level", "message", "percentage"] for entry in logs)
    assert datetime.fromisoformat(logs[0]["timestamp"]).utcoffset() == timedelta(0)
    assert seen == logs
    logs[0]["message"] = "forged"
    logs.clear()
    assert [entry["message"] for entry in ctx.get_logs()] == ["one", "two", "three", "four", "five"]


@pytest.mark.parametrize(("given", "kept"), [(33.9, 33), (-5, 0), (101, 100), (True, 1), (0, 0)])
async def test_a_percentage_is_a_whole_number_from_0_to_100(given: Any, kept: int) -> None:
    ctx = JobContext("r1", "a")
    await ctx.progress("p", given)
    assert ctx.get_logs()[0]["percentage"] == kept
    assert type(ctx.get_logs()[0]["percentage"]) is int


async def test_a_message_becomes_text_that_utf8_can_hold() -> None:
    ctx = JobContext("r1", "a")
    await ctx.log(42)  # type: ignore[arg-type]
    await ctx.log("caf\udce9 ä")
    assert [entry["message"] for entry in ctx.get_logs()] == ["42", "caf\\udce9 ä"]


async def test_entries_go_to_the_python_logger_with_their_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="craft_easy_jobs.run"):
        ctx = JobContext("r1", "a", tenant_id="t")
        await ctx.log("100 % done {x}")
        await ctx.error("bad")
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.INFO, "100 % done {x}"),
        (logging.ERROR, "bad"),
    ]
    facts = vars(caplog.records[0])
    assert (facts["run_id"], facts["job"], facts["tenant"]) == ("r1", "a", "t")


def test_a_stop_is_asked_for_once_and_for_all() -> None:
    ctx = JobContext("r1", "a")
    assert not ctx.should_stop()
    ctx.request_stop()
    ctx.request_stop()
    assert ctx.should_stop()


def test_the_defaults() -> None:
    ctx = JobContext("r1", "a")
    assert (ctx.run_id, ctx.job_name, ctx.params, ctx.tenant_id) == ("r1", "a", {}, None)
    assert (ctx.scope, ctx.sub_tenant_ids, ctx.attempt, ctx.get_logs()) == ("tenant", [], 1, [])
