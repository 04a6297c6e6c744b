"""What people see of the daemon and its runs: plain text, safe for a terminal whatever jobs put into it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

Document = Mapping[str, Any]


def plain(text: object) -> str:
    """One line without control characters: no job steers a terminal or forges a line."""
    return "".join(each if each.isprintable() else " " if each.isspace() else "?" for each in str(text))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned columns; None is a dash."""
    cells = [list(heads), *([plain("-" if cell is None else cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float | None) -> str | None:
    """`1.5s`, `2m 3s`, `5h 12m`, `3d 4h`."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if hours < 24 else f"{hours // 24}d {hours % 24}h"


def size(number: int | None) -> str | None:
    """In MiB."""
    return None if number is None else f"{number / 1024**2:.0f}M"


def local(timestamp: str | None) -> str | None:
    """An RFC 3339 time as the local one."""
    return None if timestamp is None else f"{datetime.fromisoformat(timestamp).astimezone():%Y-%m-%d %H:%M:%S}"


def status_text(status: Document) -> str:
    """The whole of `status`, in blocks."""
    ladder = f" (rung {status['ladder']} of the stop ladder)" if status["ladder"] else ""
    up = duration(status["uptime_seconds"])
    head = [
        f"craft-easy-jobd {status['version']}  pid {status['pid']}  up {up}  {status['state']}{ladder}",
        f"root {status['root']}  jobs {status['jobs']}  containment {status['containment']}",
        "  ".join(f"{state} {number}" for state, number in status["runs"].items()),
        *(f"problem: {problem}" for problem in status["problems"]),
        *(_blocked(worker["name"], worker["blocked"]) for worker in status["workers"] if worker["blocked"]),
    ]
    worker_heads = ("WORKER", "PID", "ISOLATION", "STATE", "BUSY", "CPU", "RSS", "LAG")
    blocks = ["\n".join(map(plain, head)), table(worker_heads, map(_worker_row, status["workers"]))]
    if status["running"]:
        run_heads = ("RUN", "JOB", "TENANT", "STATE", "ATTEMPT", "AGE", "WORKER", "%", "PROGRESS")
        blocks.append(table(run_heads, map(_running_row, status["running"])))
    return "\n\n".join(blocks)


def _blocked(worker: str, blocked: Document) -> str:
    lasted = duration(blocked["seconds"])
    if blocked["stopped"]:
        return f"blocked: {worker} is stopped by a signal, for {lasted}"
    where = f" at {blocked['place']}" if blocked["place"] else ""
    return f"blocked: {worker} by run {blocked['run_id'] or '(not known)'}{where}, for {lasted}"


def _worker_row(worker: Document) -> tuple[object, ...]:
    return (
        worker["name"],
        worker["pid"],
        worker["isolation"],
        worker["state"],
        f"{worker['busy']}/{worker['slots']}",
        duration(worker["cpu_seconds"]),
        size(worker["rss_bytes"]),
        f"{worker['loop_lag_seconds'] * 1000:.0f}ms",
    )


def _running_row(run: Document) -> tuple[object, ...]:
    return (
        run["run_id"],
        run["job"],
        run["tenant_id"],
        run["state"],
        run["attempt"],
        duration(run["age_seconds"]),
        run["worker"],
        run["percentage"],
        run["progress"],
    )


def runs_table(runs: Iterable[Document]) -> str:
    """One line a run."""
    return table(("RUN", "JOB", "TENANT", "STATE", "REASON", "ATTEMPT", "REQUESTED", "DURATION"), map(_run_row, runs))


def _run_row(run: Document) -> tuple[object, ...]:
    return (
        run["run_id"],
        run["job"],
        run["tenant_id"],
        run["state"],
        run["reason"],
        run["attempt"],
        local(run["requested_at"]),
        duration(run["duration_seconds"]),
    )


def jobs_table(jobs: Iterable[Document]) -> str:
    """One line a job."""
    keys = ("name", "timeout_seconds", "retries", "scope", "isolation", "description")
    heads = ("JOB", "TIMEOUT", "RETRIES", "SCOPE", "ISOLATION", "DESCRIPTION")
    return table(heads, ([job[key] for key in keys] for job in jobs))


def run_text(run: Document) -> str:
    """All that is known of a run, one `key: value` a line; what is not set is left out."""
    width = max(map(len, run))
    return "\n".join(
        f"{key.ljust(width)}  {plain(_value(key, value))}"
        for key, value in run.items()
        if value not in (None, {}, False)
    )


def _value(key: str, value: Any) -> object:
    if key.endswith("_at"):
        return local(value)
    if key == "duration_seconds":
        return duration(value)
    return json.dumps(value, ensure_ascii=False) if key in ("params", "result") else value


def log_line(entry: Document) -> str:
    """Local time, level, percentage and message; further lines of the message are indented."""
    share = "" if entry["percentage"] is None else f"{entry['percentage']:3}%  "
    first, *others = entry["message"].split("\n")
    head = f"{local(entry['timestamp'])}  {entry['level']:<8}  {share}{plain(first)}"
    return "\n".join([head, *(f"    {plain(line)}" for line in others)])
