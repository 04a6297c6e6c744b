"""How the daemon ends when it cannot go on: by a code of sysexits, with a sentence, and without a traceback."""

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until

JOBS = ("--jobs", "tests.system.sample_jobs")
NOBODY = 65534


@pytest.fixture
def jobd(short_dir: Path) -> Iterator[Callable[..., DaemonProcess]]:
    made: list[DaemonProcess] = []

    def make(*args: str, **options: object) -> DaemonProcess:
        made.append(DaemonProcess(short_dir / "var", *args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


def ended(daemon: DaemonProcess, code: int) -> str:
    """Its last words, once it has ended so."""
    found = daemon.wait()
    assert found == code, daemon.log
    assert "Traceback" not in daemon.log, daemon.log
    assert "READY=1" not in daemon.notices or "STOPPING=1" not in daemon.notices
    last = daemon.log.splitlines()[-1]
    assert last.startswith("craft-easy-jobd: "), daemon.log
    return last


Prepare = Callable[[Path], tuple[str, ...] | None]


def no_module(folder: Path) -> tuple[str, ...]:
    return ("--jobs", "tests.no_such_module")


def module_that_raises(folder: Path) -> tuple[str, ...]:
    (folder / "bad_jobs.py").write_text("raise RuntimeError('not today')\n")
    return ("--jobs", str(folder / "bad_jobs.py"))


def wrong_file(folder: Path) -> tuple[str, ...]:
    (folder / "jobd.toml").write_text("slots = 'many'\n")
    return ("--config", str(folder / "jobd.toml"))


def no_tenants(folder: Path) -> tuple[str, ...]:
    return ("--tenants", str(folder / "tenants.toml"))


def root_below_a_file(folder: Path) -> None:
    (folder / "var").write_text("")


def results_is_a_file(folder: Path) -> None:
    (folder / "var").mkdir()
    (folder / "var" / "results").write_text("")


def incoming_is_a_file(folder: Path) -> None:
    (folder / "var" / "spool").mkdir(parents=True)
    (folder / "var" / "spool" / "incoming").write_text("")


def socket_is_a_file(folder: Path) -> None:
    (folder / "var").mkdir()
    (folder / "var" / "control.sock").write_text("")


def ledger_is_no_database(folder: Path) -> None:
    (folder / "var" / "state").mkdir(parents=True)
    (folder / "var" / "state" / "ledger.db").write_bytes(b"no database" * 1000)


def ledger_of_a_later_version(folder: Path) -> None:
    (folder / "var" / "state").mkdir(parents=True)
    with sqlite3.connect(folder / "var" / "state" / "ledger.db") as db:
        db.execute("PRAGMA user_version = 1000")
    db.close()


def lock_is_a_folder(folder: Path) -> None:
    (folder / "var" / "state" / "lock").mkdir(parents=True)


@pytest.mark.parametrize(
    ("prepare", "code", "words"),
    [
        (no_module, 78, "tests.no_such_module"),
        (module_that_raises, 78, "RuntimeError: not today"),
        (wrong_file, 78, "slots"),
        (no_tenants, 78, "tenants.toml"),
        (root_below_a_file, 73, "var"),
        (results_is_a_file, 73, "results"),
        (incoming_is_a_file, 73, "incoming"),
        (lock_is_a_folder, 73, "lock"),
        (socket_is_a_file, 78, "control.sock"),
        (ledger_is_no_database, 74, "ledger.db"),
        (ledger_of_a_later_version, 74, "ledger.db"),
    ],
)
def test_what_it_cannot_start_with(
    jobd: Callable[..., DaemonProcess], short_dir: Path, prepare: Prepare, code: int, words: str
) -> None:
    daemon = jobd(*(prepare(short_dir) or JOBS))
    daemon.launch()
    assert words in ended(daemon, code)


def test_wrong_usage(jobd: Callable[..., DaemonProcess]) -> None:
    daemon = jobd("--slotz", "5")
    daemon.launch()
    assert daemon.wait() == 2
    assert daemon.log.splitlines()[-1].startswith("Error: No such option")


def test_another_daemon_on_the_root(jobd: Callable[..., DaemonProcess]) -> None:
    first, second = jobd(*JOBS), jobd(*JOBS)
    first.start()
    second.launch()
    assert f"another daemon (pid {first.pid}) serves this root" in ended(second, 75)
    assert first.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_is_not_its_own(jobd: Callable[..., DaemonProcess], short_dir: Path) -> None:
    short_dir.chmod(0o755)
    (short_dir / "var").mkdir(mode=0o755)
    become = ("setpriv", "--reuid", str(NOBODY), "--clear-groups", "--")
    daemon = jobd(*JOBS, prefix=become)
    daemon.launch()
    assert "Permission denied" in ended(daemon, 77)


def test_a_ledger_that_breaks_while_it_serves(jobd: Callable[..., DaemonProcess]) -> None:
    daemon = jobd(*JOBS).start()
    for _ in range(20):
        daemon.drop({"job": "sleep-1"})
    wait_until(lambda: len(daemon.status()["running"]) == 20)
    for name in ("ledger.db", "ledger.db-wal"):
        path = daemon.root / "state" / name
        path.write_bytes(b"?" * path.stat().st_size)
    # Its runs end all the same, and nothing that they bring can be written.
    assert "ledger.db" in ended(daemon, 74)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_no_failure(jobd: Callable[..., DaemonProcess], number: signal.Signals) -> None:
    daemon = jobd(*JOBS).start()
    daemon.drop({"job": "polite"})
    wait_until(lambda: daemon.status()["running"])
    daemon.signal(number)
    assert daemon.wait() == 0
    assert "Traceback" not in daemon.log
