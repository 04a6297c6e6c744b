"""Params as they are given on a command line."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from craft_easy_jobs.errors import RequestError


def read_params(source: str | None, pairs: Sequence[str] = ()) -> dict[str, Any]:
    """Params from `--params` (JSON, `@file`, or `-` for stdin) and `-p key=value`, which goes over the former.

    Raises:
        RequestError: a file cannot be read, or something is no JSON object or no pair.
    """
    params = {} if source is None else _decode(source, _read(source))
    return params | dict(_pair(pair) for pair in pairs)


def _read(source: str) -> str:
    try:
        if source == "-":
            return sys.stdin.read()
        return Path(source[1:]).read_text("utf-8") if source.startswith("@") else source
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError("params", f"cannot read {source}: {error}") from None


def _decode(source: str, text: str) -> dict[str, Any]:
    place = f" in {source}" if source.startswith(("@", "-")) else ""
    try:
        params = _json(text)
    except (ValueError, RecursionError) as error:
        raise RequestError("params", f"this is not JSON{place}: {error}") from None
    if not isinstance(params, dict):
        raise RequestError(
            "params", f'give a JSON object{place}, such as {{"period": "2026-03"}}, not a {type(params).__name__}'
        )
    return params


def _pair(pair: str) -> tuple[str, Any]:
    key, separator, text = pair.partition("=")
    if not key or not separator:
        raise RequestError("params", f"-p takes key=value, not {pair!r}")
    try:
        return key, _json(text)
    except (ValueError, RecursionError):
        return key, text


def _json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")
