"""What passes between the service manager and us: notices go out (sd_notify), the control socket comes in.

See sd_notify(3) and sd_listen_fds(3). Without a manager nothing happens.
"""

import logging
import os
import socket

from craft_easy_jobd.errors import SettingsError

logger = logging.getLogger("craft_easy_jobd.notify")

_FIRST_FD = 3
_LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_ADVICE = "its unit needs FileDescriptorName=control and one ListenStream= with a path"


def notify(*lines: str) -> bool:
    """Send lines such as `READY=1` in one datagram; False when the manager could not take it just now.

    Never waits and never raises: nothing about a run depends on the manager.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return True
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(errors="replace"), address)
    except OSError as error:
        logger.debug("the service manager was not told %r: %s", lines, error)
        return False
    return True


def take_listener(name: str) -> socket.socket | None:
    """The listening socket of this name that the manager opened for us; None when it opened none for this process.

    Whatever it handed over stays in this process: no child inherits the descriptors or hears of them.

    Raises:
        SettingsError: sockets were handed over, and this one is not among them or is of another kind.
    """
    pid, count, names, _ = (os.environ.pop(variable, "") for variable in _LISTEN)
    if pid != str(os.getpid()) or not count.isdecimal() or count == "0":
        return None
    fds = range(_FIRST_FD, _FIRST_FD + int(count))
    for fd in fds:
        _keep_from_children(fd)
    found = [fd for fd, each in zip(fds, names.split(":"), strict=False) if each == name]
    if len(found) != 1:
        given = names or f"{count} without a name"
        raise SettingsError("LISTEN_FDNAMES", "", f"expected one socket named {name!r}, not {given}; {_ADVICE}")
    return _listener(found[0], name)


def _keep_from_children(fd: int) -> None:
    try:
        os.set_inheritable(fd, False)
    except OSError as error:
        raise SettingsError("LISTEN_FDS", "", f"file descriptor {fd} is not open: {error.strerror}") from None


def _listener(fd: int, name: str) -> socket.socket:
    # Whatever it is, Python finds out family and type; a file that is no socket is refused here.
    try:
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SettingsError("LISTEN_FDS", "", f"{name!r} is no socket: {error.strerror}; {_ADVICE}") from None
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not listens:
        sock.detach()
        raise SettingsError("LISTEN_FDS", "", f"{name!r} is no unix stream socket that listens; {_ADVICE}")
    sock.setblocking(False)
    return sock
