"""Errors of the daemon, under the library's root; each knows the exit code that it ends the daemon with."""

import errno
import os

from craft_easy_jobs.errors import CraftEasyJobsError

# sysexits.h: systemd shows these words, and the unit restarts on some of them only.
EX_SOFTWARE, EX_OSERR, EX_CANTCREAT, EX_IOERR, EX_TEMPFAIL, EX_NOPERM, EX_CONFIG = 70, 71, 73, 74, 75, 77, 78

_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}


class SettingsError(CraftEasyJobsError):
    """A setting is wrong.

    Attributes:
        source: where it was read: a file, `environment CRAFT_EASY_JOBD_SLOTS`, `option --slots`.
        key: the setting's name, or an empty string.
    """

    exit_code = EX_CONFIG

    def __init__(self, source: str, key: str, problem: str) -> None:
        super().__init__(f"{source}: {key}: {problem}" if key else f"{source}: {problem}")
        self.source = source
        self.key = key


class LedgerError(CraftEasyJobsError):
    """The ledger cannot be opened or written; the text names its file."""

    exit_code = EX_IOERR


class RootLockedError(CraftEasyJobsError):
    """Another daemon serves this root."""

    exit_code = EX_TEMPFAIL


class ReloadError(CraftEasyJobsError):
    """A reload is refused; what was in force stays in force."""


class JobsError(CraftEasyJobsError):
    """The workers cannot import the modules that register jobs."""

    exit_code = EX_CONFIG


class FolderError(CraftEasyJobsError):
    """A folder of the daemon cannot be made, read or written; the text names it."""

    exit_code = EX_CANTCREAT


class NotPermittedError(FolderError):
    """A folder of the daemon is not its user's; no restart cures that."""

    exit_code = EX_NOPERM


def folder_error(error: OSError, problem: str) -> FolderError:
    """The error to raise for this one."""
    return (NotPermittedError if isinstance(error, PermissionError) else FolderError)(problem)


class ShortageError(CraftEasyJobsError):
    """The system has no files, processes or memory left for the daemon."""

    exit_code = EX_OSERR


def shortage(error: BaseException) -> ShortageError | None:
    """The error to raise for this one, if it tells of a shortage."""
    if not isinstance(error, OSError) or error.errno not in _SHORTAGES:
        return None
    limits = "raise what limits the daemon (ulimit -n, ulimit -u; LimitNOFILE=, TasksMax=, MemoryMax= of the unit)"
    return ShortageError(f"the system has no more for the daemon: {os.strerror(error.errno)}; {limits}")


class InternalError(CraftEasyJobsError):
    """A defect of the daemon; the next start recovers what was under way."""

    exit_code = EX_SOFTWARE
