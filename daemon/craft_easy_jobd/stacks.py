"""Reads the stack that a worker wrote when it was asked: is a step of an attempt in it, and where in the job's code."""

import os.path
import re
from functools import cache
from typing import NamedTuple

from craft_easy_jobs import board

# `  File "/srv/jobs/settlement.py", line 42 in compute`, innermost first; three dots where it was cut.
_FRAME = re.compile(r'^  File "(.*)", line (\d+|\?\?\?) in (.*)$', re.MULTILINE)
_CUT = re.compile(r"^  \.\.\.$", re.MULTILINE)
_INSTALLED = re.compile(r".*/(?:site|dist)-packages/[^/]+")

# The outermost frames of other threads are of this file.
_THREAD = os.sep + "threading.py"
_MARKER = os.path.join("craft_easy_jobs", "board.py")
_OURS = os.path.dirname(board.__file__) + os.sep


class Frame(NamedTuple):
    file: str
    line: str
    function: str

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line} in {self.function}"


class Stack(NamedTuple):
    """What the loop's thread was doing.

    `in_step`: it may have been in a step of an attempt; if not, it certainly was not. `place`: where in the authors'
    code, None when it was in none.
    """

    in_step: bool
    place: str | None


def read_stack(text: str) -> Stack | None:
    """The stack in what `faulthandler` wrote; None when there is none, or that of another thread."""
    frames = [Frame(*found) for found in _FRAME.findall(text)]
    if not frames or frames[-1].file.endswith(_THREAD):
        return None
    marker = next((index for index, frame in enumerate(frames) if frame.file.endswith(_MARKER)), None)
    in_step = marker is not None or _CUT.search(text) is not None
    frame = _place(frames, frames[:marker] if in_step else [])
    return Stack(in_step, None if frame is None else str(frame))


def _place(frames: list[Frame], step: list[Frame]) -> Frame | None:
    """The innermost frame of the authors' own code; if that is installed like a library, of the job's package."""
    own = [frame for frame in frames if not _is_library(frame.file)]
    return next(iter(own or _of_the_same_package(step) or step), None)


def _of_the_same_package(step: list[Frame]) -> list[Frame]:
    homes = (_INSTALLED.match(frame.file) for frame in reversed(step) if not frame.file.startswith(_OURS))
    home = next((home[0] for home in homes if home), None)
    return [] if home is None else [frame for frame in step if frame.file.startswith(home)]


def _is_library(file: str) -> bool:
    return file.startswith(("<", _OURS, *_standard_library())) or _INSTALLED.match(file) is not None


@cache
def _standard_library() -> tuple[str, ...]:
    # Late: most daemons never see a loop that is blocked.
    import sysconfig

    return tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
