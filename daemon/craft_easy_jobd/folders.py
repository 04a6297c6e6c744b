"""The daemon's folders and what makes files in them durable."""

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from craft_easy_jobd.errors import FolderError, LedgerError

_libc = ctypes.CDLL(None, use_errno=True)
PRIVATE = 0o750
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class SyncError(LedgerError):
    """A disk did not say that data is on it. Nobody knows what is there; only recovery at the next start can tell."""


@contextmanager
def folder(path: Path, mode: int = PRIVATE) -> Iterator[int]:
    """Open a folder for calls relative to it; it is made, with this mode, when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def require_folders(modes: Mapping[Path, int]) -> None:
    """See that folders can be used, before the first use does.

    Raises:
        FolderError: one is no folder, not ours to write, or they are not on one file system.
    """
    for path, mode in modes.items():
        try:
            with folder(path, mode):
                pass
        except OSError as error:
            raise FolderError(f"{path}: {error.strerror}; move it away or choose another place") from None
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise FolderError(f"{path}: not writable by user id {os.geteuid()}; change its owner or its mode")
    if len({path.stat().st_dev for path in modes}) > 1:
        raise FolderError(f"{', '.join(map(str, modes))}: must be on one file system, files are renamed between them")


def sync(fd: int, what: str) -> None:
    """Make a file's content, or a folder's names, durable.

    Raises:
        SyncError: except for a full disk, which is an OSError.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        _failed(error.errno, what)


def sync_all(fd: int, what: str) -> None:
    """As `sync`, for everything on the file system of fd: one call is cheaper than many."""
    if _libc.syncfs(fd) != 0:
        _failed(ctypes.get_errno(), what)


def _failed(number: int | None, what: str) -> None:
    text = os.strerror(number or 0)
    if number in _NO_ROOM:
        raise OSError(number, text, what)
    raise SyncError(f"{what}: the disk did not take it: {text}; look at the kernel's log, then start the daemon again")
