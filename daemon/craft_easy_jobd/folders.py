"""The daemon's folders and what makes files in them durable."""

import ctypes
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from craft_easy_jobd.errors import FolderError, LedgerError, NotPermittedError, folder_error

_libc = ctypes.CDLL(None, use_errno=True)
PRIVATE = 0o750
# Others may pass through to what is open to them.
THROUGH = 0o751
# linux/fs.h
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_TOPDIR_FL = 0x00020000
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class SyncError(LedgerError):
    """A disk did not say that data is on it. Nobody knows what is there; only recovery at the next start can tell."""


def spread_out(path: Path) -> None:
    """Have ext4 put the folders in this one far from each other, as it does with those in the root of a file system.

    Where many files were unlinked lately, ext4 without a journal makes new ones up to 30 times slower; results are not
    to suffer from requests that are gone. Only a hint, for folders that are made from now on.
    """
    with suppress(OSError), ExitStack() as undo:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        flags = int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)), sys.byteorder)
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, (flags | _FS_TOPDIR_FL).to_bytes(8, sys.byteorder))


def make_apart(path: Path) -> None:
    """Make a folder in one that is spread out, if it is not there; for files of which there will be many.

    ext4 chooses the place by the name, so that each folder of this name would follow where others of it were removed.
    Only a hint as well: what is wrong is said when the folder is opened.
    """
    if not path.exists():
        draft = path.with_name(f".{path.name}-{os.urandom(4).hex()}")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            for left_by_a_crash in path.parent.glob(f".{path.name}-*"):
                left_by_a_crash.rmdir()
            draft.mkdir(mode=PRIVATE)
            draft.rename(path)


@contextmanager
def folder(path: Path, mode: int = PRIVATE, group: int | None = None) -> Iterator[int]:
    """Open a folder for calls relative to it; it is made, with this mode and group, when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        _make(path, mode, group)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _make(path: Path, mode: int, group: int | None) -> None:
    if mode in range(0o1000):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        return
    # Open to others: whatever the umask is, and from the moment it appears, or a crash could leave a closed one.
    path.parent.mkdir(mode=THROUGH, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{os.urandom(4).hex()}")
    draft.mkdir(mode=0o700)
    try:
        # As with the control socket: a sandbox may forbid the call.
        if group is not None and draft.stat().st_gid != group:
            os.chown(draft, -1, group)
        _open_up(draft, mode)
        draft.rename(path)
    except OSError:
        draft.rmdir()
        raise


def _open_up(path: Path, mode: int) -> None:
    try:
        path.chmod(mode)
    except PermissionError:
        # RestrictSUIDSGID= of systemd; the folder then does not hand on its group, and clients make up for it.
        path.chmod(mode & ~stat.S_ISGID)


def require_folders(modes: Mapping[Path, int], groups: Mapping[Path, int | None] | None = None) -> None:
    """See that folders can be used, before the first use does.

    Raises:
        FolderError: one is no folder, not ours to write, or they are not on one file system.
    """
    for path, mode in modes.items():
        try:
            with folder(path, mode, (groups or {}).get(path)):
                pass
        except OSError as error:
            problem = f"{path}: {error.strerror}; move it away or choose another place"
            raise folder_error(error, problem) from None
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise NotPermittedError(f"{path}: not writable by user id {os.geteuid()}; change its owner or its mode")
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
