"""How the supervisor decides that a loop is blocked, and by whom."""

import json
import sysconfig
from types import SimpleNamespace
from typing import Any

import pytest

from craft_easy_jobd.blocking import BEAT_SECONDS, SILENT_SECONDS, TOLD_AT_MOST, Watch, judge
from craft_easy_jobd.probe import Evidence, Probe, read_status
from craft_easy_jobd.stacks import Stack, read_stack
from craft_easy_jobs import board
from craft_easy_jobs.board import STACK_SIGNAL, Mark

STDLIB = sysconfig.get_path("stdlib")
PACKAGES = f"{STDLIB}/site-packages"
OURS = board.__file__.removesuffix("board.py")
MARK = Mark("r", 7)
SIGNAL = 1 << (STACK_SIGNAL - 1)
OUTER = [(f"{OURS}board.py", 92, "send"), (f"{OURS}worker.py", 59, "main"), ("<frozen runpy>", 88, "_run_code")]
NUMPY = (f"{PACKAGES}/numpy/core.py", 1, "dot")
CARRY_OUT = (f"{OURS}workload.py", 187, "carry_out")


def written(*frames: tuple[str, int, str], cut: bool = False) -> str:
    lines = [f'  File "{file}", line {line} in {function}' for file, line, function in frames]
    return "\n".join(["Stack (most recent call first):", *lines, *(["  ..."] if cut else []), ""])


@pytest.mark.parametrize(
    ("frames", "place"),
    [
        ([("/srv/jobs/a.py", 42, "compute"), ("/srv/jobs/a.py", 7, "settle")], "a.py:42 in compute"),
        ([(f"{STDLIB}/json/encoder.py", 9, "encode"), ("/srv/app/.venv/x.py", 3, "x")], "x.py:3 in x"),
        ([NUMPY, ("/srv/lib/maths.py", 5, "sum_up"), ("/srv/a.py", 3, "a")], "maths.py:5 in sum_up"),
        ([NUMPY, (f"{PACKAGES}/acme/settle.py", 3, "settle")], "settle.py:3 in settle"),
        ([(f"{PACKAGES}/acme/lib/x.py", 1, "x"), (f"{PACKAGES}/acme/jobs/y.py", 3, "y")], "x.py:1 in x"),
        ([(f"{OURS}model.py", 130, "encode_value")], "model.py:130 in encode_value"),
    ],
)
def test_the_place_is_where_authors_look_first(frames: list[tuple[str, int, str]], place: str) -> None:
    assert read_stack(written(*frames, CARRY_OUT, *OUTER)) == Stack(in_step=True, place=place)


def test_stacks_of_something_else() -> None:
    assert read_stack("") is None
    assert read_stack("rubbish\n\x00") is None
    assert read_stack(written(("/srv/a.py", 1, "a"), (f"{STDLIB}/threading.py", 1000, "_bootstrap"))) is None
    assert read_stack(written(*OUTER[1:])) == Stack(in_step=False, place=None)
    assert read_stack(written(("/srv/a.py", 1, "called_back"), *OUTER[1:])) == Stack(False, "a.py:1 in called_back")
    assert read_stack(written(("/srv/a.py", 1, "deep"), cut=True)) == Stack(True, "a.py:1 in deep")


def status(state: str, *, blocked: int = 0, caught: int = SIGNAL, pending: int = 0) -> Evidence:
    masks = {"SigPnd": 0, "ShdPnd": pending, "SigBlk": blocked, "SigIgn": 0, "SigCgt": caught}
    lines = [f"{name}:\t{mask:016x}" for name, mask in masks.items()]
    return read_status("\n".join(["Name:\tpython", f"State:\t{state} (any)", *lines, ""]).encode(), MARK)


def test_what_a_process_can_answer() -> None:
    assert status("R") == Evidence(stopped=False, answers=True, asked=False, mark=MARK)
    assert status("S", pending=SIGNAL).asked
    assert not status("S", blocked=SIGNAL).answers
    assert not status("S", caught=2).answers
    assert not status("D").answers
    assert status("T") == status("t") == Evidence(stopped=True, answers=False, asked=False, mark=MARK)


@pytest.mark.parametrize(
    ("evidence", "stack", "verdict"),
    [
        (status("S"), Stack(True, "a.py:1 in a"), "blocked"),
        (status("S"), Stack(True, None), "blocked"),
        (status("S"), Stack(False, None), "idle"),
        (status("S"), None, "blocked"),
        (status("R", pending=SIGNAL), None, "wait"),
        (status("S")._replace(mark=None), Stack(False, "a.py:1 in called_back"), "blocked"),
        (status("S")._replace(mark=None), Stack(False, None), "idle"),
        (status("S")._replace(mark=None), None, "idle"),
        (status("T"), None, "blocked"),
    ],
)
def test_judge(evidence: Evidence, stack: Stack | None, verdict: str) -> None:
    assert judge(evidence, stack) == verdict


class Scene:
    """A watch over one worker that can be made to be anything."""

    def __init__(self) -> None:
        self.evidence = status("S")
        self.stack: Stack | None = Stack(True, "settlement.py:42 in compute")
        self.asked = 0
        self.kicks = 0
        self.log: list[dict[str, Any]] = []
        self.now = 100.0
        self.worker: Any = SimpleNamespace(
            name="w1",
            pid=1,
            isolation="shared",
            probe=self,
            beat_at=self.now,
            blocked=None,
            ready=True,
            killed=False,
            returncode=None,
        )
        attempt: Any = SimpleNamespace(lease=SimpleNamespace(run_id="r", token=7, names={}), blocks_told=0)
        attempts: Any = SimpleNamespace(get=lambda run_id, token: attempt if (run_id, token) == MARK else None)
        workforce: Any = SimpleNamespace(workers=[self.worker])
        self._watch = Watch(workforce, attempts, self)  # type: ignore[arg-type]

    def look(self, _pid: int) -> Evidence:
        return self.evidence

    def ask(self, _pid: int) -> None:
        self.asked += 1

    def answer(self) -> Stack | None:
        return self.stack

    def said(self, _worker: object, messages: Any) -> None:
        self.log += [json.loads(message.entries) for message in messages]

    def kick(self) -> None:
        self.kicks += 1

    def after(self, seconds: float, *, late: float = 0.0) -> None:
        self.now += seconds
        self._watch.look(self.now, late=late)

    def beat(self) -> None:
        self.worker.beat_at = self.now


def test_a_blocked_loop_is_told_once_and_when_it_ends() -> None:
    scene = Scene()
    scene.after(SILENT_SECONDS - 0.01)
    assert scene.asked == 0
    for _ in range(50):
        scene.after(0.1)
    assert scene.asked == 1
    assert scene.worker.blocked == (100.0 + BEAT_SECONDS, MARK, "settlement.py:42 in compute", False)
    assert [entry["level"] for entry in scene.log] == ["warning"]
    assert "settlement.py:42 in compute" in scene.log[0]["message"]
    scene.beat()
    scene.after(0.1)
    assert scene.worker.blocked is None
    assert [entry["level"] for entry in scene.log] == ["warning", "info"]
    assert scene.kicks == 1


def test_a_supervisor_that_was_held_up_itself_starts_anew() -> None:
    scene = Scene()
    scene.after(SILENT_SECONDS)
    scene.after(3, late=2.9)
    scene.after(SILENT_SECONDS - 0.01)
    assert scene.asked == 1
    assert scene.worker.blocked is None
    scene.after(0.1)
    scene.after(0.1)
    assert scene.worker.blocked is not None


def test_many_short_steps_in_one_turn_accuse_none_of_them() -> None:
    scene = Scene()
    for number in range(30):
        scene.evidence = status("S")._replace(mark=Mark(f"r{number}", 1))
        scene.after(0.1)
    assert scene.worker.blocked is None


def test_who_blocks_next_in_the_same_turn_is_named_too() -> None:
    scene = Scene()
    scene.after(SILENT_SECONDS)
    scene.after(0.1)
    assert scene.worker.blocked.mark == MARK
    scene.evidence = status("S")._replace(mark=Mark("other", 1))
    scene.after(0.1)
    assert scene.worker.blocked is None
    scene.after(SILENT_SECONDS)
    scene.after(0.1)
    assert scene.worker.blocked.mark == Mark("other", 1)


def test_a_worker_short_of_the_processor_is_not_accused_until_it_answers() -> None:
    scene = Scene()
    scene.stack, scene.evidence = None, status("R", pending=SIGNAL)
    for _ in range(20):
        scene.after(0.3)
    assert scene.worker.blocked is None
    scene.stack = Stack(False, None)
    scene.after(0.1)
    assert scene.worker.blocked is None


def test_a_run_that_blocks_again_and_again_does_not_fill_its_log() -> None:
    scene = Scene()
    for _ in range(TOLD_AT_MOST + 5):
        scene.beat()
        for _ in range(10):
            scene.after(0.1)
    assert sum(entry["level"] == "warning" for entry in scene.log) == TOLD_AT_MOST


def test_a_process_that_is_gone_is_not_judged() -> None:
    probe = Probe()
    try:
        evidence = probe.look(2**22 + 1)
        assert judge(evidence, None) in ("wait", "idle")
        assert not evidence.answers
    finally:
        probe.close()
