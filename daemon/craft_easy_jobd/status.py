"""The shape of `GET /v1/status`: what the daemon says of itself."""

from typing import Literal

import msgspec

from craft_easy_jobd.states import RunState
from craft_easy_jobs.definition import Isolation
from craft_easy_jobs.scopes import Scope

WorkerState = Literal["starting", "ready", "leaving", "stuck"]
ContainmentKind = Literal["cgroup", "process tree"]
AccountingKind = Literal["cgroup", "process tree"]
DaemonState = Literal["starting", "running", "draining", "stopping"]


class Blocked(msgspec.Struct, frozen=True, kw_only=True):
    """Why a worker's loop does not turn: whose step it carries out, since when at least, and where in the code.

    What is not known is null. `stopped`: the process is, by a signal; then no run is to blame.
    """

    run_id: str | None
    seconds: float
    place: str | None
    stopped: bool


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process. `code_version`: of the job modules that it imported, null while it does so.

    `cpu_seconds` since its start, `loop_lag_seconds` as it said last. `cpu_seconds` and `rss_bytes` are those of the
    worker with what its jobs started, as of `accounting`; added up over the process tree, 30 processes are counted.
    """

    name: str
    pid: int
    isolation: Isolation
    generation: int
    code_version: str | None
    slots: int
    busy: int
    cpu_seconds: float | None
    rss_bytes: int | None
    loop_lag_seconds: float
    blocked: Blocked | None = None
    state: WorkerState


class RunningStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is being carried out. `age_seconds` of this attempt; `progress` and `percentage` as it said last."""

    run_id: str
    job: str
    tenant_id: str | None
    scope: Scope
    attempt: int
    state: RunState
    age_seconds: float
    progress: str | None
    percentage: int | None
    worker: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon says of itself.

    Attributes:
        ladder: rung of the daemon's stop, 0 while it runs.
        containment: how a kill finds what a worker's jobs started; only a cgroup holds whatever they do.
        accounting: how the memory and CPU time of runs are found, and how their memory_limit_mb is held: by the kernel
            in a cgroup, or by looking at the process tree several times a second. `accounting_note`: why so.
        publishing: pid of the process that writes result files, null while there is none.
        generation: of the workers that take attempts, one more with each reload that was tried. Workers of earlier ones
            finish what they have.
        running: at most `running_limit`, oldest first.
    """

    version: str
    pid: int
    state: DaemonState
    ladder: int
    uptime_seconds: float
    root: str
    jobs: int
    generation: int
    code_version: str | None
    containment: ContainmentKind
    accounting: AccountingKind
    accounting_note: str
    publishing: int | None
    runs: dict[RunState, int]
    workers: list[WorkerStatus]
    running: list[RunningStatus]
    problems: list[str] = []
