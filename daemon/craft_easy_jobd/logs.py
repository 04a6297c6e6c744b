"""The daemon's own log: to the journal where stderr is the journal, else to stderr, by a thread of its own."""

import logging
import logging.handlers
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from craft_easy_jobd.journal import JOURNAL_SOCKET, JournalHandler, is_journal
from craft_easy_jobd.log_lines import priority, text_line, text_of

Form: TypeAlias = Literal["auto", "json", "text"]

_QUEUED_RECORDS = 10_000
# What is queued at the end is written within this time, or not at all: nobody reads a stderr that takes so long.
_END_SECONDS = 2.0


class TextFormatter(logging.Formatter):
    """One line a record, see `text_line`."""

    def format(self, record: logging.LogRecord) -> str:
        return text_line(record)


class _StreamFormatter(logging.Formatter):
    """As the journal takes it from stderr: each line with its priority; time and level are its own."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(f"<{priority(record)}>{line}" for line in text_of(record).split("\n"))


class _Stderr:
    """Writes without a buffer, whose lock a stuck write would hold against the end of the process."""

    def write(self, text: str) -> None:
        data = memoryview(text.encode(errors="backslashreplace"))
        while data:
            data = data[os.write(2, data) :]

    def flush(self) -> None:
        """All is written at once."""


class _StderrHandler(logging.StreamHandler[_Stderr]):
    def __init__(self) -> None:
        super().__init__(_Stderr())

    def createLock(self) -> None:  # noqa: N802  # the library's name
        # One thread uses it, and the end of the process must not wait for that thread.
        self.lock = None


class _Listener(logging.handlers.QueueListener):
    def enqueue_sentinel(self) -> None:
        # The stock version raises where the queue is full.
        self.queue.put(self._sentinel)  # type: ignore[attr-defined]

    def end(self) -> None:
        """Stop when all is written, or without that after a while; its thread ends with the process then."""
        stopping = threading.Thread(target=self.stop, name="end of the log", daemon=True)
        stopping.start()
        stopping.join(_END_SECONDS)


class _BoundedQueueHandler(logging.handlers.QueueHandler):
    """Never blocks and never fills the memory when stderr is stuck: records over the limit are counted instead."""

    def __init__(self, records: "queue.Queue[logging.LogRecord]") -> None:
        super().__init__(records)
        self._left_out = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # The stock version formats here and drops exc_info; in one process the record can go as it is.
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self._left_out:
                self.queue.put_nowait(_note(self._left_out))
                self._left_out = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._left_out += 1


def _note(left_out: int) -> logging.LogRecord:
    made = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "the log was too slow", (), None)
    made.left_out = left_out
    return made


def set_level(level: str) -> None:
    """Log what has at least this level, from now on."""
    logging.getLogger().setLevel(level.upper())


@contextmanager
def logging_on(level: str, form: Form, *, journal: str = JOURNAL_SOCKET) -> Iterator[None]:
    """Log through a queue until the block ends; what is queued then is still written.

    Args:
        journal: the journal's socket.
    """
    stream = _StderrHandler()
    sink: logging.Handler = stream
    if form == "auto" and is_journal(os.environ):
        stream.setFormatter(_StreamFormatter())
        sink = JournalHandler(journal, fallback=stream)
    else:
        stream.setFormatter(_json() if form == "json" else TextFormatter())
    records: queue.Queue[logging.LogRecord] = queue.Queue(_QUEUED_RECORDS)
    handler = _BoundedQueueHandler(records)
    listener = _Listener(records, sink)
    root = logging.getLogger()
    root.addHandler(handler)
    set_level(level)
    # Its access log says nothing that ours does not.
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        listener.end()
        sink.close()


def _json() -> logging.Formatter:
    # 0.7 MB that only this form needs.
    from pythonjsonlogger.json import JsonFormatter

    # In ASCII, where nothing steers a terminal and every text can be written.
    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        timestamp=True,
        rename_fields={"levelname": "level"},
        json_ensure_ascii=True,
    )
