"""Say in one line what an exception of somebody else's code was, and where in that code."""

import os.path
from types import TracebackType

# Frames of these stand between us and the author's code; they are never the place.
_MACHINERY = ("importlib", "_frozen_importlib", "asyncio", "craft_easy_jobs.loading", "craft_easy_jobs.runner")


def one_line(error: BaseException) -> str:
    """`ValueError: no rows`; only the type's name when the exception cannot say more."""
    kind = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:
        # An exception with a broken __str__ is a failure to report like any other.
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
    frames: list[tuple[str, int]] = []
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if frames or not module.startswith(_MACHINERY):
            frames.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    if not frames:
        return None
    home = os.path.dirname(frames[0][0])
    file, line = next(frame for frame in reversed(frames) if _belongs(frame[0], home))
    return f"{file}:{line}"


def _belongs(file: str, home: str) -> bool:
    # A virtual environment often lies inside the project's own folder.
    return os.path.dirname(file).startswith(home) and ("site-packages" in file) == ("site-packages" in home)
