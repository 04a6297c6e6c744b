"""All settings of the daemon, one frozen class; flags, environment and the settings file are made from its fields."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon can be told. Paths that are None lie under `root`; times are seconds."""

    root: str = "./var"
    """Folder of spool, results, state and control socket."""
    spool: str | None = None
    """Folder of incoming/, claimed/ and rejected/ (ROOT/spool)."""
    results: str | None = None
    """Folder of the JobResult files (ROOT/results)."""
    state: str | None = None
    """Folder of the ledger and the lock (ROOT/state)."""
    socket: str | None = None
    """Control socket (ROOT/control.sock)."""

    jobs: tuple[str, ...] = ()
    """Modules that register jobs, by import name or path of a file."""
    tenants: str | None = None
    """Tenant directory: a tenants.toml, or module:name of a callable that workers call."""
    tenants_max_age: Seconds = 300.0
    """The tenant directory is read anew after this long."""
    workers: Count = max(2, os.cpu_count() or 2)
    """Shared worker processes."""
    slots: Count = 500
    """Attempts side by side in one shared worker."""
    dedicated_workers: Count = 4
    """Most workers at a time for jobs with isolation="process"."""

    credentials: str | None = None
    """Folder of the secrets that jobs read by name, a file each; what systemd gives ($CREDENTIALS_DIRECTORY) if none
    is set."""

    cgroup: str = "auto"
    """Folder of a cgroup2 tree that is the daemon's, for one cgroup a worker; auto: its own if delegated; or off."""

    drain_timeout: Seconds = 30.0
    """How long a stop of the daemon waits for runs to obey before it cuts them."""
    reload_timeout: Seconds = 30.0
    """How long a reload waits for workers with the new code before it is refused."""
    interruption_budget: Annotated[int, msgspec.Meta(ge=0)] = 3
    """How often a run is started again after its worker or the daemon died under it."""
    scan_interval: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """The spool is looked through this often even when no event says so."""
    settle_seconds: Seconds = 2.0
    """A request that is no JSON yet is left alone until it has not changed for so long."""
    max_request_bytes: Count = 1024 * 1024
    """Largest request."""
    max_log_bytes: Count = 16 * 1024 * 1024
    """Most log of one attempt, as JSON; what comes after it is dropped, and the log says so."""
    max_log_rate: Count = 1000
    """Log entries of one attempt a second, ten times as many at once; what is more is left out, and the log says so."""
    max_result_bytes: Count = 64 * 1024 * 1024
    """Largest return value, as JSON; a run that returns a larger one fails."""
    allowed_users: tuple[str, ...] = ()
    """Users, by name or number, who may submit, by file or socket, beside those who control; empty: who can write."""
    allowed_groups: tuple[str, ...] = ()
    """Groups whose members may submit; as allowed_users."""
    control_groups: tuple[str, ...] = ()
    """Groups whose members may do all on the control socket, as root and the daemon's own user may."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of the daemon's own log."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """Form of the daemon's own log: json or text on stderr; auto: fields of the journal if stderr is it, else text."""

    @property
    def spool_dir(self) -> Path:
        return Path(self.spool or Path(self.root, "spool"))

    @property
    def incoming_dir(self) -> Path:
        return self.spool_dir / "incoming"

    @property
    def claimed_dir(self) -> Path:
        return self.spool_dir / "claimed"

    @property
    def rejected_dir(self) -> Path:
        return self.spool_dir / "rejected"

    @property
    def results_dir(self) -> Path:
        return Path(self.results or Path(self.root, "results"))

    @property
    def state_dir(self) -> Path:
        return Path(self.state or Path(self.root, "state"))

    @property
    def ledger_path(self) -> Path:
        return self.state_dir / "ledger.db"

    @property
    def socket_path(self) -> Path:
        return Path(self.socket or Path(self.root, "control.sock"))


# What is opened, or made to be found by others, once: at the start.
FIXED = ("root", "spool", "results", "state", "socket", "cgroup", "log_format")
# They decide how folders and the control socket are made, among other things.
DOORS = ("allowed_users", "allowed_groups", "control_groups")


def changes(before: Settings, after: Settings, keys: Iterable[str]) -> list[str]:
    """Those of the keys that differ."""
    return [key for key in keys if getattr(before, key) != getattr(after, key)]
