"""Say in one line what an exception of somebody else's code was, and where in that code."""

import os.path
import sys
from itertools import dropwhile
from types import CodeType, TracebackType

# Frames of these stand between us and the author's code; they are never the place.
_MACHINERY = ("importlib", "_frozen_importlib", "asyncio", "craft_easy_jobs.loading", "craft_easy_jobs.attempting")

_Frames = list[tuple[str, str, int]]


def one_line(error: BaseException) -> str:
    """`ValueError: no rows`; only the type's name when the exception cannot say more."""
    kind = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except BaseException:
        # An exception with a broken __str__ is a failure to report like any other, whatever that raises.
        return kind
    return printable(f"{kind}: {text}" if text else kind)


def printable(text: str) -> str:
    """The text with lone surrogates escaped, so that UTF-8 can hold it."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def describe(error: BaseException) -> str:
    """As `one_line`, with the place in the author's code: `ValueError: no rows (settlement.py:42)`."""
    place = place_of(error.__traceback__)
    return f"{one_line(error)} ({os.path.basename(place)})" if place else one_line(error)


def place_of(traceback: TracebackType | None) -> str | None:
    """`file:line` of the innermost frame that lies in the same folder tree as the outermost one.

    The outermost frame is the job's or the module's own; what it called in other libraries is not where to look first.
    """
    frames: _Frames = []
    while traceback is not None:
        frames.append((*_home_of(traceback.tb_frame.f_globals, traceback.tb_frame.f_code), traceback.tb_lineno))
        traceback = traceback.tb_next
    return _place(frames)


def place_in_thread(ident: int) -> str | None:
    """As `place_of`, for the job that a thread is executing right now; None when it is not inside one."""
    frames: _Frames = []
    frame = sys._current_frames().get(ident)
    while frame is not None and frame.f_globals.get("__name__") != "craft_easy_jobs.attempting":
        frames.insert(0, (*_home_of(frame.f_globals, frame.f_code), frame.f_lineno))
        frame = frame.f_back
    return None if frame is None else _place(frames)


def _home_of(names: dict[str, object], code: CodeType) -> tuple[str, str]:
    return str(names.get("__name__", "")), code.co_filename


def _place(frames: _Frames) -> str | None:
    own = list(dropwhile(lambda frame: frame[0].startswith(_MACHINERY), frames))
    if not own:
        return None
    home = os.path.dirname(own[0][1])
    _, file, line = next(frame for frame in reversed(own) if _belongs(frame[1], home))
    return f"{file}:{line}"


def _belongs(file: str, home: str) -> bool:
    # A virtual environment often lies inside the project's own folder.
    return os.path.dirname(file).startswith(home) and ("site-packages" in file) == ("site-packages" in home)
