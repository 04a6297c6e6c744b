"""The two ladders, as data: how an attempt is ended, and how the daemon is. Pure."""

from enum import IntEnum, StrEnum

from craft_easy_jobd.status import DaemonState


class Rung(IntEnum):
    """How far down an attempt is."""

    NONE = 0
    ASKED = 1
    """`request_stop()`: it goes on until it returns or its deadline comes."""
    CANCELLED = 2
    """`task.cancel()`: it has `grace_seconds` to clean up."""
    KILLED = 3
    """Its worker's process group is killed."""


class Cause(StrEnum):
    """Why an attempt had to be cut; the reason of its run if that ends with it."""

    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    OUT_OF_MEMORY = "out_of_memory"
    """Its worker used more than its job may, or the machine has no more: killed at once, there is no time to ask."""


class Level(IntEnum):
    """How far down the daemon is: each SIGTERM or SIGINT is one step, and so is the end of the drain time."""

    SERVING = 0
    DRAIN = 1
    """Nothing new starts; every context has its `request_stop()`; `drain_timeout` to obey."""
    CUT = 2
    """Every attempt is cancelled, and killed after its grace."""
    NOW = 3
    """All workers are killed."""


def next_level(level: Level) -> Level:
    """One step down; there is nothing below NOW."""
    return Level(min(level + 1, Level.NOW))


def daemon_state(level: Level, *, ready: bool) -> DaemonState:
    if level is Level.SERVING:
        return "running" if ready else "starting"
    return "draining" if level is Level.DRAIN else "stopping"
