"""Request files as they lie in a folder: which are taken, whose they are, and their content."""

import errno
import os
import stat

from craft_easy_jobd.identity import Rights
from craft_easy_jobd.patience import mark
from craft_easy_jobd.settings import Settings
from craft_easy_jobs.errors import RequestError

# Read without waiting for anybody (a FIFO's writer, a terminal) and without being led elsewhere.
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnreadyError(RequestError):
    """The file is wrong as it is, but may be on its way to be right."""


def is_draft(name: str) -> bool:
    """True for the names that submitters use while they write."""
    return name.startswith(".") or name.endswith((".tmp", ".part"))


def check_file(status: os.stat_result, settings: Settings, rights: Rights) -> None:
    """Refuse by what is known without opening the file.

    Raises:
        RequestError: an UnreadyError for a second link, which `ln` and `unlink` make for a moment.
    """
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise RequestError("", f"is {_KINDS.get(kind, 'no file')}; drop a regular file")
    if status.st_size > settings.max_request_bytes:
        raise RequestError("", f"has {status.st_size} bytes; a request has at most {settings.max_request_bytes}")
    if rights.restricted:
        _check_owner(status, rights)
    if status.st_nlink > 1:
        raise UnreadyError("", f"has {status.st_nlink} hard links; drop a file that has no other name")


def _check_owner(status: os.stat_result, rights: Rights) -> None:
    owner = rights.people.person(status.st_uid)
    if not rights.may_submit(owner):
        raise RequestError("", f"belongs to {owner.name}, who may not submit; see allowed_users and allowed_groups")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise RequestError(
            "", f"may be written by others than its owner (mode {mode:o}); chmod go-w makes it theirs alone"
        )


def read_file(name: str, status: os.stat_result, folder: int) -> tuple[bytes, bool]:
    """The content, and whether it is still that of the file of which `status` was taken.

    Raises:
        UnreadyError: it may not be read.
        FileNotFoundError: it is gone, or something else has its name.
    """
    try:
        fd = os.open(name, _OPEN, dir_fd=folder)
    except PermissionError:
        raise UnreadyError("", "the daemon may not read it; make it readable for the daemon's user") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise FileNotFoundError(error.errno, error.strerror, name) from None
        raise
    try:
        data = os.read(fd, status.st_size + 1)
        return data, len(data) == status.st_size and mark(os.fstat(fd)) == mark(status)
    finally:
        os.close(fd)
