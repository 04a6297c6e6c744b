"""Where a daemon's clients find it: its control socket, and the folders that serve when it does not answer."""

from pathlib import Path
from typing import NamedTuple

DEVELOPMENT_ROOT = Path("var")


class Places(NamedTuple):
    """Paths of one daemon."""

    socket: Path
    incoming: Path
    results: Path


# As systemd/ of this project installs it.
SERVICE = Places(
    Path("/run/craft-easy-jobd/control.sock"),
    Path("/var/spool/craft-easy-jobd/incoming"),
    Path("/var/lib/craft-easy-jobd/results"),
)


def find_places(root: str | None, *, development: Path = DEVELOPMENT_ROOT, service: Places = SERVICE) -> Places:
    """The places below `root`; without one, below ./var, or where no daemon has been, of this machine's service."""
    base = Path(root or development)
    below = Places(base / "control.sock", base / "spool" / "incoming", base / "results")
    # Not whether ./var is there: it is, in the folder that services start in.
    return service if root is None and service.incoming.exists() and not below.incoming.exists() else below
