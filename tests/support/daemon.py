"""The real daemon as a process of its own, for tests and for the tour."""

import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.support.processes import carrying, children, kill_all
from tests.support.waiting import wait_until

PROJECT = Path(__file__).parents[2]
MARK = "CRAFT_EASY_TEST_DAEMON"
# unix(7): pid, uid, gid.
_UCRED = struct.Struct("iII")

# What a service manager does with a socket that it opened: it is number 3 in the process that it becomes.
_HAND_OVER = """
import os, sys
if (fd := int(sys.argv[1])) != 3:
    os.dup2(fd, 3)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="control")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Notice(NamedTuple):
    """A datagram to the service manager: when it came (monotonic seconds), from which process, its lines."""

    at: float
    pid: int
    lines: list[str]


class DaemonClient:
    """What is dropped and asked at a daemon, by its folders and its socket.

    Attributes:
        log: what it has said so far, shown when it does not answer as it should.
    """

    incoming: Path
    results_dir: Path
    socket: Path

    @property
    def log(self) -> str:
        raise NotImplementedError

    def drop(self, request: Mapping[str, Any], name: str | None = None) -> str:
        """Write a request beside the spool, rename it in, return its run_id (made when it has none)."""
        document = {"run_id": uuid.uuid4().hex, **request}
        self.drop_bytes(json.dumps(document).encode(), name or f"{document['run_id']}.json")
        return str(document["run_id"])

    def drop_bytes(self, content: bytes, name: str) -> None:
        """Drop any bytes, for requests that are wrong."""
        self.incoming.mkdir(parents=True, exist_ok=True)
        draft = self.incoming.parent / f"draft-{uuid.uuid4().hex}"
        draft.write_bytes(content)
        draft.rename(self.incoming / name)

    def result(self, run_id: str, *, within: float = 30.0) -> dict[str, Any]:
        """The run's JobResult as JSON; waits for its file."""
        path = self.results_dir / f"{run_id}.json"
        try:
            wait_until(path.exists, within=within)
        except AssertionError:
            raise AssertionError(f"no {path.name} within {within} s\n{self.log}") from None
        return dict(json.loads(path.read_bytes()))

    def results(self) -> dict[str, dict[str, Any]]:
        """All JobResults there are now, by run_id."""
        return {path.stem: json.loads(path.read_bytes()) for path in self.results_dir.glob("*.json")}

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One call of the control API: status code and JSON document."""
        connection = UnixConnection(self.socket)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        code, document = self.call("GET", "/v1/status")
        assert code == 200, document
        return dict(document)


class DaemonProcess(DaemonClient):
    """`craft-easy-jobd serve` on `root`, with further arguments; ready when `start()` returns.

    `prefix` is a command that becomes the daemon, or watches over it, such as a tracer; `listener` a socket that is
    handed over as the control socket.
    What it writes to stderr is in `log`; what it told the service manager, line by line in `notices` and by datagram
    in `datagrams`. `close()` ends it together with everything that it started, however it died.
    """

    def __init__(
        self,
        root: Path,
        *args: str,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        listener: socket.socket | None = None,
    ) -> None:
        self.root = root
        self.incoming = root / "spool" / "incoming"
        self.results_dir = root / "results"
        self.socket = root / "control.sock"
        self.args = args
        self.prefix = prefix
        self.listener = listener
        self.notices: list[str] = []
        self.datagrams: list[Notice] = []
        self.process: subprocess.Popen[bytes] | None = None
        self._scratch = Path(tempfile.mkdtemp(prefix="jobd-"))
        self._log = self._scratch / "stderr"
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notify.bind(str(self._scratch / "notify"))
        # A thread, because the kernel keeps only a few datagrams for a reader that is late.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        name, _, value = self._mark.partition("=")
        self._env = {**os.environ, **(env or {}), name: value, "NOTIFY_SOCKET": str(self._scratch / "notify")}

    # -- life
    def start(self, *, within: float = 30.0) -> "DaemonProcess":
        """Start it, again after a stop too, and wait for READY=1; fails with its log when it ends before."""
        self.launch()
        self.wait_notice("READY=1", within=within)
        return self

    def launch(self) -> None:
        """Start it and wait for nothing."""
        self.notices.clear()
        self.datagrams.clear()
        command = [*self.prefix, sys.executable, "-m", "craft_easy_jobd", "serve", "--root", str(self.root), *self.args]
        fds = []
        if self.listener is not None:
            fds = [self.listener.fileno()]
            command = [sys.executable, "-I", "-S", "-c", _HAND_OVER, str(fds[0]), *command]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                pass_fds=fds,
            )

    def wait_notice(self, notice: str, *, within: float = 30.0) -> None:
        """Wait until the daemon has sent a line to its service manager, such as STOPPING=1, since its start."""
        wait_until(lambda: notice in self.notices or self.ended, within=within)
        if notice not in self.notices:
            raise AssertionError(f"daemon: it ended without {notice}\n{self.log}")

    def _listen(self) -> None:
        while True:
            said, creds, _, _ = self._notify.recvmsg(4096, socket.CMSG_SPACE(_UCRED.size))
            if not said:
                return
            pid = next((_UCRED.unpack(data)[0] for _, kind, data in creds if kind == socket.SCM_CREDENTIALS), 0)
            lines = said.decode().splitlines()
            self.datagrams.append(Notice(time.monotonic(), pid, lines))
            self.notices += lines

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    @property
    def pid(self) -> int:
        assert self.process is not None, "the daemon was not started"
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def processes(self) -> list[psutil.Process]:
        """All that it started and that is there now, with itself, whoever the parent is."""
        return carrying(self._mark)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL the supervisor alone and wait for its end; its workers are left to notice."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, *, within: float = 30.0) -> int:
        """Its exit code; minus the number of the signal that killed it."""
        assert self.process is not None
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"daemon: still there after {within} s\n{self.log}") from None

    def stop(self, *, within: float = 30.0) -> int:
        """SIGTERM, wait, exit code."""
        self.terminate()
        return self.wait(within=within)

    def close(self) -> None:
        """Leave nothing behind: no process, no socket, no file but `root`. Twice is harmless."""
        if self.process is not None:
            left = [*children(self.pid), *carrying(self._mark)]
            if self.process.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
            kill_all({*left, *carrying(self._mark)})
        if self._listener.is_alive():
            self._notify.sendto(b"", self._notify.getsockname())
            self._listener.join()
            self._notify.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
