"""The control socket: HTTP on a unix socket, for those who may.

Import it late: its HTTP server takes longer to import than all the rest of the daemon.
"""

import asyncio
import contextlib
import functools
import grp
import logging
import os
import pwd
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from craft_easy_jobd.api import BATCH_SIZE_FACTOR, HEARTBEAT_SECONDS, REQUESTED_BY, Api, refusal
from craft_easy_jobd.documents import problem
from craft_easy_jobd.errors import LedgerError, RootLockedError, SettingsError
from craft_easy_jobd.operations import Operations
from craft_easy_jobs.errors import ApiError, RequestError

logger = logging.getLogger("craft_easy_jobd.control")

# asm-generic/socket.h; Python has no name for it.
_SO_PEERGROUPS = 59
# As many as Python's getsockopt takes; of users in more groups than these 256 only the first group counts.
_GROUPS_BYTES = 1024
# Who has connected gets so long to ask, and what was asked so long to be answered. Streams are ended before; the last
# is for clients that do not read what they asked for.
_LINGER_SECONDS, _ANSWER_SECONDS, _SHUTDOWN_SECONDS = 0.25, 5.0, 0.5


class Control:
    """Serves the control API from `start` to `close`.

    Args:
        listener: a socket that listens already, from the service manager; without one, `start` makes the socket of
            the settings and `close` removes it.
        heartbeat_seconds: time between two blank lines of a log stream that has nothing to say.
    """

    def __init__(
        self,
        operations: Operations,
        *,
        listener: socket.socket | None = None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._operations = operations
        self._settings = operations.settings
        self._listener = listener
        self._groups = group_ids(self._settings.control_groups)
        self._api = Api(operations, heartbeat_seconds=heartbeat_seconds)
        app = web.Application(
            middlewares=[self._guard], client_max_size=self._settings.max_request_bytes * BATCH_SIZE_FACTOR
        )
        for route in self._api.routes:
            app.router.add_route(route.method, route.path, route.handler)
        # A packed body would be unpacked before its size is known.
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS, auto_decompress=False, handle_signals=False
        )
        app.on_response_prepare.append(self._answered)
        self._unanswered: set[int] = set()
        self._site: web.SockSite | None = None
        self._made: Path | None = None

    async def start(self) -> None:
        """Listen and answer.

        Raises:
            SettingsError: the socket cannot be made where the settings want it.
            RootLockedError: another daemon answers on it.
        """
        await self._runner.setup()
        if self._listener is None:
            self._listener = listen(self._settings.socket_path, self._groups)
            self._made = self._settings.socket_path
        # Whose request comes while the daemon is busy, or is being started again, waits instead of being refused.
        self._site = web.SockSite(self._runner, self._listener, backlog=socket.SOMAXCONN)
        await self._site.start()

    async def close(self) -> None:
        """Stop listening, answer what was asked, end streams and waits at once. Twice is harmless.

        Who has not been accepted yet is left to the next daemon, if the service manager keeps the socket.
        """
        self._api.closing = True
        self._operations.bell.ring_all()
        if self._made is not None:
            # A dead disk must not hide why the daemon ends; the next start replaces a socket that nobody serves.
            with contextlib.suppress(OSError):
                self._made.unlink()
            self._made = None
        if self._site is not None:
            await self._site.stop()
            self._site = None
            await self._hear_out()
        await self._runner.cleanup()

    async def _hear_out(self) -> None:
        """Serve those who have connected already; each answer ends its connection now."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        while True:
            # First of all a turn of the loop, in which those who were just accepted are seen.
            await asyncio.sleep(0.01)
            patience = _ANSWER_SECONDS if self._unanswered else _LINGER_SECONDS
            if not (self._runner.server and self._runner.server.connections) or clock() - begun > patience:
                return

    async def _answered(self, request: web.Request, response: web.StreamResponse) -> None:
        self._unanswered.discard(id(request))
        if self._api.closing:
            response.force_close()
            # The other headers are made already.
            response.headers["Connection"] = "close"

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse who may not; make every refusal and every failure a problem document."""
        self._unanswered.add(id(request))
        try:
            request[REQUESTED_BY] = self._authorise(request)
            return await handler(request)
        except (ApiError, RequestError) as error:
            return refusal(problem(error))
        except web.HTTPException as error:
            headers = {name: value for name, value in error.headers.items() if name == "Allow"}
            return refusal(
                problem(ApiError(error.status, f"{request.method} {request.path}: {error.reason}")), headers=headers
            )
        except LedgerError as error:
            return refusal(problem(ApiError(503, str(error))))
        except ConnectionError:
            return web.Response()  # Nobody is left to read it.
        except Exception:
            logger.exception("call failed", extra={"method": request.method, "path": request.path})
            return refusal(problem(ApiError(500, "the daemon failed to answer; its log says why")))
        finally:
            self._unanswered.discard(id(request))

    def _authorise(self, request: web.Request) -> str:
        """Who asks; refuses those who may not."""
        if request.transport is None:
            raise ConnectionResetError
        sock = request.transport.get_extra_info("socket")
        _, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()) and not self._groups & {gid, *_more_groups(sock)}:
            raise ApiError(403, f"{user_name(uid)} may not control this daemon; see the setting control_groups")
        return user_name(uid)


def listen(path: Path, groups: frozenset[int] = frozenset()) -> socket.socket:
    """Make the control socket, in the place of one that nobody serves any more.

    A file has one group only, so a socket for several groups lets everybody connect and leaves it to the check of the
    peer; else its mode is 0660.

    Raises:
        SettingsError: the place is taken by something else, or not ours to write.
        RootLockedError: another daemon answers there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _clear(path)
        before = os.umask(0o111 if len(groups) > 1 else 0o117)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        # Only where it changes something: a sandbox may forbid the call, and the folder may give its group (setgid).
        if len(groups) == 1 and path.stat().st_gid not in groups:
            os.chown(path, -1, *groups)
        sock.listen()
    except OSError as error:
        sock.close()
        raise SettingsError("control socket", str(path), f"cannot listen there: {error.strerror}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _clear(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SettingsError("control socket", str(path), "is there and no socket; move it away or set another")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except (TimeoutError, BlockingIOError):
            pass
    raise RootLockedError(f"{path}: another daemon answers on this control socket; stop it or set another socket")


def group_ids(names: Sequence[str]) -> frozenset[int]:
    """The numbers of these groups.

    Raises:
        SettingsError: there is no such group.
    """
    try:
        return frozenset(grp.getgrnam(name).gr_gid for name in names)
    except KeyError as error:
        raise SettingsError("settings", "control_groups", str(error.args[0])) from None


@functools.cache
def user_name(uid: int) -> str:
    """The user's name, or `uid:NUMBER` when nobody has the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid:{uid}"


def _more_groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return ()
    return struct.unpack(f"{len(data) // 4}I", data)
