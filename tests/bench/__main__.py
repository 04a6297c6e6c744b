"""The command line of the benchmark: which scenarios, how often, where to; table, JSON and drawing."""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import crash, footprint, latency, limit, mixes, pipeline, rivals, waits
from tests.bench.chart import Row, chart
from tests.bench.comparison import comparison, contestants
from tests.bench.figures import Summary, summarize, table
from tests.bench.places import FileSystem, Machine, file_system, machine, place
from tests.bench.sessions import missing
from tests.bench.stage import QUICK, BenchError, Part, Sizes, Stage
from tests.support.daemon import PROJECT

REPETITIONS = 5


def all_parts(sizes: Sizes, *, peers: bool) -> dict[str, Part]:
    """All scenarios by name, in the order in which they play."""
    modules = (limit, pipeline, mixes, latency, waits, footprint, crash, *((rivals,) if peers else ()))
    return {name: part for module in modules for name, part in module.parts(sizes).items()}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # A terminated benchmark cleans up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _run(options)
    except (BenchError, AssertionError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(options: argparse.Namespace) -> int:
    sizes = _sizes(options)
    repetitions = options.reps or (1 if options.quick else REPETITIONS)
    available = all_parts(sizes, peers=options.peers)
    chosen = _chosen(available, options.only)
    if not chosen:
        print(f"bench: no such scenario; there are {', '.join(available)}", file=sys.stderr)
        return 2
    if options.peers and (lacking := missing()):
        print(f"bench: {lacking}", file=sys.stderr)
        return 2
    with place(options.dir, loop=options.loop) as folder:
        facts = _facts(sizes, repetitions, folder)
        print(*_caption(facts), f"{repetitions} repetitions, {sizes.runs:,} runs each", "", sep="\n", flush=True)
        samples = repeat(Stage(folder, sizes, {}), chosen, repetitions)
    _tell(options, facts, summarize([figure for part in chosen.values() for figure in part.figures], samples), sizes)
    return 0


def _facts(sizes: Sizes, repetitions: int, folder: Path) -> dict[str, Any]:
    """What the figures depend on, as it stands in the JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
        "machine": machine()._asdict(),
        "file_system": file_system(folder)._asdict(),
        "repetitions": repetitions,
        "runs": sizes.runs,
    }


def _caption(facts: Mapping[str, Any]) -> list[str]:
    disk = FileSystem(**facts["file_system"])
    lines = [facts["date"], str(Machine(**facts["machine"])), str(disk), facts["command"]]
    return [*lines, disk.caution] if disk.caution else lines


def _tell(options: argparse.Namespace, facts: Mapping[str, Any], summaries: Sequence[Summary], sizes: Sizes) -> None:
    """Table, JSON and drawing."""
    print(table(summaries))
    medians = {each.figure.key: each.median for each in summaries}
    rows = contestants(medians, {name: peer.title for name, peer in rivals.PEERS.items()}, sizes.peer_sleepers)
    if options.peers:
        print(f"\n{comparison(rows)}")
    _write_json(options.json, facts, summaries)
    if options.svg:
        bars = [Row(each.title, each.ours, each.values.get("drain"), each.values.get("end_to_end")) for each in rows]
        options.svg.write_text(chart(bars, _caption(facts)))


def repeat(stage: Stage, chosen: Mapping[str, Part], repetitions: int) -> dict[str, list[float]]:
    """The samples of each figure; the scenarios take turns."""
    samples: dict[str, list[float]] = {}
    for repetition in range(repetitions):
        for name, part in chosen.items():
            _say(f"{repetition + 1}/{repetitions} {name}")
            for key, value in part.scenario(stage).items():
                samples.setdefault(key, []).append(value)
    _say("")
    return samples


def _say(progress: str) -> None:
    """One line that is written over; for a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)


def _chosen(available: Mapping[str, Part], only: Sequence[str]) -> dict[str, Part]:
    """Those that are named, or whose name goes on after a named word: `latency` means `latency-spool` too."""
    return {
        name: part
        for name, part in available.items()
        if not only or any(name == word or name.startswith(f"{word}-") for word in only)
    }


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = QUICK if options.quick else Sizes()
    given = {name: getattr(options, name) for name in ("runs", "finished") if getattr(options, name) is not None}
    return replace(sizes, **given)


def _write_json(path: Path, facts: Mapping[str, Any], summaries: Sequence[Summary]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = {each.figure.key: _document(each) for each in summaries}
    path.write_text(json.dumps({**facts, "figures": figures}, indent=2) + "\n")


def _document(summary: Summary) -> dict[str, Any]:
    title, unit, limit_key = summary.figure.title, summary.figure.unit, summary.figure.limit
    numbers = {name: getattr(summary, name) for name in ("median", "least", "most", "ratio", "samples")}
    return {"title": title, "unit": unit, "limit": limit_key, **numbers}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure the daemon from outside.")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this scenario; repeatable")
    parser.add_argument("--peers", action="store_true", help="other job systems beside us")
    parser.add_argument("--reps", type=int, metavar="N", help=f"repetitions [default: {REPETITIONS}]")
    parser.add_argument("--runs", type=int, metavar="N", help=f"runs of a pipeline [default: {Sizes.runs}]")
    parser.add_argument("--finished", type=int, metavar="N", help=f"finished runs [default: {Sizes.finished}]")
    parser.add_argument("--quick", action="store_true", help="small sizes, one repetition: to see that it works")
    parser.add_argument("--dir", type=Path, default=PROJECT / "build" / "bench", help="folder to measure in")
    parser.add_argument("--loop", action="store_true", help="measure in an ext4 with a journal of its own; root only")
    parser.add_argument(
        "--json", type=Path, default=PROJECT / "build" / "bench" / "results.json", metavar="FILE", help="all samples"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="a drawing of the throughput")
    return parser


if __name__ == "__main__":
    sys.exit(main())
