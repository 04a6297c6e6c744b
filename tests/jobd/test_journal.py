"""The daemon's log: what becomes of a record, whatever text is in it, and a journal to send it to."""

import array
import errno
import fcntl
import json
import logging
import os
import queue
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from craft_easy_jobd.events import MESSAGE_IDS, Event
from craft_easy_jobd.journal import JournalHandler, encode, is_journal
from craft_easy_jobd.log_lines import journal_fields, text_line, text_of
from craft_easy_jobd.logs import _BoundedQueueHandler, _json
from tests.support.daemon import PROJECT, DaemonProcess
from tests.support.waiting import wait_until

EVIL = [
    "two\nlines",
    "x\nMESSAGE=forged\nPRIORITY=0\n",
    "x\r\n2026-01-01T00:00:00.000000Z ERROR   forged",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "\x9b31m \x85 \x7f",
    "line\u2028separator \u202eevil",
    "half a pair \udc80 \ud800",
    "nul\0nul",
    'a=b job=forged "quoted" \\',
    "",
]
FACTS = {
    "run_id": "r-1",
    "parent": "r",
    "job": "export",
    "tenant": "acme",
    "attempt": 2,
    "worker": "w3",
    "reason": "timed_out",
}


def record(message: str = "run failed", *args: object, level: int = logging.WARNING, **facts: object) -> Any:
    made = logging.LogRecord("craft_easy_jobd.runs", level, "/lib/endings.py", 42, message, args, None, "of_run")
    vars(made).update(facts)
    return made


def raised(error: Exception) -> Any:
    made = record("internal error", level=logging.CRITICAL, event=Event.DEFECT)
    try:
        raise error
    except Exception:
        made.exc_info = sys.exc_info()
    return made


def parse(entry: bytes) -> list[tuple[str, str]]:
    """An entry of the native protocol, as the journal reads it."""
    fields = []
    while entry:
        line, end, rest = entry.partition(b"\n")
        assert end, "an entry that does not end"
        key, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, after = rest[8 : 8 + size], rest[8 + size :]
            assert after.startswith(b"\n"), (line, rest)
            rest = after[1:]
        assert re.fullmatch(rb"[A-Z][A-Z0-9_]{0,63}", key), key
        fields.append((key.decode(), value.decode()))
        entry = rest
    return fields


# -- what becomes of a record


def test_a_line_has_time_level_message_and_facts() -> None:
    made = record("worker %s lost", "w3", event=Event.WORKER_LOST, pid=7, problem="was killed by SIGKILL", gone=None)
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00 WARNING worker w3 lost pid=7 problem="was killed by SIGKILL"',
        text_line(made),
    )
    assert text_line(record(tenant="Åsa Öberg")).endswith('tenant="Åsa Öberg"')


def test_an_entry_has_the_fields_of_its_run() -> None:
    fields = journal_fields(record(event=Event.RUN_TIMED_OUT, **FACTS, error="too slow"))
    assert fields == {
        "MESSAGE": "run failed run_id=r-1 parent=r job=export tenant=acme attempt=2 worker=w3 reason=timed_out "
        'error="too slow"',
        "MESSAGE_ID": MESSAGE_IDS[Event.RUN_TIMED_OUT],
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "craft-easy-jobd",
        "LOGGER": "craft_easy_jobd.runs",
        "CODE_FILE": "/lib/endings.py",
        "CODE_LINE": "42",
        "CODE_FUNC": "of_run",
        "JOB_RUN_ID": "r-1",
        "JOB_PARENT_RUN_ID": "r",
        "JOB_NAME": "export",
        "TENANT_ID": "acme",
        "ATTEMPT": "2",
        "WORKER": "w3",
        "REASON": "timed_out",
    }
    assert parse(encode(fields)) == list(fields.items())


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7), (5, 7)],
)
def test_levels_are_those_of_syslog(level: int, priority: int) -> None:
    assert journal_fields(record(level=level))["PRIORITY"] == str(priority)


def test_each_event_has_an_id_of_its_own() -> None:
    assert set(MESSAGE_IDS) == set(Event)
    assert len(set(MESSAGE_IDS.values())) == len(Event)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in MESSAGE_IDS.values())


def test_the_handbook_has_the_ids_as_they_are() -> None:
    told = re.findall(r"^\| `([0-9a-f]{32})` \|", (PROJECT / "systemd" / "README.md").read_text(), re.MULTILINE)
    assert len(told) > 5
    assert set(told) <= set(MESSAGE_IDS.values())


def in_message(text: str) -> Any:
    return record("refused: %s", text, **FACTS)


def in_a_fact(text: str) -> Any:
    return record(**{**FACTS, "error": text})


def in_the_names(text: str) -> Any:
    return record(**{**FACTS, "tenant": text, "job": text})


def in_an_exception(text: str) -> Any:
    return raised(ValueError(text))


WHERE = [in_message, in_a_fact, in_the_names, in_an_exception]


@pytest.mark.parametrize("text", EVIL, ids=ascii)
@pytest.mark.parametrize("where", WHERE)
def test_no_text_begins_a_line(where: Callable[[str], Any], text: str) -> None:
    made = where(text)
    first, *others = text_line(made).split("\n")
    assert all(line.isprintable() for line in [first, *others])
    assert all(line.startswith("    ") for line in others)
    assert not others or made.exc_info
    document = _json().format(made)
    assert document.isascii()
    assert document.isprintable()
    assert isinstance(json.loads(document), dict)


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_no_text_is_taken_for_two_facts(text: str) -> None:
    rest = text_line(in_a_fact(text)).partition(" error=")[2]
    if rest.startswith('"'):
        # Nothing follows the one string that it is.
        assert re.fullmatch(r'"(?:[^"\\]|\\.)*"', rest)
    else:
        assert not set(rest) & set(" =")


@pytest.mark.parametrize("text", EVIL, ids=ascii)
@pytest.mark.parametrize("where", WHERE)
def test_no_text_makes_a_field(where: Callable[[str], Any], text: str) -> None:
    plain = [key for key, _ in parse(encode(journal_fields(where("plain"))))]
    fields = parse(encode(journal_fields(where(text))))
    assert [key for key, _ in fields] == plain
    assert all(line.isprintable() for _, value in fields for line in value.split("\n"))
    assert all("\n" not in value for key, value in fields if key != "MESSAGE")


# -- a journal


class Journal:
    """Stands for systemd's: a socket that entries come to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(10)
        self._socket.bind(str(path))

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def entry(self) -> dict[str, str]:
        """The next one; of a large one its file must be one that nobody can change."""
        data, ancillary, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, _, content in ancillary:
            [fd] = array.array("i", content)
            with open(fd, "rb") as file:
                assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
                file.seek(0)
                data = file.read()
        fields = parse(data)
        assert len(dict(fields)) == len(fields)
        return dict(fields)


class Fallback(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def journal(short_dir: Path) -> Iterator[Journal]:
    made = Journal(short_dir / "journal")
    yield made
    made.close()


@pytest.fixture
def fallback() -> Fallback:
    return Fallback()


@pytest.fixture
def handler(journal: Journal, fallback: Fallback) -> Iterator[JournalHandler]:
    made = JournalHandler(str(journal.path), fallback)
    yield made
    made.close()


def test_entries_come_in_order(journal: Journal, handler: JournalHandler, fallback: Fallback) -> None:
    for number in range(3):
        handler.handle(record("number %d", number, run_id="a\nb"))
    assert [journal.entry()["MESSAGE"] for _ in range(3)] == [f'number {number} run_id="a\\nb"' for number in range(3)]
    assert not fallback.records


def test_a_traceback_is_one_entry(journal: Journal, handler: JournalHandler) -> None:
    handler.handle(raised(ValueError("first\nMESSAGE=second")))
    entry = journal.entry()
    assert entry["MESSAGE_ID"] == MESSAGE_IDS[Event.DEFECT]
    assert entry["MESSAGE"].startswith("internal error\n    Traceback (most recent call last):\n")
    assert entry["MESSAGE"].endswith("\n    ValueError: first\n    MESSAGE=second")


def test_what_no_datagram_holds_comes_as_a_file(journal: Journal, handler: JournalHandler, fallback: Fallback) -> None:
    handler.handle(record(error="x" * 4_000_000, run_id="r-1"))
    entry = journal.entry()
    assert (entry["JOB_RUN_ID"], len(entry["MESSAGE"])) == ("r-1", 4_000_000 + len("run failed error= run_id=r-1"))
    assert not fallback.records


def test_a_journal_that_is_full_or_gone_holds_up_nobody(
    journal: Journal, handler: JournalHandler, fallback: Fallback, short_dir: Path
) -> None:
    # Far more than its socket holds while nobody reads.
    for number in range(1000):
        handler.handle(record("number %d", number))
    held = 1000 - len(fallback.records)
    assert 0 < held < 1000
    assert fallback.records[0].getMessage() == f"number {held}"
    assert [journal.entry()["MESSAGE"] for _ in range(held)] == [f"number {number}" for number in range(held)]
    journal.close()
    handler.handle(record("it is gone"))
    assert fallback.records[-1].getMessage() == "it is gone"
    again = Journal(short_dir / "journal")
    handler.handle(record("it is there again"))
    assert again.entry()["MESSAGE"] == "it is there again"
    again.close()


def test_a_file_that_cannot_be_made_is_no_lost_record(
    handler: JournalHandler, fallback: Fallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", fails)
    handler.handle(record(error="x" * 4_000_000))
    assert len(fallback.records) == 1


# -- who gets it

_LOG = """
import logging, sys
from craft_easy_jobd.events import Event
from craft_easy_jobd.logs import logging_on
with logging_on("info", sys.argv[1], journal=sys.argv[2]):
    logging.getLogger("craft_easy_jobd").warning("stopping", extra={"event": Event.STOPPING, "step": "two\\nlines"})
    logging.getLogger("craft_easy_jobd").debug("not told")
"""


def log(form: str, journal: Path, stderr: Path, stream: str | None = None) -> str:
    """What another process writes to its stderr; `stream` is its JOURNAL_STREAM, that of its stderr when None."""
    with stderr.open("w") as file:
        status = os.fstat(file.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}" if stream is None else stream}
        command = [sys.executable, "-c", _LOG, form, str(journal)]
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stderr=file, check=True, timeout=30)
    return stderr.read_text()


def test_the_journal_gets_it_where_stderr_is_the_journal(journal: Journal, short_dir: Path) -> None:
    assert log("auto", journal.path, short_dir / "stderr") == ""
    entry = journal.entry()
    assert (entry["MESSAGE_ID"], entry["PRIORITY"]) == (MESSAGE_IDS[Event.STOPPING], "4")
    assert entry["CODE_FILE"] == "<string>"


def test_stderr_gets_what_the_journal_does_not_take(short_dir: Path) -> None:
    assert log("auto", short_dir / "nobody", short_dir / "stderr") == '<4>stopping step="two\\nlines"\n'


@pytest.mark.parametrize("stream", ["", "1:2", "8:", "nonsense"])
def test_stderr_gets_it_where_somebody_redirected_it(journal: Journal, short_dir: Path, stream: str) -> None:
    assert log("auto", journal.path, short_dir / "stderr", stream).endswith(
        '+00:00 WARNING stopping step="two\\nlines"\n'
    )


def test_stderr_gets_it_in_the_form_that_was_asked_for(journal: Journal, short_dir: Path) -> None:
    assert log("text", journal.path, short_dir / "stderr").endswith('+00:00 WARNING stopping step="two\\nlines"\n')
    document = json.loads(log("json", journal.path, short_dir / "stderr"))
    assert (document["level"], document["event"], document["step"]) == ("WARNING", "stopping", "two\nlines")


def test_a_journal_is_known_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        status = os.fstat(file.fileno())
        mine = f"{status.st_dev}:{status.st_ino}"
        assert is_journal({"JOURNAL_STREAM": mine}, file.fileno())
        assert not is_journal({"JOURNAL_STREAM": mine + "0"}, file.fileno())
        assert not is_journal({}, file.fileno())


def test_what_a_slow_log_leaves_out_is_counted() -> None:
    records: queue.Queue[logging.LogRecord] = queue.Queue(3)
    handler = _BoundedQueueHandler(records)
    for number in range(8):
        handler.handle(record("number %d", number))
    assert [records.get_nowait().getMessage() for _ in range(3)] == ["number 0", "number 1", "number 2"]
    for number in range(8, 10):
        handler.handle(record("number %d", number))
    told = [text_of(records.get_nowait()) for _ in range(3)]
    assert told == ["the log was too slow left_out=5", "number 8", "number 9"]


# -- the daemon


def test_a_run_is_found_from_its_start_to_its_end(daemon: Callable[..., DaemonProcess]) -> None:
    jobd = daemon("--jobs", "tests.system.sample_jobs", "--log-format", "json")

    def events(run_id: str | None = None) -> list[tuple[str, Any]]:
        documents = map(json.loads, jobd.log.splitlines())
        return [(each["event"], each.get("attempt")) for each in documents if each.get("run_id") == run_id]

    names = ["noop", "flaky", "broken", "swallow"]
    runs = {name: jobd.drop({"job": name, "tenant_id": "acme"}) for name in names}
    jobd.drop_bytes(b'{"job": "no\x1bsuch"}', "evil\nMESSAGE=x.json")
    for run_id in runs.values():
        jobd.result(run_id)
    wait_until(lambda: ("request_rejected", None) in events())
    jobd.stop()
    assert events(runs["noop"]) == [("run_completed", 1)]
    assert events(runs["broken"]) == [("run_failed", 1)]
    assert [each for each in events(runs["flaky"]) if each[0] != "run_started"] == [
        ("run_goes_on", 1),
        ("run_goes_on", 2),
        ("run_completed", 3),
    ]
    assert events(runs["swallow"]) == [("run_started", 1), ("worker_killed", 1), ("run_timed_out", 1)]
    assert [event for event, _ in events() if event in ("ready", "stopping")] == ["ready", "stopping"]


_STORM = """
import logging, sys
from craft_easy_jobd.logs import logging_on
with logging_on("info", "auto", journal=sys.argv[1]):
    for number in range(30_000):
        logging.getLogger("craft_easy_jobd").info("one of many", extra={"number": number})
"""


@pytest.mark.parametrize("is_journal", [False, True])
def test_a_stderr_that_nobody_reads_does_not_keep_the_process_from_its_end(is_journal: bool, short_dir: Path) -> None:
    reading, writing = os.pipe()
    try:
        status = os.fstat(writing)
        environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}" if is_journal else ""}
        command = [sys.executable, "-c", _STORM, str(short_dir / "nobody")]
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stderr=writing, check=True, timeout=30)
        assert os.read(reading, 4096).decode().count("one of many") > 10
    finally:
        os.close(reading)
        os.close(writing)
