"""Settings from a TOML file, the environment and the command line; the later of these three wins.

Relative paths are relative to the current directory, in the file too.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec

from craft_easy_jobd.errors import SettingsError
from craft_easy_jobd.settings import Settings

PREFIX = "CRAFT_EASY_JOBD_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
# sun_path of unix(7) is 108 bytes with its closing NUL.
LONGEST_SOCKET_PATH = 107

_TYPES: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Settings)}
_VARIABLES = {PREFIX + name.upper(): name for name in _TYPES}


class _Given(NamedTuple):
    source: str
    value: Any


def load_settings(
    *, config: str | None, environment: Mapping[str, str], flags: Mapping[str, str | tuple[str, ...] | None]
) -> Settings:
    """Put the layers together.

    Args:
        config: path of the settings file; without one, the environment may name it.
        flags: setting → text as given on the command line; None or an empty tuple when it was not given.

    Raises:
        SettingsError: names the source and the key of what is unknown or wrong.
    """
    config = config or environment.get(CONFIG_VARIABLE)
    given = {
        **(_from_file(config) if config else {}),
        **_from_environment(environment),
        **_from_flags(flags),
    }
    settings = Settings(**{key: each.value for key, each in given.items()})
    _check_socket_path(settings, given)
    return settings


def flag_of(key: str) -> str:
    """The command-line option of a setting."""
    return "--" + key.replace("_", "-")


def is_list(key: str) -> bool:
    """Whether a setting takes several values."""
    return get_origin(_TYPES[key]) is tuple


def _from_file(path: str) -> dict[str, _Given]:
    import tomllib

    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise SettingsError(path, "", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(path, "", f"is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(path, "", f"is not TOML: {error}") from None
    for key in document:
        if key not in _TYPES:
            raise SettingsError(path, key, _unknown(key, _TYPES))
    return {key: _Given(path, _convert(path, key, value)) for key, value in document.items()}


def _from_environment(environment: Mapping[str, str]) -> dict[str, _Given]:
    given = {}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE:
            continue
        source = f"environment {name}"
        if name not in _VARIABLES:
            raise SettingsError(source, "", _unknown(name, [*_VARIABLES, CONFIG_VARIABLE]))
        key = _VARIABLES[name]
        value = tuple(part.strip() for part in text.split(",") if part.strip()) if is_list(key) else text
        given[key] = _Given(source, _convert(source, key, value, text=True))
    return given


def _from_flags(flags: Mapping[str, str | tuple[str, ...] | None]) -> dict[str, _Given]:
    given = {}
    for key, value in flags.items():
        if value is not None and value != ():
            source = f"option {flag_of(key)}"
            given[key] = _Given(source, _convert(source, key, value, text=True))
    return given


def _convert(source: str, key: str, value: Any, *, text: bool = False) -> Any:
    """The value in the setting's type; `text` says that numbers come as text."""
    try:
        converted = msgspec.convert(value, _TYPES[key], strict=not text)
    except msgspec.ValidationError as error:
        raise SettingsError(source, key, f"{_expected(key, str(error))}, not {value!r}") from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise SettingsError(source, key, f"expected a finite number, not {value!r}")
    return converted


def _expected(key: str, problem: str) -> str:
    if get_origin(_TYPES[key]) is Literal:
        return "expected one of " + ", ".join(map(repr, get_args(_TYPES[key])))
    problem = re.sub(r", got `\w+`", "", problem)
    problem = re.sub(r" - at `\$(.*)`", r" at \1", problem)
    return problem.replace("`", "'").replace("Expected", "expected")


def _unknown(name: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"unknown setting; did you mean {close[0]!r}?" if close else f"unknown setting; known: {', '.join(known)}"


def _check_socket_path(settings: Settings, given: Mapping[str, _Given]) -> None:
    length = len(os.fsencode(settings.socket_path))
    if length > LONGEST_SOCKET_PATH:
        key = "socket" if settings.socket else "root"
        problem = (
            f"the control socket's path would be {length} bytes long and the system takes {LONGEST_SOCKET_PATH}; "
            f"set socket to a shorter one: {settings.socket_path}"
        )
        raise SettingsError(given[key].source, key, problem)
