"""The log of what ended names runs, and in a storm of them how many were not named."""

import logging

import pytest

from craft_easy_jobd import endings
from craft_easy_jobd.endings import Endings
from craft_easy_jobd.events import Event
from craft_easy_jobd.ledger import Again, Lease
from craft_easy_jobd.states import RunState
from tests.jobd.ledgers import ended, spec

LEASE = Lease("a", 1, 2, 0, 0, spec("a", tenant_id="acme"))


def test_each_run_that_ends_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told = Endings()
    told.of_run(LEASE, ended(), True)
    told.of_run(LEASE, ended(RunState.FAILED, "timed_out"), True)
    told.of_run(LEASE, ended(), False)
    told.of_attempt(Again(LEASE, "exception", "ValueError", delay_seconds=2.0))
    told.sum_up()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "run completed"),
        ("WARNING", "run failed"),
        ("WARNING", "late outcome refused: the run was given away since"),
        ("WARNING", "attempt ended, the run goes on"),
    ]
    facts = vars(caplog.records[1])
    assert [facts[name] for name in ("run_id", "job", "tenant", "attempt", "reason", "seconds")] == [
        *("a", "settle", "acme", 2, "timed_out", 2.0),
    ]
    events = [Event.RUN_COMPLETED, Event.RUN_TIMED_OUT, Event.OUTCOME_REFUSED, Event.RUN_GOES_ON]
    assert [vars(record)["event"] for record in caplog.records] == events


def test_what_goes_on_longer_than_a_second_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told = Endings()
    told.of_start(LEASE)
    told.of_run(LEASE, ended(), True)
    told.of_start(LEASE)
    told.of_attempt(Again(LEASE, "exception", "ValueError"))
    told.sum_up()
    assert "run started" not in caplog.text
    told.of_start(LEASE)
    told.sum_up()
    told.sum_up()
    assert [vars(record)["event"] for record in caplog.records] == [
        Event.RUN_COMPLETED,
        Event.RUN_GOES_ON,
        Event.RUN_STARTED,
    ]


def test_a_storm_is_counted_and_its_failures_are_still_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(endings, "LINES", 3)
    told = Endings()
    for _ in range(2):
        for _ in range(10):
            told.of_run(LEASE, ended(), True)
        told.of_run(LEASE, ended(RunState.FAILED, "exception"), True)
        told.sum_up()
    second = ["run completed"] * 3 + ["run failed", "run completed: 7 more in this second, not named"]
    assert [record.getMessage() for record in caplog.records] == second * 2
