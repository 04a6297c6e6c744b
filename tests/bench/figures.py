"""What is measured, and how samples become a table. Pure."""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

Unit = Literal["1/s", "ms", "s", "MB", "x"]


class Figure(NamedTuple):
    """One line of the table. `limit`: the key of the figure that tells what the machine gives at most."""

    key: str
    title: str
    unit: Unit
    limit: str | None = None


class Summary(NamedTuple):
    """Samples of one figure, one a repetition. `ratio`: its median by that of its limit, None when there is none."""

    figure: Figure
    median: float
    least: float
    most: float
    ratio: float | None
    samples: Sequence[float]


def summarize(figures: Iterable[Figure], samples: Mapping[str, Sequence[float]]) -> list[Summary]:
    """The figures that have samples, in the order of `figures`."""
    medians = {key: statistics.median(values) for key, values in samples.items() if values}
    return [
        Summary(
            figure,
            medians[figure.key],
            min(samples[figure.key]),
            max(samples[figure.key]),
            medians[figure.key] / medians[figure.limit] if figure.limit in medians else None,
            samples[figure.key],
        )
        for figure in figures
        if figure.key in medians
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of 100 of them do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank) - 1, 0)]


def table(summaries: Sequence[Summary]) -> str:
    """Columns of plain text: figure, median, unit, spread, ratio to the limit."""
    return aligned([("figure", "median", "", "min–max", "of limit"), *map(_row, summaries)], left=(0, 2))


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int]) -> str:
    """Rows of as many cells each, in columns; those in `left` begin at the left, the others end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _row(summary: Summary) -> tuple[str, str, str, str, str]:
    spread = f"{number(summary.least)}–{number(summary.most)}"
    ratio = "" if summary.ratio is None else f"{summary.ratio:.2f}"
    return summary.figure.title, number(summary.median), summary.figure.unit, spread, ratio


def number(value: float) -> str:
    """Three significant digits, or all that stand before the point: 0.123, 12.3, 12,345."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
