"""What `craft-easy-job run` shows while a job runs, on stderr: lines, and a progress bar on a terminal."""

import os
import re
import sys
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from craft_easy_jobs.model import LogEntry

if TYPE_CHECKING:
    from rich.progress import Progress

# C0 without tab and line feed, DEL, C1, and the marks that turn the direction of text: no job steers the terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """The text without control characters; lines after the first are indented."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n")).replace("\n", "\n    ")


class Lines:
    """One line per log entry: local time, level, percentage, message."""

    def show(self, entry: LogEntry) -> None:
        """Show an entry."""
        with suppress(OSError):
            self._show(entry)

    def close(self, summary: str) -> None:
        """Say how the run ended; nothing is shown after it."""
        with suppress(OSError):
            self._write(clean(summary))

    def _show(self, entry: LogEntry) -> None:
        self._write(self._line(entry))

    def _write(self, line: str) -> None:
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except OSError:
            _leave_stderr()

    def _line(self, entry: LogEntry) -> str:
        moment = datetime.fromisoformat(entry["timestamp"]).astimezone()
        share = "" if entry["percentage"] is None else f"{entry['percentage']:3d}% "
        return f"{moment:%H:%M:%S} {entry['level']:<8} {share}{clean(entry['message'])}"


class Bar(Lines):
    """Progress entries move a bar at the bottom, from the first one on; all others are lines above it."""

    _progress: "Progress | None" = None

    def close(self, summary: str) -> None:
        if self._progress is not None:
            with suppress(OSError):
                self._progress.stop()
        super().close(summary)

    def _show(self, entry: LogEntry) -> None:
        if entry["level"] == "progress":
            self._move(entry)
        elif self._progress is None:
            super()._show(entry)
        else:
            self._progress.console.print(self._line(entry), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _move(self, entry: LogEntry) -> None:
        if self._progress is None:
            self._progress = self._start()
        message = clean(entry["message"]).replace("\n", " ")
        [task] = self._progress.task_ids
        self._progress.update(task, description=message, completed=entry["percentage"])

    def _start(self) -> "Progress":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        # Redirecting would take the job's prints away from the real stdout that they were sent to.
        progress = Progress(*columns, console=Console(stderr=True), redirect_stdout=False, redirect_stderr=False)
        progress.add_task("", total=100)
        progress.start()
        return progress


def display(*, plain: bool) -> Lines:
    """A bar on a terminal that can show one, lines elsewhere and when `plain`."""
    able = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return Bar() if able and not plain else Lines()


def _leave_stderr() -> None:
    """A reader that went away does not fail the job, nor Python's last flush of what it did not take the exit code."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
