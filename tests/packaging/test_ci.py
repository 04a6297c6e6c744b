"""What CI runs ends when its commands do, whatever they leave behind."""

import subprocess
import uuid

from tests.support.daemon import PROJECT
from tests.support.processes import carrying, kill_all


def bounded(seconds: float, script: str) -> tuple[int, str]:
    """Exit code and output, which is read to its end as CI reads it."""
    # Of this call alone: the other tests' processes, side by side with these, are not ours to kill.
    mark = f"CRAFT_EASY_TEST_CI={uuid.uuid4().hex}"
    try:
        ended = subprocess.run(
            [str(PROJECT / ".ci" / "bounded"), str(seconds), "env", mark, "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        return ended.returncode, ended.stdout
    finally:
        kill_all(carrying(mark))


def test_a_process_that_is_left_holds_nobody_up() -> None:
    assert bounded(20, "sleep 1000 & setsid sleep 1000 & echo '1 passed'") == (0, "1 passed\n")


def test_the_exit_code_is_the_commands() -> None:
    assert bounded(20, "echo '1 failed'; exit 3") == (3, "1 failed\n")


def test_who_takes_too_long_is_stopped_and_named() -> None:
    code, output = bounded(3, "echo begun; setsid sleep 1000; echo ended")
    assert code == 124
    assert output.startswith("begun\n")
    assert output.endswith("did not end within 3 s and was stopped\n")
