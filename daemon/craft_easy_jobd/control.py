"""The control socket: HTTP on a unix socket, for those who may.

Import it late: its HTTP server takes longer to import than all the rest of the daemon.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from craft_easy_jobd.api import BATCH_SIZE_FACTOR, HEARTBEAT_SECONDS, REQUESTED_BY, Api, refusal
from craft_easy_jobd.documents import problem
from craft_easy_jobd.errors import LedgerError, RootLockedError, SettingsError
from craft_easy_jobd.identity import Person, peer_of
from craft_easy_jobd.operations import Operations
from craft_easy_jobd.web import Handler, web
from craft_easy_jobs.errors import ApiError, RequestError

logger = logging.getLogger("craft_easy_jobd.control")

# Who has connected gets so long to ask, and what was asked so long to be answered. Streams are ended before; the last
# is for clients that do not read what they asked for.
_LINGER_SECONDS, _ANSWER_SECONDS, _SHUTDOWN_SECONDS = 0.5, 5.0, 0.5
_LOOK_UP_SECONDS = 5.0


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
        # A name service that hangs must hold up nothing else.
        self._look_ups = ThreadPoolExecutor(1, thread_name_prefix="users")
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
            self._listener = listen(self._settings.socket_path, self._operations.rights.socket_groups)
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
        self._look_ups.shutdown(wait=False, cancel_futures=True)

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
            request[REQUESTED_BY] = await self._authorise(request)
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

    async def _authorise(self, request: web.Request) -> str:
        """Who asks; refuses those who may not."""
        person = await self._peer(request)
        rights = self._operations.rights
        if rights.may_control(person):
            return person.name
        if not rights.may_ask(person):
            raise ApiError(403, f"{person.name} may not control this daemon; see the setting control_groups")
        if run_id := request.match_info.get("run_id"):
            run = await self._operations.ledger.get(run_id)
            if run is None or run.spec.requested_by != person.name:
                raise ApiError(404, f"no such run of yours: {run_id}")
        elif (request.method, request.path) != ("POST", "/v1/runs"):
            raise ApiError(403, f"{person.name} may only submit, and see own runs; see the setting control_groups")
        return person.name

    async def _peer(self, request: web.Request) -> Person:
        """Who is connected, in the groups of the process and in those of the group database."""
        if request.transport is None:
            raise ConnectionResetError
        peer = peer_of(request.transport.get_extra_info("socket"))
        people = self._operations.rights.people
        person = people.known(peer.uid)
        if person is None:
            look_up = asyncio.get_running_loop().run_in_executor(self._look_ups, people.person, peer.uid)
            try:
                person = await asyncio.wait_for(look_up, _LOOK_UP_SECONDS)
            except TimeoutError:
                raise ApiError(503, f"the system's users cannot be looked up (user id {peer.uid}); ask again") from None
        return person._replace(groups=person.groups | peer.groups)


def listen(path: Path, groups: frozenset[int] | None = frozenset()) -> socket.socket:
    """Make the control socket, in the place of one that nobody serves any more.

    A file has one group only, so a socket for several groups, or for users in whatever group (None), lets everybody
    connect and leaves it to the check of the peer; else its mode is 0660.

    Raises:
        SettingsError: the place is taken by something else, or not ours to write.
        RootLockedError: another daemon answers there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _clear(path)
        before = os.umask(0o111 if groups is None or len(groups) > 1 else 0o117)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        # Only where it changes something: a sandbox may forbid the call, and the folder may give its group (setgid).
        if groups and len(groups) == 1 and path.stat().st_gid not in groups:
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
