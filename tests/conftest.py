"""What all tests share: short folders, the real daemon, and a watch over what a test leaves behind."""

import gc
import os
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import uvloop

from tests.faults.scale import FIGURE, SEED, TORTURE
from tests.support.daemon import DaemonProcess
from tests.support.installation import installed, made_once, packaged
from tests.support.machine import outside_machines
from tests.support.processes import carrying, children, kill_all
from tests.support.sharing import Sharing
from tests.support.waiting import wait_until

# Inherited by everything that the tests start, so that what left the process tree is found too. When several processes
# share the tests, this is run in each: one does not see what the tests of another have started.
_MARK_NAME, _MARK_VALUE = "CRAFT_EASY_TEST_SESSION", uuid.uuid4().hex
os.environ[_MARK_NAME] = _MARK_VALUE

# What the tests start must meet what users meet, not what this shell happens to set.
for _name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(_name, None)

# Nor what a shell does to Ctrl-C of commands in the background.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# libuv opens a pipe for the whole process with its first loop (uvloop); no test is to blame for it.
uvloop.new_event_loop().close()

_WATCHED_SIGNALS = [getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "QUIT", "CHLD", "PIPE", "USR1")]


class _Belongings(NamedTuple):
    processes: frozenset[psutil.Process]
    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[str, str]]

    def leaked(self, before: "_Belongings") -> list[str]:
        processes = [f"process {process}" for process in self.processes - before.processes]
        threads = [f"thread {thread}" for thread in self.threads - before.threads]
        fds = [f"fd {number} -> {target}" for number, target in self.descriptors - before.descriptors]
        more_fds = len(self.descriptors) > len(before.descriptors)
        return [*processes, *threads, *(fds if more_fds else [])]


def _belongings() -> _Belongings:
    return _Belongings(
        frozenset([*outside_machines(children(os.getpid())), *carrying(f"{_MARK_NAME}={_MARK_VALUE}")]),
        frozenset(threading.enumerate()),
        frozenset(_descriptors()),
    )


def _descriptors() -> Iterator[tuple[str, str]]:
    for number in os.listdir("/proc/self/fd"):
        try:
            yield number, os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the listing's own
            continue


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaves a process, thread, open file or signal handler; what ends by itself has 2 s for it."""
    before = _belongings()
    handlers = {number: signal.getsignal(number) for number in _WATCHED_SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in _WATCHED_SIGNALS}
    try:
        if _belongings().leaked(before):
            gc.collect()
            wait_until(lambda: not _belongings().leaked(before), within=2.0)
    except AssertionError:
        now = _belongings()
        leaked = now.leaked(before)
        kill_all(now.processes - before.processes)
        pytest.fail("left behind: " + "; ".join(leaked), pytrace=False)
    assert after == handlers, "the test changed signal handlers and did not restore them"


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path is short enough for unix sockets (107 bytes), which `tmp_path` often is not."""
    folder = Path(tempfile.mkdtemp(prefix="jobs-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """Start daemons: `daemon("--jobs", "tests.system.sample_jobs")`; all on one root unless `root=` says otherwise.

    Each is ready when the call returns and is gone, with its workers, when the test ends; its log is shown when the
    test fails.
    """
    started: list[DaemonProcess] = []

    def start(*args: str, root: Path | None = None, **options: Any) -> DaemonProcess:
        process = DaemonProcess(root or short_dir / "var", *args, **options)
        started.append(process)
        return process.start()

    yield start
    for process in started:
        log = process.log
        process.close()
        print(f"--- log of the daemon on {process.root}\n{log}")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes that share the tests."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def installation(shared_folder: Path) -> Path:
    """What `make install` puts below a DESTDIR. To be read or copied, not changed."""
    return made_once(shared_folder / "installation", installed)


@pytest.fixture(scope="session")
def package(shared_folder: Path) -> Path:
    """The file of the Debian package."""
    return made_once(shared_folder / "package", packaged)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return Sharing(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The fault suite says how it was run. Here, since the process that prints may be one that ran no tests."""
    told = (each for reports in terminalreporter.stats.values() for each in reports)
    faults = [each for each in told if isinstance(each, pytest.TestReport) and each.nodeid.startswith("tests/faults/")]
    if not faults:
        return
    terminalreporter.section("faults")
    form = "whole" if TORTURE else "short form; `make torture` runs all"
    terminalreporter.line(f"CRAFT_EASY_FAULTS_SEED={SEED} ({form})")
    # What a report of an earlier phase carries comes again with the last one.
    for name, figure in (fact for each in faults if each.when == "teardown" for fact in each.user_properties):
        if name == FIGURE:
            terminalreporter.line(str(figure))
