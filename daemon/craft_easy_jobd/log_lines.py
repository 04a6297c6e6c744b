"""How a record of the daemon's log becomes a line, and the fields of a journal entry. Touches nothing.

Messages are ours; what jobs, requests, file names and tenants say stands in the facts of a record (`extra`). Wherever
it stands, it can begin no line and no field, and steer no terminal.
"""

import json
import logging
from collections.abc import Iterator

from craft_easy_jobd.events import MESSAGE_IDS
from craft_easy_jobs.model import timestamp

SYSLOG_IDENTIFIER = "craft-easy-jobd"

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "event"}
_FIELDS = {
    "job": "JOB_NAME",
    "run_id": "JOB_RUN_ID",
    "parent": "JOB_PARENT_RUN_ID",
    "tenant": "TENANT_ID",
    "attempt": "ATTEMPT",
    "worker": "WORKER",
    "reason": "REASON",
}


def text_line(record: logging.LogRecord) -> str:
    """Time, level and text; only a traceback has more lines, which are indented."""
    return f"{timestamp(record.created)} {record.levelname:<7} {text_of(record)}"


def text_of(record: logging.LogRecord) -> str:
    """The message, then the facts as `key=value`, then the traceback."""
    head = " ".join([printable(record.getMessage()), *(f"{key}={_shown(value)}" for key, value in _facts(record))])
    return "\n    ".join([head, *map(printable, _traceback(record))])


def journal_fields(record: logging.LogRecord) -> dict[str, str]:
    """Names and values for the journal; what a terminal would obey is escaped in values, too."""
    facts = dict(_facts(record))
    fields = {
        "MESSAGE": text_of(record),
        "PRIORITY": str(priority(record)),
        "SYSLOG_IDENTIFIER": SYSLOG_IDENTIFIER,
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
        **{name: printable(str(facts[key])) for key, name in _FIELDS.items() if key in facts},
    }
    event = vars(record).get("event")
    return fields if event is None else {"MESSAGE_ID": MESSAGE_IDS[event], **fields}


def priority(record: logging.LogRecord) -> int:
    """The level as syslog counts it: 2 critical, 3 error, 4 warning, 6 info, 7 debug."""
    levels = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
    return next((number for level, number in levels if record.levelno >= level), 7)


def printable(text: str) -> str:
    """The text with all that ends a line or steers a terminal as an escape of Python, such as `\\n` or `\\x1b`."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _facts(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    return ((key, value) for key, value in vars(record).items() if key not in _STANDARD and value is not None)


def _shown(value: object) -> str:
    """The value so that it cannot be taken for two, or for what follows it."""
    text = str(value)
    return (
        text
        if text and text.isprintable() and not set(text) & set(" =\"'\\")
        else printable(json.dumps(text, ensure_ascii=False))
    )


def _traceback(record: logging.LogRecord) -> list[str]:
    # Not splitlines(): what else it takes for the end of a line is a character of a message, and is escaped.
    return logging.Formatter().formatException(record.exc_info).split("\n") if record.exc_info else []
