"""Random histories: every ledger against a model of it that fits on a page."""

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from craft_easy_jobd.ledger import Again, Lease, Ledger, Result, RunSpec
from craft_easy_jobd.states import ACTIVE, FINAL, WAITING, RunState
from tests.jobd.ledgers import IMPLEMENTATIONS, Clock

S = RunState
RUN_IDS = st.sampled_from([f"r{n}" for n in range(12)])
PRIORITIES = st.permutations([-1, 0, 0, 1, 1])
DELAYS = st.sampled_from([None, 0.0, 1.0, 5.0])


@dataclass
class Model:
    """A run as it should be."""

    seq: int
    spec: RunSpec
    state: RunState
    next_at: float | None
    token: int = 0
    failures: int = 0
    interruptions: int = 0
    reason: str | None = None

    def move(self, state: RunState, reason: str | None = None, next_at: float | None = None) -> None:
        self.state, self.reason, self.next_at = state, reason, next_at


class History(RuleBasedStateMachine):
    """Carries out each operation on the ledger and on the model, and compares what they say."""

    kind: str

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.Runner()
        self.clock = Clock()
        self.runs: dict[str, Model] = {}
        self.leases: list[Lease] = []
        self.ledger = self._open()

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self._do(self.ledger.close())
            self.loop.close()
            self.folder.cleanup()

    def _open(self) -> Ledger:
        ledger = IMPLEMENTATIONS[self.kind](Path(self.folder.name), self.clock)
        self._do(ledger.open())
        return ledger

    def _do(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return self.loop.run(wait())

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        async def call() -> Any:
            return await getattr(self.ledger, method)(*args, **kwargs)

        return self.loop.run(call())

    @rule(run_ids=st.lists(RUN_IDS, max_size=5), priority=st.integers(-1, 1), delay=DELAYS)
    def submit(self, run_ids: list[str], priority: int, delay: float | None) -> None:
        specs, expected = self._submitted(run_ids, [priority] * len(run_ids), delay)
        assert self._call("submit", specs) == expected

    @rule(run_ids=st.lists(RUN_IDS, max_size=5), priorities=PRIORITIES, delay=DELAYS, n=st.integers(1, 4))
    def start(self, run_ids: list[str], priorities: list[int], delay: float | None, n: int) -> None:
        waiting = any(
            run.state is S.QUEUED or (run.next_at is not None and run.next_at <= self.clock.now)
            for run in self.runs.values()
        )
        specs, expected = self._submitted(run_ids, priorities, delay)
        if waiting:
            assert self._call("start", specs, {"shared": n}) == (expected, [])
            return
        places = sorted(range(len(specs)), key=lambda place: (-specs[place].priority, place))[: 0 if delay else n]
        # A duplicate takes the room with it.
        began = [self.runs[specs[place].run_id] for place in places if not expected[place][2]]
        for run in began:
            run.move(S.RUNNING)
            run.token = 1
        submitted, leases = self._call("start", specs, {"shared": n})
        assert submitted == [(run_id, self.runs[run_id].state, duplicate) for run_id, _, duplicate in expected]
        assert leases == [self._lease(run) for run in began]
        self.leases += leases

    def _submitted(
        self, run_ids: list[str], priorities: list[int], delay: float | None
    ) -> tuple[list[RunSpec], list[Any]]:
        not_before = None if delay is None else self.clock.now + delay
        expected = []
        specs = [
            RunSpec(run_id=run_id, job="j", priority=priority, not_before=not_before)
            for run_id, priority in zip(run_ids, priorities, strict=False)
        ]
        for spec in specs:
            duplicate = spec.run_id in self.runs
            if not duplicate:
                state, next_at = (S.SCHEDULED, not_before) if delay else (S.QUEUED, None)
                self.runs[spec.run_id] = Model(len(self.runs) + 1, spec, state, next_at)
            expected.append((spec.run_id, self.runs[spec.run_id].state, duplicate))
        return specs, expected

    @rule(n=st.integers(0, 4))
    def claim(self, n: int) -> None:
        for run in self.runs.values():
            if run.next_at is not None and run.next_at <= self.clock.now:
                run.move(S.QUEUED, run.reason)
        leases = [self._lease(run) for run in self._begin(n)]
        assert self._call("claim", n) == leases
        self.leases += leases

    def _begin(self, n: int) -> list[Model]:
        queue = sorted(
            (run for run in self.runs.values() if run.state is S.QUEUED), key=lambda run: (-run.spec.priority, run.seq)
        )
        for run in queue[:n]:
            run.move(S.RUNNING, run.reason)
            run.token += 1
        return queue[:n]

    def _lease(self, run: Model) -> Lease:
        return Lease(run.spec.run_id, run.token, run.token, run.failures, run.interruptions, run.spec)

    def _owns(self, lease: Lease) -> bool:
        run = self.runs[lease.run_id]
        return run.state in ACTIVE and run.token == lease.token

    @rule(data=st.data(), state=st.sampled_from([S.COMPLETED, S.FAILED]), then=st.none() | RUN_IDS)
    def finish(self, data: st.DataObject, state: RunState, then: str | None) -> None:
        leases = data.draw(st.lists(st.sampled_from(self.leases), max_size=3)) if self.leases else []
        expected = []
        for lease in leases:
            expected.append(self._owns(lease))
            if expected[-1]:
                self.runs[lease.run_id].move(state, "why")
        successors = [RunSpec(run_id=then, job="next")] if then else []
        if any(expected) and then and then not in self.runs:
            self.runs[then] = Model(len(self.runs) + 1, successors[0], S.QUEUED, None)
        results = [(lease, Result(state, "why", b"1", None, 1.0, 2.0, lease.attempt)) for lease in leases]
        assert self._call("finish", results, then=successors) == expected

    @rule(data=st.data(), delay=DELAYS, interrupted=st.booleans())
    def retry(self, data: st.DataObject, delay: float | None, interrupted: bool) -> None:
        leases = data.draw(st.lists(st.sampled_from(self.leases), max_size=3)) if self.leases else []
        expected = []
        for lease in leases:
            expected.append(self._owns(lease))
            if expected[-1]:
                run = self.runs[lease.run_id]
                next_at = None if delay is None else self.clock.now + delay
                run.move(S.QUEUED if delay is None else S.RETRYING, "again", next_at)
                run.failures += not interrupted
                run.interruptions += interrupted
        again = [Again(lease, "again", None, delay, interrupted) for lease in leases]
        assert self._call("retry", again) == expected

    @rule(run_id=RUN_IDS)
    def cancel(self, run_id: str) -> None:
        run = self.runs.get(run_id)
        if run is not None and run.state in WAITING:
            run.move(S.FAILED, "cancelled")
        elif run is not None and run.state is S.RUNNING:
            run.move(S.STOPPING, run.reason)
        cancelled = self._call("cancel", run_id)
        stopping = [run_id] if run is not None and run.state is S.STOPPING else []
        assert cancelled == (run and (run.state, stopping))

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def restart(self) -> None:
        self._do(self.ledger.close())
        self.ledger = self._open()

    @invariant()
    def ledger_and_model_agree(self) -> None:
        if not hasattr(self, "ledger"):
            return
        found = {
            run.spec.run_id: Model(
                run.seq, run.spec, run.state, run.next_at, run.token, run.failures, run.interruptions, run.reason
            )
            for run in self._call("find")
        }
        assert found == self.runs
        states = Counter(run.state for run in self.runs.values())
        assert self.ledger.counts == {state: states[state] for state in RunState}
        due = [run.next_at for run in self.runs.values() if run.next_at is not None]
        assert self.ledger.next_due == min(due, default=None)
        unpublished = [one.run.seq for one in self._call("unpublished", limit=100)]
        assert unpublished == [run.seq for run in self.runs.values() if run.state in FINAL]


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_random_histories(kind: str) -> None:
    machine = type("History", (History,), {"kind": kind})
    limits = settings(
        max_examples=40,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        # Each step is a commit: making a failing history shorter would take longer than the test may.
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )
    run_state_machine_as_test(machine, settings=limits)
