"""The benchmark itself: that it runs and checks what it measures, and what it makes of samples. Never how fast."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from craft_easy_jobd.ledger_schema import open_reader, open_writer
from tests.bench.chart import Row, chart
from tests.bench.clients import validated
from tests.bench.comparison import MEASURES, comparison, contestants, ratio
from tests.bench.figures import Figure, number, percentile, summarize, table
from tests.bench.ledgers import multiply
from tests.bench.peers.marks import read_marks
from tests.bench.places import FileSystem, mount_of
from tests.bench.stage import BenchError
from tests.support.daemon import PROJECT

FIGURES = [Figure("spool", "spool: drain", "1/s", "limit"), Figure("limit", "limit", "1/s"), Figure("not", "not", "s")]


def bench(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", "--dir", str(folder), "--json", str(folder / "json"), *args]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=50)


# -- the whole
def test_a_quick_run_measures_and_leaves_nothing_but_its_files(short_dir: Path) -> None:
    ended = bench(short_dir, "--quick", *("--only", "limit", "--only", "spool-drain", "--only", "submit"))
    assert ended.returncode == 0, ended.stderr
    document = json.loads((short_dir / "json").read_text())
    assert {"date", "command", "machine", "file_system", "repetitions", "runs", "figures"} == document.keys()
    figures = document["figures"]
    assert {"spool.drain", "submit.one", "submit.batch", "limit.socket"} <= figures.keys()
    for figure in figures.values():
        assert len(figure["samples"]) == document["repetitions"] == 1
        assert figure["median"] > 0
    assert figures["spool.drain"]["ratio"] > 0
    assert "spool: drain" in ended.stdout
    assert [path.name for path in short_dir.iterdir()] == ["json"]


def test_a_scenario_that_there_is_not(short_dir: Path) -> None:
    ended = bench(short_dir, "--only", "no-such")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "there are limit, spool-drain, " in ended.stderr


# -- results count only when they are right
def results(root: Path, **changes: Any) -> Path:
    (root / "results").mkdir()
    for name in ("a", "b"):
        result = {"run_id": name, "status": "completed", "reason": None, "error": None, "result": 1}
        (root / "results" / f"{name}.json").write_text(json.dumps(result | (changes if name == "b" else {})))
    return root


def test_results_that_are_all_there(tmp_path: Path) -> None:
    assert validated(results(tmp_path), [{"run_id": "a"}, {"run_id": "b"}]).keys() == {"a", "b"}


@pytest.mark.parametrize("asked", ["a", "abc"])
def test_results_too_many_or_too_few(tmp_path: Path, asked: str) -> None:
    with pytest.raises(BenchError, match=f"2 instead of {len(asked)}"):
        validated(results(tmp_path), [{"run_id": name} for name in asked])


@pytest.mark.parametrize("change", [{"status": "failed"}, {"reason": "stopped"}, {"run_id": "a"}])
def test_a_result_that_is_not_as_it_should_be(tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(BenchError, match=r"b\.json"):
        validated(results(tmp_path, **change), [{"run_id": "a"}, {"run_id": "b"}])


def test_a_ledger_is_multiplied_with_its_counts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(open_writer(path)) as db:
        db.execute(
            "INSERT INTO runs (run_id, state, job, kind, scope, isolation, on_interrupt, validate, priority,"
            " requested_at, params) VALUES ('one', 6, 'noop', 'job', 'tenant', 'shared', 'retry', 1, 0, 0.0, x'7b7d')"
        )
    multiply(path, 11)
    with closing(open_reader(path)) as db:
        assert db.execute("SELECT count(*), count(DISTINCT run_id), max(seq) FROM runs").fetchone()[:] == (11, 11, 11)
        assert db.execute("SELECT runs FROM counts WHERE state = 6").fetchone()[0] == 11
        assert db.execute("SELECT count(*) FROM unpublished").fetchone()[0] == 0


# -- samples become figures
def test_a_summary_has_median_spread_and_ratio() -> None:
    spool, limit = summarize(FIGURES, {"spool": [30.0, 10.0, 20.0], "limit": [40.0]})
    assert (spool.median, spool.least, spool.most, spool.ratio) == (20, 10, 30, 0.5)
    assert limit.ratio is None


def test_without_its_limit_a_figure_has_no_ratio() -> None:
    [spool] = summarize(FIGURES, {"spool": [1.0]})
    assert spool.ratio is None


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_percentiles(percent: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_the_table_is_aligned() -> None:
    lines = table(summarize(FIGURES, {"spool": [30.0, 10.0, 20.0], "limit": [4000.0]})).splitlines()
    assert lines == [
        "figure        median           min–max  of limit",
        "spool: drain    20.0  1/s    10.0–30.0      0.01",
        "limit          4,000  1/s  4,000–4,000",
    ]


# -- us beside the peers
MEDIANS = {
    "spool.drain": 300.0,
    "socket.drain": 600.0,
    "latency.spool.idle.p50": 2.0,
    "latency.socket.idle.p50": 4.0,
    "sleep.10.wall": 1.5,
    "peer.x.drain": 200.0,
    "peer.y.drain": 150.0,
    "peer.y.p50": 1.0,
    "peer.x.p50": 9.0,
}


def test_our_best_is_set_against_the_best_peer() -> None:
    rows = contestants(MEDIANS, {"x": "X", "y": "Y", "z": "Z"}, 10)
    assert [row.title for row in rows] == ["craft-easy-jobs (spool)", "craft-easy-jobs (socket)", "X", "Y"]
    assert {measure.key: ratio(rows, measure) for measure in MEASURES} == {
        **dict.fromkeys([measure.key for measure in MEASURES]),
        "drain": 3.0,
        "p50": 2.0,
    }
    assert comparison(rows).splitlines()[-1].split() == ["ours", "/", "best", "peer", "3.00", "2.00"]


def test_the_drawing_is_xml_with_a_bar_a_figure() -> None:
    rows = [Row("us & them", True, 200.0, 100.0), Row("peer", False, 50.0, None)]
    drawing = ET.fromstring(chart(rows, ["2026-11-25", "<a machine>"]))
    space = "{http://www.w3.org/2000/svg}"
    widths = [float(bar.attrib["width"]) for bar in drawing.iter(f"{space}rect")]
    assert widths == [540, 270, 135]
    texts = [text.text for text in drawing.iter(f"{space}text")]
    assert {"us & them", "peer", "<a machine>", "200", "50.0"} <= set(texts)
    assert "prefers-color-scheme: dark" in chart(rows, [])


def test_a_mark_that_is_not_whole_is_left_for_later() -> None:
    one, two = ((number).to_bytes(8, "little") + (number * 10).to_bytes(8, "little") for number in (1, 2))
    assert read_marks(one + two[:5]) == [(1, 10)]
    assert read_marks(one + two) == [(1, 10), (2, 20)]


# -- where it is measured
@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/home/x", ("/dev/sda", "ext4")),
        ("/data/x", ("/dev/sdc", "btrfs")),
        ("/database", ("/dev/sda", "ext4")),
        ("/data/a b/c", ("none", "tmpfs")),
    ],
)
def test_of_all_mounts_the_deepest_and_last_counts(path: str, found: tuple[str, str]) -> None:
    mounts = ["/dev/sda / ext4 rw", r"none /data/a\040b tmpfs rw", "/dev/sdb /data xfs rw", "/dev/sdc /data btrfs rw"]
    assert mount_of(path, "\n".join(mounts)) == found


@pytest.mark.parametrize(
    ("kind", "journal", "cautious"),
    [("ext4", True, False), ("ext4", False, True), ("ext4", None, False), ("tmpfs", None, True), ("xfs", None, False)],
)
def test_a_file_system_that_misleads_is_named(kind: str, journal: bool | None, cautious: bool) -> None:
    assert (FileSystem(kind, "x", journal).caution is not None) is cautious
