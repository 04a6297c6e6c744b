"""The ledger: the durable record of all runs, as a protocol, and the records that cross it.

An operation is durable when its call returns. Calls that are made in one turn of the loop, or while a commit is under
way, share one commit; they are applied in the order of the calls, so `submit` and `claim` called one after the other
without awaiting in between admit and start a run with one fsync. Times are Unix seconds (UTC).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import msgspec

from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.states import RunState
from craft_easy_jobs.chaining import ChainStep
from craft_easy_jobs.definition import Isolation, OnInterrupt
from craft_easy_jobs.scopes import Scope

if TYPE_CHECKING:
    # The publishing process has no loop, and no need of its modules.
    from asyncio import Future

Kind = Literal["job", "fan_out", "chain"]
# Runs that have children take no slot.
Lane = Isolation | Literal["none"]


class RunSpec(msgspec.Struct, frozen=True):
    """A run as admitted: all that is needed to carry it out, whatever becomes of the request file.

    `params` is a JSON object as bytes. `isolation` and `on_interrupt` are the job's at the time of admission. A run of
    another kind than `job` has a `plan` for its children and the isolation `none`; its job is the job of its children,
    or the chain's name. `step`: the step of the chain that this child is. `sub_tenant_ids` and `upstream` are what the
    context gets, as JSON; None: empty.
    """

    run_id: str
    job: str
    kind: Kind = "job"
    params: bytes = b"{}"
    tenant_id: str | None = None
    scope: Scope = "tenant"
    priority: int = 0
    not_before: float | None = None
    isolation: Lane = "shared"
    on_interrupt: OnInterrupt = "retry"
    validate: bool = True
    requested_by: str | None = None
    parent_run_id: str | None = None
    step: str | None = None
    sub_tenant_ids: bytes | None = None
    upstream: bytes | None = None
    plan: bytes | None = None


class FanOut(msgspec.Struct, frozen=True):
    """The plan of a run with one child for each tenant."""

    child: RunSpec
    tenant_ids: list[str]


class PlannedStep(msgspec.Struct, frozen=True):
    """A step of a chain, and its run as admitted: a job, or a fan-out with a plan of its own."""

    step: ChainStep
    run: RunSpec


class ChainPlan(msgspec.Struct, frozen=True):
    """The plan of a run with one child for each step that was started."""

    steps: list[PlannedStep]


encode_plan = msgspec.msgpack.Encoder().encode
decode_fan_out = msgspec.msgpack.Decoder(FanOut).decode
decode_chain = msgspec.msgpack.Decoder(ChainPlan).decode


class RequestFile(msgspec.Struct, frozen=True, array_like=True):
    """The file that a run was asked for with; `inode` and `modified_ns` tell it from any other while it is there."""

    run_id: str
    inode: int
    modified_ns: int


class Slice(msgspec.Struct, frozen=True):
    """Request files whose runs were submitted together.

    `number`: the spool's, larger for a later slice. `named`: each has its name in claimed/ durably.
    """

    number: int
    files: list[RequestFile]
    named: bool = False


class Submitted(NamedTuple):
    """Answer to one RunSpec. `duplicate`: the id was there before, nothing was written; `state` is what it is in."""

    run_id: str
    state: RunState
    duplicate: bool


class Lease(NamedTuple):
    """The right to carry out one attempt.

    `token` grows with each claim of the run; what is said with an older one is refused. `attempt` counts from 1;
    `failures` and `interruptions` are the attempts that ended so before.
    """

    run_id: str
    token: int
    attempt: int
    failures: int
    interruptions: int
    spec: RunSpec

    @property
    def names(self) -> dict[str, object]:
        """What a log calls the attempt by."""
        spec = self.spec
        names = {"run_id": self.run_id, "parent": spec.parent_run_id, "job": spec.job, "tenant": spec.tenant_id}
        return {**names, "attempt": self.attempt}


class Started(NamedTuple):
    """Answer to a `start`: one for each RunSpec, and the leases of those that are `running` by it, in their turn."""

    submitted: list[Submitted]
    leases: list[Lease]


class Result(NamedTuple):
    """How a run ended. `state` is `completed` or `failed`; `result` is JSON.

    `started_at` is the last attempt's as it goes in, the first one's as it comes out.
    """

    state: RunState
    reason: str | None
    result: bytes
    error: str | None
    started_at: float
    completed_at: float
    attempts: int
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None
    worker: str | None = None
    code_version: str | None = None


class Again(NamedTuple):
    """An attempt ended and the run goes on.

    `delay_seconds` None: back to `queued` at once, else `retrying` until it has passed. `interrupted`: counts as an
    interruption, not as a failure. `isolation`: where the next attempt is to run, None for where it was.
    """

    lease: Lease
    reason: str
    error: str | None
    delay_seconds: float | None = None
    interrupted: bool = False
    isolation: Isolation | None = None


class Cancelled(NamedTuple):
    """Answer to a cancel: the run's state after it, and the runs whose attempts are to be stopped now."""

    state: RunState
    stopping: Sequence[str]


class LogChunk(NamedTuple):
    """Consecutive log entries of one attempt: `lines` JSON objects joined by commas, `warnings` of them warnings."""

    run_id: str
    token: int
    entries: bytes
    lines: int
    warnings: int


class RunEnd(NamedTuple):
    """One end of a run: a run that was put back and ends again has another `token`."""

    seq: int
    token: int


class Run(msgspec.Struct, frozen=True):
    """All that the ledger knows of a run, without its log.

    `reason` of a run that is not final says what ended its last attempt. `next_at`: when a scheduled or retrying run
    may start. `log_count` and `warnings` count entries of all attempts.
    """

    seq: int
    spec: RunSpec
    state: RunState
    reason: str | None
    attempt: int
    failures: int
    interruptions: int
    token: int
    cancel_requested: bool
    requested_at: float
    next_at: float | None
    started_at: float | None
    result: Result | None
    warnings: int
    log_count: int
    published: bool

    @property
    def end(self) -> RunEnd:
        return RunEnd(self.seq, self.token)


class Ended(NamedTuple):
    """A run whose result is in the ledger but not yet known to be on disk, with its log entries as a JSON array."""

    run: Run
    logs: bytes


class Ledger(Protocol):
    """What the daemon asks of a ledger. Every method is safe to call concurrently on the loop."""

    counts: Mapping[RunState, int]
    """Runs by state, all states present, kept in memory; true as of the last commit."""
    next_due: float | None
    """When the earliest scheduled or retrying run may start; None when there is none. True as of the last commit."""

    @property
    def broken(self) -> LedgerError | None:
        """Why nothing can be written any more; None while calls that fail may succeed later."""

    async def open(self) -> None:
        """Open or create; claims, counts and `next_due` are ready when it returns.

        Raises:
            LedgerError: not ours, of a later version, or not writable.
        """

    async def close(self) -> None:
        """Commit what was called before, then close. Twice is harmless."""

    # -- producers and readers
    def submit(self, specs: Sequence[RunSpec], *, came_in: Slice | None = None) -> "Future[list[Submitted]]":
        """Add runs as `queued`, or `scheduled` when `not_before` lies ahead; idempotent by run_id.

        `came_in`: the files of these runs, in their order. Those of the runs that are new are kept in mind by the same
        transaction, until `let_go`.
        """

    def start(
        self, specs: Sequence[RunSpec], room: Mapping[Isolation, int], *, came_in: Slice | None = None
    ) -> "Future[Started]":
        """As `submit` with a `claim` for each isolation after it, in one step, when nothing waits for its turn.

        `room`: how many may start. None does when any other run waits; a claim is to find out which one is first. A
        duplicate takes its room with it.
        """

    def cancel(self, run_id: str) -> "Future[Cancelled | None]":
        """End a waiting run as `failed`/`cancelled`; mark an active one `stopping`; leave a final one alone.

        The same for all that are below it. None when there is no such run.
        """

    def rerun(self, run_id: str) -> "Future[RunState | None]":
        """Put a failed run back to `queued`; of a run with children those that failed, and of all above it itself.

        Leaves a run alone that has not failed. Returns the state after it, None when there is no such run.
        """

    async def get(self, run_id: str) -> Run | None: ...

    async def find(
        self,
        *,
        states: Sequence[RunState] = (),
        job: str | None = None,
        tenant: str | None = None,
        parent: str | None = None,
        after: int | None = None,
        limit: int = 100,
    ) -> list[Run]:
        """Newest first; `after`: the `seq` of the last run seen, for the next page."""

    async def read_log(self, run_id: str, *, after: int = 0, limit: int = 1000) -> tuple[bytes, int]:
        """Log entries of all attempts in order, after the first `after`: a JSON array and the number up to its end.

        Reads whole chunks, so it may return more than `limit` entries, by less than a chunk.
        """

    # -- the host that executes
    def claim(self, n: int, *, isolation: Isolation = "shared") -> "Future[list[Lease]]":
        """Give out up to n runs that may start now; they become `running`.

        Highest priority first; within a priority tenants take turns, each with its oldest run. Runs with children
        that may start now get their children first.
        """

    def log(self, chunks: Sequence[LogChunk]) -> "Future[None]":
        """Append log entries; those with an old token are dropped."""

    def finish(self, results: Sequence[tuple[Lease, Result]], *, then: Sequence[RunSpec] = ()) -> "Future[list[bool]]":
        """End runs, and submit their successors in the same transaction. False: fenced, nothing written for it.

        What follows for the runs above them is done in that transaction, too: next steps start, and a run whose last
        child ended ends.
        """

    def retry(self, again: Sequence[Again]) -> "Future[list[bool]]":
        """Put runs back for their next attempt. False: fenced, nothing written for it."""

    async def reap(self, *, budget: int) -> int:
        """At start: settle every run that a dead owner left `running` or `stopping`; returns how many.

        Asked to cancel: `failed`/`cancelled`. `on_interrupt="fail"` or interrupted more than `budget` times:
        `failed`/`interrupted`. Else back to `queued`, one interruption more.
        """

    # -- the spool
    async def slices(self) -> list[Slice]:
        """The files that are kept in mind, in the order of their numbers."""

    def let_go(self, *, named: Sequence[int], gone: Sequence[int]) -> "Future[None]":
        """Of these slices all files are `named`; those slices are not kept in mind any more."""

    # -- publishing
    async def unpublished(self, *, after: int = 0, limit: int) -> list[Ended]:
        """Ended runs whose result file is not known to be durable, by `seq`; `after` that of the last one seen.

        May return fewer than `limit` when their logs are large; none only when none is left.
        """

    def mark_published(self, ends: Sequence[RunEnd]) -> "Future[None]":
        """The result files of these ends are durable; of a run that was put back since: no change.

        May take its time, so that it shares the commit of others.
        """
