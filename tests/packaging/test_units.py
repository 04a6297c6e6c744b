"""The unit files and the settings that are shipped: systemd has nothing to say, and they say what the daemon means."""

import json
import re
import shutil
import subprocess
import textwrap
import tomllib
from pathlib import Path

import msgspec
import pytest

from craft_easy_jobd.daemon_cli import setting_docs
from craft_easy_jobd.loading_settings import load_settings
from craft_easy_jobd.settings import Settings

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = (UNITS / "craft-easy-jobd.service").read_text()
# Keys of these are unknown to 252, on purpose.
FOR_LATER_SYSTEMD = {"systemd-254.conf", "notify-reload.conf"}
DROP_INS = sorted(path.name for path in (UNITS / "drop-ins").iterdir())
FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}
SET_FOR_THE_SERVICE = {"root", "spool", "allowed_groups"}

needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """All units in one folder, and the programs that they name where systemd finds them."""
    for path in [*UNITS.glob("*.s*"), *(UNITS / "examples").iterdir()]:
        if path.suffix in (".service", ".socket", ".timer"):
            text = re.sub(r"/opt/craft-easy-jobs/bin/\S+", "/bin/true", path.read_text())
            (tmp_path / path.name).write_text(text)
    return tmp_path


def add(drop_in: str, units: Path) -> None:
    folder = units / "craft-easy-jobd.service.d"
    folder.mkdir()
    shutil.copy(UNITS / "drop-ins" / drop_in, folder)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def said(verified: subprocess.CompletedProcess[str]) -> tuple[str, int]:
    # An unknown key is printed but exits 0, so the output decides.
    return verified.stdout + verified.stderr, verified.returncode


def exposure(units: Path) -> float:
    """What jobs could do to the machine, from 0 to 10."""
    answer = analyze("security", "--offline=true", "--no-pager", units / "craft-easy-jobd.service")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", answer.stdout)
    assert found, answer
    return float(found[1])


@needs_analyze
def test_systemd_has_nothing_to_say(units: Path) -> None:
    every = sorted(path for path in units.iterdir() if path.is_file())
    assert len(every) == 4
    assert said(analyze("verify", "--man=no", *every)) == ("", 0)


@needs_analyze
@pytest.mark.parametrize("drop_in", sorted({*DROP_INS} - FOR_LATER_SYSTEMD))
def test_systemd_has_nothing_to_say_about_drop_ins(drop_in: str, units: Path) -> None:
    add(drop_in, units)
    assert said(analyze("verify", "--man=no", units / "craft-easy-jobd.service")) == ("", 0)


@needs_analyze
@pytest.mark.parametrize("drop_in", sorted(FOR_LATER_SYSTEMD))
def test_drop_ins_for_later_systemd_say_what_an_older_one_does_not_know(drop_in: str, units: Path) -> None:
    version = int(analyze("--version").stdout.split()[1])
    add(drop_in, units)
    complaint, _ = said(analyze("verify", "--man=no", units / "craft-easy-jobd.service"))
    assert bool(complaint) == (version < 254)


@needs_analyze
def test_the_sandbox_is_as_tight_as_is_said(units: Path) -> None:
    assert exposure(units) <= 1.6
    add("strict.conf", units)
    assert exposure(units) <= 1.1


def test_the_unit_is_one_that_old_systemd_understands() -> None:
    # 252 takes notify-reload for a mistake and falls back to Type=simple.
    assert "\nType=notify\n" in SERVICE
    assert "\nKillMode=mixed\n" in SERVICE
    later = re.findall(r"^(\w+)=", (UNITS / "drop-ins" / "systemd-254.conf").read_text(), re.MULTILINE)
    assert later
    assert not [key for key in later if f"\n{key}=" in SERVICE]


def test_unit_socket_and_examples_mean_the_same_socket() -> None:
    [path] = re.findall(r"CRAFT_EASY_JOBD_SOCKET=(\S+)", SERVICE)
    assert f"\nListenStream={path}\n" in (UNITS / "craft-easy-jobd.socket").read_text()
    assert f"[ ! -S {path} ]" in SERVICE


def test_exit_codes_that_a_restart_does_not_cure_are_not_hammered_by_the_socket_unit() -> None:
    [codes] = re.findall(r"^RestartPreventExitStatus=(.*)", SERVICE, re.MULTILINE)
    assert f"in {codes.replace(' ', '|')})" in SERVICE


# -- settings.toml


def entry(name: str) -> str:
    """What the file should say of a setting that is not set in it."""
    default = FIELDS[name].default
    text = "\n".join(f"# {line}" for line in textwrap.wrap(setting_docs()[name], 98))
    return text if default is None else f"{text}\n#{name} = {json.dumps(default)}"


@pytest.fixture(scope="module")
def shipped() -> str:
    return (UNITS / "settings.toml").read_text()


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_in_the_file_with_its_default(name: str, shipped: str) -> None:
    blocks = [block for block in shipped.split("\n\n") if re.search(rf"^#?{name} = ", block, re.MULTILINE)]
    assert len(blocks) == 1, f"systemd/settings.toml wants this once:\n\n{entry(name)}\n"
    assert blocks[0].startswith(entry(name).partition("\n#" + name)[0]), f"it should begin with:\n{entry(name)}"
    value = tomllib.loads(re.sub(rf"^#{name}", name, blocks[0], flags=re.MULTILINE))[name]
    if name in SET_FOR_THE_SERVICE:
        assert f"\n{name} = " in blocks[0]
        assert "\n# Default: " in blocks[0]
    else:
        assert f"\n#{name} = " in blocks[0]
        default = FIELDS[name].default
        # The number of processors is this machine's; a path without a default is the one that it would be.
        assert name == "workers" or default is None or json.dumps(value) == json.dumps(default)


def test_the_file_has_no_other_keys_and_the_order_of_the_settings(shipped: str) -> None:
    assert re.findall(r"^#?(\w+) = ", shipped, re.MULTILINE) == list(FIELDS)


def test_the_daemon_takes_the_file(tmp_path: Path, shipped: str) -> None:
    every = tmp_path / "every.toml"
    every.write_text(re.sub(r"^#(\w+ = )", r"\1", shipped, flags=re.MULTILINE))
    for path in (UNITS / "settings.toml", every):
        settings = load_settings(config=str(path), environment={}, flags={})
        assert settings.spool_dir == Path("/var/spool/craft-easy-jobd")
        assert settings.results_dir == Path("/var/lib/craft-easy-jobd/results")
