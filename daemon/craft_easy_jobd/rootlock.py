"""One daemon per root: an flock on state/lock, held as long as the process lives."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from craft_easy_jobd.errors import RootLockedError, folder_error


@contextmanager
def root_lock(state_dir: Path) -> Iterator[None]:
    """Hold the lock.

    Raises:
        RootLockedError: another daemon has it; the text says its pid.
        FolderError: the lock cannot be written.
    """
    path = state_dir / "lock"
    with ExitStack() as undo:
        try:
            # O_CLOEXEC: a worker that inherited it would hold the lock after the daemon's death.
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            undo.callback(os.close, fd)
            _take(fd, path)
        except OSError as error:
            raise folder_error(error, f"{path}: {_explain(error)}") from None
        yield


def _take(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        raise RootLockedError(
            f"{path}: another daemon (pid {owner}) serves this root; stop it first or choose another --root"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "its disk is full, or a quota is; free some space, then start again"
    return f"{error.strerror}; it must be writable by the daemon's user, or choose another --root"
