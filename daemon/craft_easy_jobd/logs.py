"""The daemon's own log: to the journal where stderr is the journal, else to stderr, by a thread of its own."""

import logging
import logging.handlers
import os
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from pythonjsonlogger.json import JsonFormatter

from craft_easy_jobd.journal import JOURNAL_SOCKET, JournalHandler, is_journal
from craft_easy_jobd.log_lines import priority, text_line, text_of

Form: TypeAlias = Literal["auto", "json", "text"]

_QUEUED_RECORDS = 10_000


class TextFormatter(logging.Formatter):
    """One line a record, see `text_line`."""

    def format(self, record: logging.LogRecord) -> str:
        return text_line(record)


class _StreamFormatter(logging.Formatter):
    """As the journal takes it from stderr: each line with its priority; time and level are its own."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(f"<{priority(record)}>{line}" for line in text_of(record).split("\n"))


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
    stream = logging.StreamHandler(sys.stderr)
    sink: logging.Handler = stream
    if form == "auto" and is_journal(os.environ):
        stream.setFormatter(_StreamFormatter())
        sink = JournalHandler(journal, fallback=stream)
    else:
        stream.setFormatter(_json() if form == "json" else TextFormatter())
    records: queue.Queue[logging.LogRecord] = queue.Queue(_QUEUED_RECORDS)
    handler = _BoundedQueueHandler(records)
    listener = logging.handlers.QueueListener(records, sink)
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
        listener.stop()
        stream.flush()
        sink.close()


def _json() -> logging.Formatter:
    # In ASCII, where nothing steers a terminal and every text can be written.
    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        timestamp=True,
        rename_fields={"levelname": "level"},
        json_ensure_ascii=True,
    )
