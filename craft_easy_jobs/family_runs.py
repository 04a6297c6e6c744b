"""Runs with children, under way in this process: a fan-out over tenants, and a chain of steps."""

import asyncio
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from craft_easy_jobs.attempting import Ending
from craft_easy_jobs.chaining import ChainStep
from craft_easy_jobs.context import JobContext
from craft_easy_jobs.families import Row, StepFacts, advance, chain_table, child_run_id, fan_out_table, withdrawn
from craft_easy_jobs.model import JobResult, LogEntry
from craft_easy_jobs.running import UnderWay

MAX_FAILURES_TOLD = 5


@dataclass(eq=False, kw_only=True)
class Family(UnderWay):
    """A run that is over when its children are; its own log tells how each of them ended."""

    on_child: Callable[[JobResult], None] | None = None
    _children: list[UnderWay] = field(default_factory=list)
    _rows: dict[str, Row] = field(default_factory=dict)
    _failures: dict[str, str] = field(default_factory=dict)
    _answered: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.attempts = 1
        self._ctx = JobContext(self.run_id, self.name, tenant_id=self.tenant_id, scope=self.scope, emit=self._take)

    @abstractmethod
    def _ending(self) -> Ending:
        """How the family ended; children that did not are told as such."""

    def _pass_on(self) -> None:
        for child in tuple(self._children):
            (child.cut if self.cutting else child.request_stop)()

    async def _carry_out_child(self, name: str, child: UnderWay) -> JobResult:
        child.emit = partial(self._relay, name)
        child.on_stuck = self.on_stuck and partial(self._answer_stuck, name)
        self._children.append(child)
        if self.stopping:
            self._pass_on()
        try:
            result = await child.carry_out()
        finally:
            self._children.remove(child)
        self.abandoned |= child.abandoned
        self.was_cut |= child.was_cut
        self._keep(name, result)
        if self.on_child is not None:
            self.on_child(result)
        say = self._ctx.log if result.status == "completed" else self._ctx.error
        await say(f"{name} {_ending_of(result)}")
        return result

    def _keep(self, name: str, result: JobResult) -> None:
        self._rows[name] = Row(name, result.status, result.reason, result.run_id, result.duration_seconds)
        self._failures.pop(name, None)
        if result.status == "failed":
            self._failures[name] = f"{name} {_ending_of(result)}"

    def _answer_stuck(self, name: str, result: JobResult) -> None:
        self._keep(name, result)
        # A blocked loop is noticed by every child that runs; the run has one result.
        if self.on_stuck is not None and self._answered.acquire(blocking=False):
            self.on_stuck(self._result(self._ending()))

    def _relay(self, name: str, entry: LogEntry) -> None:
        if self.emit is not None:
            self.emit({**entry, "message": f"{name}: {entry['message']}"})

    def _cut_short(self, name: str) -> Row:
        """The row of a child that did not end."""
        reason = "cancelled" if self.stopping else "interrupted"
        return Row(name, "failed", reason, child_run_id(self.run_id, name), None)

    def _told(self) -> str:
        told = list(self._failures.values())[:MAX_FAILURES_TOLD]
        more = len(self._failures) - len(told)
        return "; ".join(told) + (f"; and {more} more" if more else "")


@dataclass(eq=False, kw_only=True)
class FanOutRun(Family):
    """One child for each tenant, `concurrency` of them side by side."""

    tenant_ids: Sequence[str]
    concurrency: int
    make: Callable[[str], UnderWay]

    async def _work(self) -> Ending:
        waiting = iter(self.tenant_ids)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.concurrency, len(self.tenant_ids))):
                group.create_task(self._work_through(waiting))
        return self._ending()

    async def _work_through(self, waiting: Iterator[str]) -> None:
        while not self.stopping and (tenant_id := next(waiting, None)) is not None:
            await self._carry_out_child(tenant_id, self.make(tenant_id))

    def _ending(self) -> Ending:
        rows = [self._rows.get(tenant_id) or self._cut_short(tenant_id) for tenant_id in self.tenant_ids]
        table = fan_out_table(rows)
        if not (failed := table["counts"]["failed"]):
            return Ending("completed", "stopped" if self.stopping else None, table)
        told = self._told() or "none of these was started"
        error = f"{failed} of {len(rows)} tenants failed: {told}"
        return Ending("failed", "cancelled" if self.stopping else "tenants_failed", table, error)


@dataclass(eq=False, kw_only=True)
class ChainRun(Family):
    """One child for each step, as `advance` says; `make` gets the step, a run id, and what completed steps returned."""

    steps: Sequence[ChainStep]
    make: Callable[[ChainStep, str, dict[str, Any]], UnderWay]
    _facts: dict[str, StepFacts] = field(default_factory=dict)
    _upstream: dict[str, Any] = field(default_factory=dict)

    async def _work(self) -> Ending:
        async with asyncio.TaskGroup() as group:
            self._go_on(group)
        return self._ending()

    def _go_on(self, group: asyncio.TaskGroup) -> None:
        moves = advance(self.steps, self._facts, stopping=self.stopping)
        for job in moves.skip:
            self._facts[job] = StepFacts("skipped", 0)
        for job in moves.withdraw:
            self._facts[job] = withdrawn(self._facts[job])
            self._woken.set()
        for step in self.steps:
            if step.job in moves.start:
                self._facts[step.job] = StepFacts("running", 1)
                group.create_task(self._take_step(group, step, 1))
            elif step.job in moves.again:
                tries = self._facts[step.job].tries + 1
                self._facts[step.job] = StepFacts("due", tries)
                group.create_task(self._take_step_again(group, step, tries))

    async def _take_step(self, group: asyncio.TaskGroup, step: ChainStep, tries: int) -> None:
        # A space keeps the id apart from that of a step whose name is the same but for it.
        run_id = child_run_id(self.run_id, step.job if tries == 1 else f"{step.job} {tries}")
        result = await self._carry_out_child(step.job, self.make(step, run_id, dict(self._upstream)))
        status: Literal["completed", "failed"] = "failed"
        if result.status == "completed":
            status, self._upstream[step.job] = "completed", result.result
        self._facts[step.job] = StepFacts(status, tries)
        self._go_on(group)

    async def _take_step_again(self, group: asyncio.TaskGroup, step: ChainStep, tries: int) -> None:
        await self._ctx.warning(f"{step.job} starts again in {step.retry_delay_seconds} s")
        if await self._stops_within(step.retry_delay_seconds):
            self._go_on(group)
        if self._facts[step.job].state == "due":
            self._facts[step.job] = StepFacts("running", tries)
            await self._take_step(group, step, tries)

    def _ending(self) -> Ending:
        rows = [self._row(step.job) for step in self.steps]
        table = chain_table(rows)
        skipped = [row.name for row in rows if row.status == "skipped"]
        policies = {step.job: step.on_failure for step in self.steps}
        if not skipped and all(row.status == "completed" or policies[row.name] == "continue" for row in rows):
            return Ending("completed", "stopped" if self.stopping else None, table)
        parts = (self._told(), f"skipped: {', '.join(skipped)}" if skipped else "")
        error = "; ".join(filter(None, parts))
        return Ending("failed", "cancelled" if self.stopping else "step_failed", table, error)

    def _row(self, job: str) -> Row:
        fact = self._facts.get(job)
        if fact is None or fact.state == "skipped":
            return Row(job, "skipped", "upstream_failed", None, None)
        return self._rows.get(job) or self._cut_short(job)


def _ending_of(result: JobResult) -> str:
    if result.status == "completed":
        return f"completed in {result.duration_seconds or 0:.1f} s"
    return f"failed ({result.reason})" + (f": {result.error}" if result.error else "")
