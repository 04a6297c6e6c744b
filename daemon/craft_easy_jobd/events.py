"""The events of the daemon that are worth finding in a journal: `journalctl MESSAGE_ID=...`.

A record of the log carries one as `extra={"event": Event.READY, ...}`.
"""

from enum import StrEnum


class Event(StrEnum):
    """What happened."""

    READY = "ready"
    STOPPING = "stopping"
    RELOADED = "reloaded"
    RELOAD_REFUSED = "reload_refused"
    RECOVERED = "recovered"
    LEFTOVERS_KILLED = "leftovers_killed"
    UNHEALTHY = "unhealthy"
    TROUBLE = "trouble"
    TROUBLE_OVER = "trouble_over"
    DEFECT = "defect"
    REQUEST_REJECTED = "request_rejected"
    RUN_STARTED = "run_started"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_TIMED_OUT = "run_timed_out"
    RUN_GOES_ON = "run_goes_on"
    OUTCOME_REFUSED = "outcome_refused"
    WORKER_KILLED = "worker_killed"
    WORKER_LOST = "worker_lost"
    WORKER_HANGS = "worker_hangs"
    LOOP_BLOCKED = "loop_blocked"
    MEMORY_EXCEEDED = "memory_exceeded"


# For ever: catalogues, alerts and people's scripts know them.
MESSAGE_IDS = {
    Event.READY: "7667457d78ae48509acddb196234519c",
    Event.STOPPING: "6fae2a13918c4957a9a5d9bec15035a3",
    Event.RELOADED: "3128c36baccd49bab07badc54f7515de",
    Event.RELOAD_REFUSED: "b7338edd8ad34bedb381153e60752462",
    Event.RECOVERED: "29629b39997b48a69c744137480318c9",
    Event.LEFTOVERS_KILLED: "8ea1b994f4c94c17a3456c5011c36457",
    Event.UNHEALTHY: "c17e736dc7d7476c9733fc884f6902fc",
    Event.TROUBLE: "0296cb51b55a424dbea5b9c18e261155",
    Event.TROUBLE_OVER: "bd53ba1c57de41a2a2e0bf3fac588e16",
    Event.DEFECT: "beaed715d0aa4b77b196932a98190f80",
    Event.REQUEST_REJECTED: "11d3587a49e74516aae53b81b6544ed6",
    Event.RUN_STARTED: "69ed24545a3449f6997a2f480bcefbda",
    Event.RUN_COMPLETED: "ccaea06e64aa4d52b0524a8107fa718d",
    Event.RUN_FAILED: "a508d5afae164cb497105e16d827f11e",
    Event.RUN_TIMED_OUT: "e150bdebd8404c40bc633b91c4c25825",
    Event.RUN_GOES_ON: "32fda7bd8f34407e88a4e28d5b471864",
    Event.OUTCOME_REFUSED: "2e5922d916af476683b5a9347917724a",
    Event.WORKER_KILLED: "9fc78bdfe8ac41c9b70ffa45f7a12797",
    Event.WORKER_LOST: "cc9ae4d86d8d423781d64f460857857c",
    Event.WORKER_HANGS: "2e8b38ef582e4fe892635456ee831b16",
    Event.MEMORY_EXCEEDED: "917357abde874a25971fab52c7e22cb3",
    Event.LOOP_BLOCKED: "952c6ada77cb4fd9ad8792c77a040264",
}
