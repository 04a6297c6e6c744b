"""Hints that something happens in a folder."""

import asyncio
import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import inotify_simple
from inotify_simple import INotify, flags

logger = logging.getLogger("craft_easy_jobd.spool")

# CREATE because a hard link gives nothing else, ATTRIB and DELETE because it gives nothing else when it becomes the
# only one; *_SELF because the folder may be moved or made anew.
_MASK = (
    flags.CREATE
    | flags.CLOSE_WRITE
    | flags.MOVED_TO
    | flags.ATTRIB
    | flags.DELETE
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
    | flags.DONT_FOLLOW
)
_READ_BYTES = 1024 * 1024

# Left to itself it has ldconfig look for the C library: a process, and 20 ms before the first look.
inotify_simple._libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Calls `hint` on the loop when something happens in the folder at `path`, once until it is armed again.

    What happened is not said: events get lost, come late and come twice, so whoever is hinted at looks for itself.
    """

    def __init__(self, path: Path, hint: Callable[[], None]) -> None:
        self._path = path
        self._hint = hint
        self._inotify: INotify | None = None
        self._number = -1

    @contextmanager
    def open(self) -> Iterator[None]:
        """Give hints for as long as the block lasts. Without inotify there are none, which is said in the log."""
        try:
            inotify = INotify(nonblocking=True)
        except OSError as error:
            _without_hints(error)
            yield
            return
        with inotify:
            self._inotify = inotify
            try:
                yield
            finally:
                asyncio.get_running_loop().remove_reader(inotify.fileno())
                self._inotify = None

    def arm(self) -> None:
        """Give a hint of what happens from now on; call it on the loop, before each look.

        So a thousand drops wake the loop once, not a thousand times.
        """
        if self._inotify is not None:
            # Events are not parsed: a full queue of them would keep the loop for tens of milliseconds.
            with suppress(BlockingIOError):
                os.read(self._inotify.fileno(), _READ_BYTES)
            asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._on_events)

    def renew(self) -> None:
        """Watch what is at the path now; call it before each look, it costs nothing when that is what was there."""
        if self._inotify is None:
            return
        try:
            number = self._inotify.add_watch(self._path, _MASK)
        except OSError as error:
            # ENOSPC here is a limit on watches, not a full disk: not a reason to take no requests.
            _without_hints(error)
            return
        if number != self._number:
            with suppress(OSError):
                self._inotify.rm_watch(self._number)
            self._number = number

    def _on_events(self) -> None:
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
        self._hint()


def _without_hints(error: OSError) -> None:
    logger.warning("no inotify (%s): new requests are found by looking every few seconds", error.strerror)
