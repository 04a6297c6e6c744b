"""sd_notify: tell systemd how the daemon is. Without systemd it does nothing."""

import logging
import os
import socket

logger = logging.getLogger("craft_easy_jobd.notify")


def notify(state: str) -> bool:
    """Send `READY=1`, `STATUS=...` and the like to $NOTIFY_SOCKET; True when it went out.

    A failure is logged and never more: nothing about a run depends on systemd.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto(state.encode(), address)
    except OSError as error:
        logger.warning("systemd was not told %r: %s", state, error)
        return False
    return True
