"""Settings: four layers, each wrong value named by source and key."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from craft_easy_jobd.errors import EX_CONFIG, SettingsError
from craft_easy_jobd.loading_settings import LONGEST_SOCKET_PATH, flag_of, is_list, load_settings
from craft_easy_jobd.settings import DOORS, FIXED, Settings, changes


def load(
    file: Path | None = None, environment: Mapping[str, str] | None = None, **flags: str | tuple[str, ...] | None
) -> Settings:
    return load_settings(config=file and str(file), environment=environment or {}, flags=flags)


def refusal(file: Path | None = None, environment: Mapping[str, str] | None = None, **flags: str) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(file, environment, **flags)
    assert caught.value.exit_code == EX_CONFIG
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobd.toml"


def test_defaults_are_those_of_the_class() -> None:
    assert load() == Settings()


def test_each_layer_wins_over_the_one_below(file: Path) -> None:
    file.write_text('slots = 5\nworkers = 5\nroot = "from-file"\n')
    environment = {"CRAFT_EASY_JOBD_SLOTS": "6", "CRAFT_EASY_JOBD_WORKERS": "6", "HOME": "/"}
    settings = load(file, environment, slots="7", jobs=(), socket=None)
    assert (settings.slots, settings.workers, settings.root) == (7, 6, "from-file")


def test_a_file_may_hold_every_setting(file: Path) -> None:
    file.write_text(
        'root = "r"\nspool = "sp"\nresults = "re"\nstate = "st"\nsocket = "so"\njobs = ["a.b", "c.py"]\nworkers = 3\n'
        "slots = 4\ndedicated_workers = 5\ndrain_timeout = 6\ninterruption_budget = 0\nscan_interval = 0.5\n"
        "settle_seconds = 1.5\nmax_request_bytes = 10\nmax_log_bytes = 11\nmax_log_rate = 9\nmax_result_bytes = 12\n"
        'allowed_users = ["u"]\nallowed_groups = ["h"]\ncontrol_groups = ["g"]\n'
        'tenants = "t.toml"\ntenants_max_age = 1.5\n'
        'log_level = "debug"\nlog_format = "json"\ncgroup = "off"\nreload_timeout = 7\ncredentials = "se"\n'
    )
    settings = load(file)
    assert all(getattr(settings, field) != getattr(Settings(), field) for field in Settings.__struct_fields__)
    assert settings.drain_timeout == 6.0
    assert settings.jobs == ("a.b", "c.py")


def test_every_setting_has_a_variable_and_an_option() -> None:
    for field in Settings.__struct_fields__:
        default = getattr(Settings(), field)
        text = "json" if field == "log_format" else "x" if default is None or is_list(field) else str(default)
        from_environment = load(environment={f"CRAFT_EASY_JOBD_{field.upper()}": text})
        assert load(**{field: (text,) if is_list(field) else text}) == from_environment
        assert str(getattr(from_environment, field)) in (text, f"('{text}',)")


def test_lists_in_the_environment_are_parted_by_commas() -> None:
    assert load(environment={"CRAFT_EASY_JOBD_JOBS": "shop.jobs, extra.py,"}).jobs == ("shop.jobs", "extra.py")
    assert load(environment={"CRAFT_EASY_JOBD_JOBS": ""}).jobs == ()


def test_the_environment_may_name_the_file_and_the_option_wins(file: Path, tmp_path: Path) -> None:
    file.write_text("slots = 5\n")
    other = tmp_path / "other.toml"
    other.write_text("slots = 6\n")
    environment = {"CRAFT_EASY_JOBD_CONFIG": str(file)}
    assert load(environment=environment).slots == 5
    assert load(other, environment).slots == 6


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("slotz = 5", "slotz", "unknown setting; did you mean 'slots'?"),
        ("zebra = 5", "zebra", "unknown setting; known: root, spool, "),
        ('slots = "5"', "slots", "expected 'int', not '5'"),
        ("slots = 0", "slots", "expected 'int' >= 1, not 0"),
        ("slots = true", "slots", "expected 'int', not True"),
        ("drain_timeout = nan", "drain_timeout", "expected 'float' >= 0.0, not nan"),
        ("drain_timeout = inf", "drain_timeout", "expected a finite number, not inf"),
        ('jobs = "one"', "jobs", "expected 'array', not 'one'"),
        ("jobs = ['one', 2]", "jobs", "expected 'str' at [1], not ['one', 2]"),
        ("log_level = 'loud'", "log_level", "expected one of 'debug', 'info', 'warning', 'error', not 'loud'"),
        ("[xyzzy]\nworkers = 2", "xyzzy", "unknown setting; known: "),
    ],
)
def test_what_is_wrong_in_a_file_is_named(file: Path, text: str, key: str, problem: str) -> None:
    file.write_text(text)
    error = refusal(file)
    assert (error.source, error.key) == (str(file), key)
    assert str(error).startswith(f"{file}: {key}: {problem}")


def test_a_file_that_is_no_toml_is_named_with_line_and_column(file: Path) -> None:
    file.write_text("slots = 5\nworkers = = 2\n")
    assert str(refusal(file)) == f"{file}: is not TOML: Invalid value (at line 2, column 11)"


def test_a_file_that_cannot_be_read_is_named(file: Path, tmp_path: Path) -> None:
    assert str(refusal(file)) == f"{file}: cannot be read: No such file or directory"
    assert str(refusal(tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"
    file.write_bytes(b"root = '\xff'")
    assert str(refusal(file)).startswith(f"{file}: is not UTF-8 text: invalid start byte at byte 8")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("SLOTZ", "1", "unknown setting; did you mean 'CRAFT_EASY_JOBD_SLOTS'?"),
        ("slots", "1", "unknown setting; "),
        ("SLOTS", "many", "slots: expected 'int', not 'many'"),
        ("SLOTS", "", "slots: expected 'int', not ''"),
        ("SCAN_INTERVAL", "0", "scan_interval: expected 'float' > 0.0, not '0'"),
        ("DRAIN_TIMEOUT", "inf", "drain_timeout: expected a finite number, not 'inf'"),
        ("LOG_FORMAT", "xml", "log_format: expected one of 'auto', 'json', 'text', not 'xml'"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(name: str, text: str, problem: str) -> None:
    error = refusal(environment={f"CRAFT_EASY_JOBD_{name}": text})
    assert str(error).startswith(f"environment CRAFT_EASY_JOBD_{name}: {problem}")


def test_what_is_wrong_in_an_option_is_named() -> None:
    error = refusal(drain_timeout="soon")
    assert (error.source, error.key) == ("option --drain-timeout", "drain_timeout")
    assert str(error) == "option --drain-timeout: drain_timeout: expected 'float', not 'soon'"


def test_the_socket_path_must_fit_into_a_socket_address() -> None:
    longest = "/" + "s" * (LONGEST_SOCKET_PATH - 1)
    assert load(socket=longest).socket == longest
    assert refusal(socket=longest + "s").key == "socket"
    error = refusal(environment={"CRAFT_EASY_JOBD_ROOT": "/" + "å" * 60})
    assert (error.source, error.key) == ("environment CRAFT_EASY_JOBD_ROOT", "root")
    assert "134 bytes long and the system takes 107" in str(error)


def test_options_are_named_after_the_settings() -> None:
    assert flag_of("drain_timeout") == "--drain-timeout"
    assert [field.name for field in msgspec.structs.fields(Settings) if is_list(field.name)] == [
        "jobs",
        "allowed_users",
        "allowed_groups",
        "control_groups",
    ]


def test_what_a_reload_cannot_change_is_found() -> None:
    before = Settings(spool="/a", slots=1, allowed_users=("ann",))
    after = Settings(spool="/b", slots=2, allowed_users=("bob",), results="/r")
    assert changes(before, after, FIXED) == ["spool", "results"]
    assert changes(before, after, DOORS) == ["allowed_users"]
    assert changes(before, before, Settings.__struct_fields__) == []
    assert {*FIXED, *DOORS} <= set(Settings.__struct_fields__)
