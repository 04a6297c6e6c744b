"""How several processes share the tests (`pytest -n 2`): what must stay in one of them, one after the other."""

from xdist.scheduler import LoadScopeScheduling

# Daemons under fault, and promises in seconds: none of these may run while another loads the machine.
TOGETHER = ("tests/faults/", "tests/system/test_hard_kill.py", "tests/system/test_blocked_loops.py")
# The tests of each share what was built.
BUILT = ("tests/packaging/test_distribution.py", "tests/system/test_systemd_")


def share(test: str) -> str:
    """Tests with the same answer run in one process; the larger such a share, the earlier it begins."""
    if test.startswith(TOGETHER):
        return "daemons"
    return next((built for built in BUILT if test.startswith(built)), test)


class Sharing(LoadScopeScheduling):  # type: ignore[misc]  # without types
    """Hands a share to whoever has nothing left to do."""

    def _split_scope(self, nodeid: str) -> str:
        return share(nodeid)
