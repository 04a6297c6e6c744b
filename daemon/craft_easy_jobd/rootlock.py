"""One daemon per root: an flock on state/lock, held as long as the process lives."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from craft_easy_jobd.errors import RootLockedError


@contextmanager
def root_lock(state_dir: Path) -> Iterator[None]:
    """Hold the lock.

    Raises:
        RootLockedError: another daemon has it; the text says its pid.
        OSError: the folder cannot be written.
    """
    path = state_dir / "lock"
    # O_CLOEXEC: a worker that inherited it would hold the lock after the daemon's death.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise RootLockedError(
                f"{path}: another daemon (pid {owner}) serves this root; stop it first or choose another --root"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
