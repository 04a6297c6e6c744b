"""The states of a run and how it may move between them. Imports nothing of ours."""

from enum import StrEnum


class RunState(StrEnum):
    """Where a run stands. An open `reason` beside it says why."""

    SCHEDULED = "scheduled"
    """Its time has not come."""
    HELD = "held"
    """An operator or a policy keeps it back."""
    QUEUED = "queued"
    """May start as soon as a slot is free."""
    RUNNING = "running"
    """An attempt is under way."""
    STOPPING = "stopping"
    """An attempt is under way and was asked to stop."""
    RETRYING = "retrying"
    """Between two attempts, waiting for its delay."""
    COMPLETED = "completed"
    """Ended well; final."""
    FAILED = "failed"
    """Ended badly; final unless an operator retries it."""


_S = RunState

TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    _S.SCHEDULED: frozenset({_S.QUEUED, _S.HELD, _S.FAILED}),
    _S.HELD: frozenset({_S.SCHEDULED, _S.QUEUED, _S.FAILED}),
    _S.QUEUED: frozenset({_S.RUNNING, _S.HELD, _S.FAILED}),
    _S.RUNNING: frozenset({_S.STOPPING, _S.RETRYING, _S.QUEUED, _S.COMPLETED, _S.FAILED}),
    _S.STOPPING: frozenset({_S.RETRYING, _S.QUEUED, _S.COMPLETED, _S.FAILED}),
    _S.RETRYING: frozenset({_S.QUEUED, _S.HELD, _S.FAILED}),
    _S.COMPLETED: frozenset(),
    _S.FAILED: frozenset({_S.QUEUED}),
}

WAITING = frozenset({_S.SCHEDULED, _S.HELD, _S.QUEUED, _S.RETRYING})
ACTIVE = frozenset({_S.RUNNING, _S.STOPPING})
FINAL = frozenset({_S.COMPLETED, _S.FAILED})


def sources(target: RunState) -> frozenset[RunState]:
    """The states from which a run may move to `target`."""
    return frozenset(state for state, targets in TRANSITIONS.items() if target in targets)
