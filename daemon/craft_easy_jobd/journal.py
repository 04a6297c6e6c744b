"""systemd's journal in its native protocol, which takes fields beside the text (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

import array
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Mapping

from craft_easy_jobd.log_lines import journal_fields

JOURNAL_SOCKET = "/run/systemd/journal/socket"

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)


def is_journal(environment: Mapping[str, str], fd: int = 2) -> bool:
    """Whether this descriptor goes to the journal, and not to where somebody redirected it."""
    status = os.fstat(fd)
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def encode(fields: Mapping[str, str]) -> bytes:
    """An entry: `KEY=value`, and values of several lines with their length."""
    return b"".join(_field(key.encode(), value.encode(errors="backslashreplace")) for key, value in fields.items())


def _field(key: bytes, value: bytes) -> bytes:
    if b"\n" not in value:
        return b"%b=%b\n" % (key, value)
    return b"%b\n%b%b\n" % (key, len(value).to_bytes(8, "little"), value)


class JournalHandler(logging.Handler):
    """Sends records to the journal and never waits for it; what it does not take goes to `fallback`."""

    def __init__(self, path: str, fallback: logging.Handler) -> None:
        super().__init__()
        self._path = path
        self._fallback = fallback
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def createLock(self) -> None:  # noqa: N802  # the library's name
        # One thread uses it, and the end of the process must not wait for that thread.
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(encode(journal_fields(record)))
        except OSError:
            self._fallback.handle(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _send(self, entry: bytes) -> None:
        try:
            # To its name each time: a journal that was started again is another socket.
            self._socket.sendto(entry, self._path)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
            self._send_as_file(entry)

    def _send_as_file(self, entry: bytes) -> None:
        """An entry that is too large for a datagram goes as a file that nobody can change any more."""
        fd = os.memfd_create("craft-easy-jobd-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(entry)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            descriptors = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            # Not send_fds: it forgets the address before Python 3.13.
            self._socket.sendmsg([], descriptors, 0, self._path)
        finally:
            os.close(fd)
