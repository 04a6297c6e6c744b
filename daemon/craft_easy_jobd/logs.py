"""The daemon's own log: structured records on stderr, as JSON or text, written by a thread of its own."""

import json
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pythonjsonlogger.msgspec import MsgspecFormatter

from craft_easy_jobs.model import timestamp

_QUEUED_RECORDS = 10_000
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """One line a record: time, level, message, then the extra fields as key=value.

    Values and messages may hold job text: what could end a line or steer a terminal is escaped.
    """

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(
            f" {key}={_shown(value)}"
            for key, value in vars(record).items()
            if key not in _STANDARD and value is not None
        )
        moment = timestamp(record.created)
        line = f"{moment} {record.levelname:<7} {_printable(record.getMessage())}{facts}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _BoundedQueueHandler(logging.handlers.QueueHandler):
    """Never blocks and never fills the memory when stderr is stuck: records over the limit are dropped."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # The stock version formats here and drops exc_info; in one process the record can go as it is.
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return


def set_level(level: str) -> None:
    """Log what has at least this level, from now on."""
    logging.getLogger().setLevel(level.upper())


@contextmanager
def logging_to_stderr(level: str, form: Literal["json", "text"]) -> Iterator[None]:
    """Log through a queue until the block ends; what is queued then is still written."""
    sink = logging.StreamHandler(sys.stderr)
    sink.setFormatter(
        MsgspecFormatter("%(levelname)s %(name)s %(message)s", timestamp=True, rename_fields={"levelname": "level"})
        if form == "json"
        else TextFormatter()
    )
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
        sink.flush()


def _shown(value: object) -> str:
    text = _printable(str(value))
    return json.dumps(text) if " " in text or "=" in text or not text else text


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
