"""What people see of the daemon and its runs: plain text, safe for a terminal whatever jobs put into it."""

import json
from collections import Counter
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
    publishing = f"pid {status['publishing']}" if status["publishing"] else "-"
    head = [
        f"craft-easy-jobd {status['version']}  pid {status['pid']}  up {up}  {status['state']}{ladder}",
        f"root {status['root']}  jobs {status['jobs']}  containment {status['containment']}  publishing {publishing}",
        f"generation {status['generation']}  code {status['code_version'] or '-'}",
        "  ".join(f"{state} {number}" for state, number in status["runs"].items()),
        *(f"problem: {problem}" for problem in status["problems"]),
        *(_blocked(worker["name"], worker["blocked"]) for worker in status["workers"] if worker["blocked"]),
        f"accounting {status['accounting']} ({status['accounting_note']})",
    ]
    worker_heads = ("WORKER", "PID", "GENERATION", "CODE", "ISOLATION", "STATE", "BUSY", "CPU", "RSS", "LAG")
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
        worker["generation"],
        worker["code_version"],
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
    heads = ("RUN", "JOB", "TENANT", "STATE", "REASON", "ATTEMPT", "REQUESTED", "BY", "DURATION")
    return table(heads, map(_run_row, runs))


def _run_row(run: Document) -> tuple[object, ...]:
    return (
        run["run_id"],
        run["job"],
        run["tenant_id"],
        run["state"],
        run["reason"],
        run["attempt"],
        local(run["requested_at"]),
        run["requested_by"],
        duration(run["duration_seconds"]),
    )


def jobs_table(jobs: Iterable[Document]) -> str:
    """One line a job."""
    keys = ("name", "timeout_seconds", "retries", "scope", "isolation", "memory_limit_mb", "description")
    heads = ("JOB", "TIMEOUT", "RETRIES", "SCOPE", "ISOLATION", "MEMORY MB", "DESCRIPTION")
    return table(heads, ([job[key] for key in keys] for job in jobs))


def tenants_tree(tenants: Iterable[Document]) -> str:
    """One line a tenant, indented by its depth."""
    return table(("TENANT", "ACTIVE", "NAME"), map(_tenant_row, tenants))


def _tenant_row(tenant: Document) -> tuple[object, ...]:
    return ("  " * tenant["depth"] + tenant["id"], "yes" if tenant["active"] else "no", tenant["name"] or None)


def chain_text(chain: Document, states: Mapping[str, str] | None = None) -> str:
    """The chain drawn as text; `states` by job name, left out when None."""
    # Not above: `status` needs neither.
    from craft_easy_jobs.chaining import Chain, ChainStep
    from craft_easy_jobs.drawing import draw

    steps = tuple(ChainStep(**step) for step in chain["steps"])
    return draw(Chain(chain["name"], chain["description"], steps), states)


def children_of(run: Document, live: Iterable[Document]) -> list[Document]:
    """A row for each tenant of a fan-out or each step of a chain, with the keys that the rows of its result have.

    Args:
        live: its child runs, newest first; not looked at once it has a result.
    """
    name, rows = ("tenant_id", "tenants") if run["kind"] == "fan_out" else ("step", "steps")
    if run["result"]:
        return [{"name": key, **row} for key, row in run["result"][rows].items()]
    status = "skipped" if run["state"] in ("completed", "failed") else "waiting"
    not_started = {"status": status, "reason": None, "run_id": None, "duration_seconds": None}
    found: dict[str, Document] = {step["job"]: not_started for step in run["steps"] or ()}
    # A step that was run again is where its newest run is.
    found |= {child[name]: _child_row(child) for child in reversed(list(live))}
    return [{"name": key, **row} for key, row in found.items()]


def _child_row(child: Document) -> Document:
    return {"status": child["state"], **{key: child[key] for key in ("reason", "run_id", "duration_seconds")}}


def family_text(run: Document, children: Sequence[Document]) -> str:
    """A run with children: what is known of itself, how many are where, and each of them."""
    own = {key: value for key, value in run.items() if key not in ("result", "steps")}
    counts = Counter(str(child["status"]) for child in children)
    blocks = [run_text(own), "  ".join(f"{status} {number}" for status, number in sorted(counts.items()))]
    if run["steps"]:
        states = {child["name"]: _state_text(child) for child in children}
        blocks.append(chain_text({"name": run["job"], "description": "", "steps": run["steps"]}, states))
    heads = ("STEP" if run["steps"] else "TENANT", "OUTCOME", "REASON", "DURATION", "RUN")
    return "\n\n".join(filter(None, [*blocks, table(heads, map(_outcome_row, children))]))


def _state_text(child: Document) -> str:
    return f"{child['status']} ({child['reason']})" if child["reason"] else child["status"]


def _outcome_row(child: Document) -> tuple[object, ...]:
    return child["name"], child["status"], child["reason"], duration(child["duration_seconds"]), child["run_id"]


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
