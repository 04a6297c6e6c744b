"""What becomes of a run whose worker or daemon died under it. Pure."""

from typing import Literal

from craft_easy_jobs.definition import OnInterrupt


def after_interruption(
    on_interrupt: OnInterrupt, interruptions: int, budget: int, cancel_requested: bool
) -> Literal["again", "cancelled", "interrupted"]:
    """Decide whether the run starts again or fails, and for which reason.

    Args:
        interruptions: how often the run was interrupted, this time included.
        budget: how many interruptions are forgiven; 3 lets the fourth one fail the run.
    """
    if cancel_requested:
        return "cancelled"
    if on_interrupt == "fail" or interruptions > budget:
        return "interrupted"
    return "again"
