"""What tells the processes of this daemon, in all its lives, from those of others."""

import os
from pathlib import Path

# Everything that a worker starts inherits it. No setting: a daemon that a job starts must not stumble over it.
MARK = "CRAFT_EASY_JOBS_INSTANCE"

# What the service manager gave to the supervisor is for the supervisor alone; workers are told where credentials are.
_NOT_FOR_WORKERS = {
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE"),
    *("LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID"),
    *("MAINPID", "MANAGERPID", "MANAGERPIDFDID", "SYSTEMD_EXEC_PID", "INVOCATION_ID", "JOURNAL_STREAM"),
    *("MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE"),
    *("CREDENTIALS_DIRECTORY", "CRAFT_EASY_JOBD_CREDENTIALS"),
}


def instance_of(state_dir: Path) -> str:
    """The folder's device and inode."""
    facts = state_dir.stat()
    return f"{facts.st_dev:x}-{facts.st_ino:x}"


def environment_of(instance: str) -> dict[str, str]:
    """What workers get: the daemon's own environment, without what is for the daemon alone, and the mark."""
    return {name: value for name, value in os.environ.items() if name not in _NOT_FOR_WORKERS} | {MARK: instance}
