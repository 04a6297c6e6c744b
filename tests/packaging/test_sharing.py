"""`make test` in two processes: what must not run side by side stays in one of them."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.daemon import PROJECT

QUICK = "cgroup_that_is_none or (in_force and process) or stopped_accuses_no_run or status_for_people"


def test_daemons_under_test_stay_in_one_process() -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-n", "2", "-p", "no:cacheprovider", "-k", QUICK]
    where = ["tests/system/test_blocked_loops.py", "tests/system/test_hard_kill.py", "tests/jobd/test_cli.py"]
    ended = subprocess.run([*command, *where], cwd=PROJECT, capture_output=True, text=True, check=False)
    runs = re.findall(r"^\[(gw\d)\] .* PASSED (\S+)::", ended.stdout, re.MULTILINE)
    assert len(runs) == 4, ended.stdout
    together = {process for process, file in runs if file in where[:2]}
    assert len(together) == 1
    assert together != {process for process, file in runs if file == where[2]}


SCOPES = """
class Test{0}:
    def test_it(self):
        if {0} == 2: __import__("os")._exit(1)
"""


def test_a_process_of_tests_that_dies_fails_the_run_and_does_not_hang_it(tmp_path: Path) -> None:
    (tmp_path / "test_scopes.py").write_text("".join(map(SCOPES.format, range(8))))
    options = ["-n", "2", "--dist=loadscope", "-p", "no:cacheprovider", "-p", "no:randomly", f"--rootdir={tmp_path}"]
    command = [sys.executable, "-m", "pytest", "-c", str(PROJECT / "pyproject.toml"), *options, str(tmp_path)]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1, ended.stdout
    assert "crashed while running 'test_scopes.py::Test2::test_it'" in ended.stdout
