"""HTTP calls over the daemon's unix socket; whatever goes wrong comes out as an error of ours."""

import contextlib
import http.client
import json
import socket
import struct
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from craft_easy_jobs.errors import ApiError, DaemonUnavailableError

# The daemon says something at least every few seconds, in a log stream too; this long a silence is a fault.
ANSWER_SECONDS = 30.0
_READ_BYTES = 256 * 1024


class ControlSocket:
    """The daemon behind a control socket; each call opens a connection of its own.

    Every call raises DaemonUnavailableError when nobody answers, or not to the end, and ApiError when it is refused.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def read(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> bytes:
        """The body of the answer; `query` leaves out what is None."""
        with self._asked(method, path, query or {}, body, timeout) as response:
            return response.read()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """As `read`, the JSON value in it."""
        try:
            return json.loads(self.read(method, path, **options))
        except json.JSONDecodeError:
            raise DaemonUnavailableError(self.path, "what answers there is no daemon of ours") from None

    def lines(self, path: str, *, query: Mapping[str, Any]) -> Iterator[bytes]:
        """The lines of a stream, as they come, without their line feeds."""
        with self._asked("GET", path, query, None, ANSWER_SECONDS) as response:
            rest = b""
            # Not its readline, which takes a stream that breaks off for one that ends.
            while part := response.read1(_READ_BYTES):
                *lines, rest = (rest + part).split(b"\n")
                yield from lines

    @contextlib.contextmanager
    def _asked(
        self, method: str, path: str, query: Mapping[str, Any], body: bytes | None, timeout: float
    ) -> Iterator[http.client.HTTPResponse]:
        with self._explained(timeout), contextlib.closing(_UnixConnection(self.path, timeout)) as connection:
            connection.request(method, _with_query(path, query), body, {"Connection": "close"})
            with connection.getresponse() as response:
                if response.status >= 400:
                    raise _refusal(response.status, response.read())
                yield response

    @contextlib.contextmanager
    def _explained(self, timeout: float) -> Iterator[None]:
        try:
            yield
        except PermissionError:
            text = f"may not use {self.path}: permission denied; ask as root, the daemon's user or its group"
            raise ApiError(403, text) from None
        except TimeoutError:
            raise DaemonUnavailableError(self.path, f"no answer within {timeout:g} s") from None
        except (http.client.HTTPException, ConnectionResetError, BrokenPipeError):
            raise DaemonUnavailableError(self.path, "it broke off in mid-answer") from None
        except OSError as error:
            raise DaemonUnavailableError(self.path, error.strerror or str(error)) from None


class _UnixConnection(http.client.HTTPConnection):
    timeout: float

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Where more clients wait than the socket holds, connect() waits as well. The kernel's timeout bounds it: with
        # Python's own, it would fail at once.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *_timeval(self.timeout)))
        try:
            self.sock.connect(self._path)
        except BlockingIOError:
            raise TimeoutError from None
        self.sock.settimeout(self.timeout)


def _timeval(seconds: float) -> tuple[int, int]:
    return int(seconds), int(seconds % 1 * 1_000_000)


def _with_query(path: str, query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urllib.parse.urlencode(given, doseq=True)}" if given else path


def _refusal(status: int, body: bytes) -> ApiError:
    try:
        problem = json.loads(body)
        return ApiError(status, problem["detail"], problem.get("field", ""))
    except (ValueError, KeyError, TypeError):
        return ApiError(status, f"the daemon answered {status}: {body[:200].decode(errors='replace')}")
