"""rejected/: each refused file beside its reason."""

import os
import time
from contextlib import suppress

import msgspec

from craft_easy_jobs.errors import RequestError
from craft_easy_jobs.model import timestamp
from craft_easy_jobs.run_ids import new_run_id

_SUFFIX = ".reason.json"
_LONGEST_NAME = 255


class Reason(msgspec.Struct, frozen=True):
    """Why a file was refused: what is wrong, with which key of the request, when it was found, who dropped it."""

    error: str
    field: str
    at: str
    uid: int


def reject(name: str, error: RequestError, uid: int, *, source: int, dropped: str, rejected: int) -> str:
    """Move `name` of the folder `source` to rejected/, under the name that it was dropped with, beside its reason.

    Names may be any bytes that a file system allows. Returns the name that it has now: another one when the first is
    taken or leaves no room for the reason's.
    """
    target = _free_name(dropped, rejected)
    reason = target + _SUFFIX
    # The reason comes first, so that no crash leaves a rejected file without one.
    _write(reason, Reason(str(error), error.field, timestamp(time.time()), uid), rejected)
    try:
        os.rename(name, target, src_dir_fd=source, dst_dir_fd=rejected)
    except OSError:
        os.unlink(reason, dir_fd=rejected)
        raise
    return target


def exists(name: str, folder: int) -> bool:
    """True for dangling links too."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _free_name(dropped: str, rejected: int) -> str:
    name = _shortened(dropped, "")
    return name if _is_free(name, rejected) else _shortened(dropped, f".{new_run_id()}")


def _is_free(name: str, rejected: int) -> bool:
    reason = name + _SUFFIX
    if exists(name, rejected):
        return False
    if not exists(reason, rejected):
        return True
    # A reason without its file is what a crash left behind, unless it is a rejected file itself.
    return len(os.fsencode(reason + _SUFFIX)) > _LONGEST_NAME or not exists(reason + _SUFFIX, rejected)


def _shortened(name: str, ending: str) -> str:
    room = _LONGEST_NAME - len(_SUFFIX) - len(ending)
    return os.fsdecode(os.fsencode(name)[:room]) + ending


def _write(name: str, reason: Reason, folder: int) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode=0o640, dir_fd=folder)
    try:
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(reason) + b"\n")
    except OSError:
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise
