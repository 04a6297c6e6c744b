"""Us beside the peers: which figures stand for the same thing, and the table of them. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tests.bench.figures import aligned, number


class Measure(NamedTuple):
    """A column. `more`: more of it is better."""

    key: str
    title: str
    more: bool


MEASURES = (
    Measure("drain", "drain 1/s", True),
    Measure("end_to_end", "end to end 1/s", True),
    Measure("enqueue", "enqueue 1/s", True),
    Measure("p50", "p50 ms", False),
    Measure("p99", "p99 ms", False),
    Measure("memory", "PSS MB", False),
    Measure("sleep", "sleepers s", False),
)


class Contestant(NamedTuple):
    """One row. `values`: a median by the key of its measure; what it was not measured for is missing."""

    title: str
    ours: bool
    values: Mapping[str, float]


def contestants(medians: Mapping[str, float], peers: Mapping[str, str], sleepers: int) -> list[Contestant]:
    """All of whom there is a figure; `medians` by the key of the figure, `peers` are titles by name."""
    found = [
        Contestant(f"craft-easy-jobs ({way})", True, _known(medians, keys)) for way, keys in _our_keys(sleepers).items()
    ]
    for peer, title in peers.items():
        keys = {measure.key: f"peer.{peer}.{measure.key}" for measure in MEASURES}
        found.append(Contestant(title, False, _known(medians, keys)))
    return [each for each in found if each.values]


def _our_keys(sleepers: int) -> Mapping[str, Mapping[str, str]]:
    spool = {"drain": "spool.drain", "end_to_end": "spool.end_to_end", "memory": "memory.idle"}
    socket = {
        "drain": "socket.drain",
        "end_to_end": "socket.end_to_end",
        "enqueue": "submit.one",
        "memory": "memory.idle",
        "sleep": f"sleep.{sleepers}.wall",
    }
    for way, keys in (("spool", spool), ("socket", socket)):
        keys |= {percent: f"latency.{way}.idle.{percent}" for percent in ("p50", "p99")}
    return {"spool": spool, "socket": socket}


def _known(medians: Mapping[str, float], keys: Mapping[str, str]) -> dict[str, float]:
    return {measure: medians[key] for measure, key in keys.items() if key in medians}


def comparison(rows: Sequence[Contestant]) -> str:
    """A column a measure, and last how many times the best peer's figure our best one is."""
    head = ("", *(measure.title for measure in MEASURES))
    lines = [(row.title, *(_cell(row.values.get(measure.key)) for measure in MEASURES)) for row in rows]
    ratios = ("ours / best peer", *(_cell(ratio(rows, measure)) for measure in MEASURES))
    return aligned([head, *lines, ratios], left=(0,))


def ratio(rows: Sequence[Contestant], measure: Measure) -> float | None:
    """Our best by the best of the peers; None when either was not measured."""
    best = max if measure.more else min
    ours, theirs = (
        [row.values[measure.key] for row in rows if row.ours is side and measure.key in row.values]
        for side in (True, False)
    )
    return best(ours) / best(theirs) if ours and theirs else None


def _cell(value: float | None) -> str:
    return "" if value is None else number(value)
