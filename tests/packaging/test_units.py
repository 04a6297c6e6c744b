"""The unit files load without a word from systemd."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", sorted(path.name for path in UNITS.glob("*.service")))
def test_systemd_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    # It wants the program to exist; where it is installed is another matter.
    unit = tmp_path / name
    unit.write_text((UNITS / name).read_text().replace("/opt/craft-easy-jobs/bin/craft-easy-jobd", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    # An unknown key is printed but exits 0, so the output decides.
    assert (verified.stdout + verified.stderr, verified.returncode) == ("", 0)


def test_the_unit_is_one_that_old_systemd_understands() -> None:
    unit = (UNITS / "craft-easy-jobd.service").read_text()
    # 252 takes notify-reload for a mistake and falls back to Type=simple.
    assert "\nType=notify\n" in unit
    assert "\nKillMode=mixed\n" in unit
