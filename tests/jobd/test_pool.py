"""The pool and real worker processes, on uvloop and on asyncio's own loop."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from craft_easy_jobd import worker_process
from craft_easy_jobd.containment import ProcessTrees, adopt_orphans
from craft_easy_jobd.instance import environment_of
from craft_easy_jobd.nursery import Nursery
from craft_easy_jobd.pool import Pool
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.worker_process import Worker
from craft_easy_jobs import wire
from craft_easy_jobs.definition import Isolation
from craft_easy_jobs.wire import Cancel, Catalogue, Entries, Outcome, Start, Stop
from craft_easy_jobs.workload import Bounds
from tests.support.waiting import wait_until

JOBS = str(Path(__file__).with_name("worker_jobs.py"))
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class Recorder:
    """Keeps all that workers say; `until` waits for a fact about it."""

    def __init__(self) -> None:
        self.catalogues: dict[str, Catalogue] = {}
        self.entries: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.chunks: list[Entries] = []
        self.outcomes: dict[str, Outcome] = {}
        self.said: list[str] = []
        self.stuck: dict[str, str] = {}
        self.gone: dict[str, tuple[int | None, str]] = {}
        self._changed = asyncio.Event()

    def worker_ready(self, worker: Worker, catalogue: Catalogue) -> None:
        self.catalogues[worker.name] = catalogue
        self._changed.set()

    def worker_said(self, worker: Worker, messages: list[Entries | Outcome]) -> None:
        assert worker.name not in self.gone
        for message in messages:
            self.said.append(type(message).__name__)
            if isinstance(message, Outcome):
                assert message.run_id not in self.outcomes
                self.outcomes[message.run_id] = message
            else:
                self.chunks.append(message)
                self.entries[message.run_id] += json.loads(b"[" + message.entries + b"]")
        self._changed.set()

    def worker_stuck(self, worker: Worker, problem: str) -> None:
        self.stuck[worker.name] = problem
        self._changed.set()

    def worker_gone(self, worker: Worker, returncode: int | None, problem: str) -> None:
        assert worker.name not in self.gone
        self.gone[worker.name] = (returncode, problem)
        self._changed.set()

    async def until(self, fact: Callable[[], Any], within: float = 30.0) -> Any:
        async with asyncio.timeout(within):
            while not (value := fact()):
                self._changed.clear()
                await self._changed.wait()
        return value


class Crew:
    """A pool with one way to do each thing that the tests do."""

    def __init__(self, pool: Pool, settings: Settings, recorder: Recorder) -> None:
        self.pool = pool
        self.heard = recorder
        self._settings = settings

    async def start_worker(self, isolation: Isolation = "shared") -> Worker:
        return await self.pool.start_worker(isolation, self._settings, self.heard)

    async def worker(self, isolation: Isolation = "shared") -> Worker:
        worker = await self.start_worker(isolation)
        await self.heard.until(lambda: worker.ready)
        return worker

    def start(self, worker: Worker, job: str, run_id: str = "r", *, token: int = 7, **params: Any) -> None:
        data = json.dumps(params).encode()
        worker.send(Start(run_id, token, 1, job, data, None, "tenant", [], validate=True))

    async def outcome(self, run_id: str = "r") -> Outcome:
        await self.heard.until(lambda: run_id in self.heard.outcomes)
        return self.heard.outcomes[run_id]

    async def run(self, worker: Worker, job: str, run_id: str = "r", **params: Any) -> Outcome:
        self.start(worker, job, run_id, **params)
        return await self.outcome(run_id)

    async def begun(self, run_id: str = "r") -> None:
        await self.heard.until(lambda: self.heard.entries[run_id])

    async def end_of(self, worker: Worker) -> tuple[int | None, str]:
        await self.heard.until(lambda: worker.name in self.heard.gone)
        assert worker.name not in self.pool.workers
        return self.heard.gone[worker.name]


@asynccontextmanager
async def crew(*jobs: str, slots: int = 4, grace: float = 2.0, **settings: int) -> AsyncIterator[Crew]:
    recorder = Recorder()
    # As the daemon does: orphans of dead workers become children of this process, and are its to kill.
    adopt_orphans()
    nursery = Nursery(environment_of("test"))
    async with asyncio.TaskGroup() as tasks:
        pool = Pool(tasks, ProcessTrees("test"), nursery)
        try:
            yield Crew(pool, Settings(jobs=jobs or (JOBS,), slots=slots, **settings), recorder)
        finally:
            await pool.close(grace=grace)
            nursery.close()
            adopt_orphans(adopt=False)


def on_both_loops(scenario: Callable[[], Awaitable[None]]) -> Callable[..., None]:
    """Make a test of a coroutine function: supervisor and workers on uvloop, then both without it."""

    @pytest.mark.parametrize("loop", LOOPS)
    def test(loop: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        if loop == "asyncio":
            (tmp_path / "uvloop.py").write_text("raise ImportError('not here')\n")
            monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(scenario())  # type: ignore[arg-type]

    test.__doc__ = scenario.__doc__
    return test


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until_dead(pid: int) -> None:
    await asyncio.to_thread(wait_until, lambda: not alive(pid))


# -- start

BAD_SCHEMA = """
from craft_easy_jobs import job

@job(name="x", params_schema={"a": {"type": "nothing"}})
async def x(ctx): ...
"""


@on_both_loops
async def test_a_worker_says_which_jobs_there_are() -> None:
    async with crew() as c:
        shared, dedicated = await c.worker(), await c.worker("process")
        assert (shared.name, shared.isolation, shared.slots) == ("w1", "shared", 4)
        assert (dedicated.name, dedicated.isolation, dedicated.slots) == ("d1", "process", 1)
        assert c.pool.workers == {"w1": shared, "d1": dedicated}
        catalogue = c.heard.catalogues["w1"]
        assert next(options for options in catalogue.jobs if options.name == "echo").description == "returns its params"
        assert [step.job for step in catalogue.chains["twice"].steps] == ["echo", "facts"]
        assert catalogue.error is None
        assert catalogue.code_version
    assert c.heard.gone == {"w1": (0, ""), "d1": (0, "")}


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import nothing_like_it", "nothing_like_it"),
        ("raise SystemExit(4)", "sys.exit(4)"),
        (BAD_SCHEMA, "params_schema"),
    ],
)
async def test_modules_that_cannot_be_imported_are_named(tmp_path: Path, source: str, complaint: str) -> None:
    module = tmp_path / "bad_jobs.py"
    module.write_text(source)
    async with crew(str(module)) as c:
        worker = await c.start_worker()
        returncode, problem = await c.end_of(worker)
        assert returncode == 78
        assert complaint in problem
        assert c.heard.catalogues["w1"].error == problem
        assert not worker.ready


async def test_workers_do_not_get_what_systemd_gave_to_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("SETTLEMENT_DB", "kept")
    async with crew() as c:
        outcome = await c.run(await c.worker(), "environment")
    environment = json.loads(outcome.result)
    assert environment.keys().isdisjoint({"NOTIFY_SOCKET", "LISTEN_FDS"})
    assert environment["SETTLEMENT_DB"] == "kept"


# -- outcomes


@on_both_loops
async def test_each_way_to_end_is_told_and_the_worker_goes_on() -> None:
    async with crew() as c:
        worker = await c.worker()

        async def ends(job: str, **params: Any) -> tuple[str, str | None, str | None]:
            run_id = f"{job} {params}"
            outcome = await c.run(worker, job, run_id, **params)
            assert outcome.token == 7
            assert not outcome.obeyed_stop
            return outcome.kind, outcome.reason, outcome.error

        assert await ends("echo", rows=[1, "å"]) == ("returned", None, None)
        assert await ends("value", which="nothing") == ("returned", None, None)
        kind, reason, error = await ends("raise", which="ValueError")
        assert (kind, reason) == ("raised", "exception")
        assert error is not None
        assert error.startswith("ValueError: no rows (worker_jobs.py:")
        for which in ("SystemExit", "KeyboardInterrupt", "CancelledError", "BrokenTextError"):
            kind, reason, error = await ends("raise", which=which)
            assert (kind, reason) == ("raised", "exception")
            assert error is not None
            assert error.startswith(which)
        kind, reason, error = await ends("raise", which="long")
        assert error is not None
        assert len(error) == 10_000
        assert (await ends("exit-in-task"))[:2] == ("raised", "exception")
        for which, path in (("nan", "result.rows[1]"), ("set", "result")):
            kind, reason, error = await ends("value", which=which)
            assert (kind, reason) == ("raised", "result_invalid")
            assert error is not None
            assert error.startswith(path)
        assert (await ends("no-such-job"))[:2] == ("raised", "unknown_job")
        kind, reason, error = await ends("strict", period=3)
        assert (kind, reason) == ("raised", "invalid_params")
        assert error is not None
        assert "params.period" in error
        assert (await ends("strict", period="2026-04"))[0] == "returned"
        assert json.loads(c.heard.outcomes["echo {'rows': [1, 'å']}"].result) == {"rows": [1, "å"]}


async def test_a_context_holds_what_the_supervisor_said() -> None:
    async with crew() as c:
        worker = await c.worker()
        worker.send(Start("r", 9, 3, "facts", b"{}", "t1", "parent_tenant", ["t2", "t3"]))
        outcome = await c.outcome()
        assert json.loads(outcome.result) == ["r", "facts", "t1", "parent_tenant", ["t2", "t3"], 3]
        worker.send(Start("s", 1, 1, "strict", b'{"period": 3}', None, "tenant", [], validate=False))
        assert (await c.outcome("s")).kind == "returned"
        worker.send(Start("t", 1, 1, "echo", b"[1]", None, "tenant", []))
        assert (await c.outcome("t")).reason == "invalid_params"


async def test_large_values_pass_whole_and_too_large_ones_are_refused() -> None:
    async with crew() as c:
        worker = await c.worker()
        text = "y" * 8_000_000
        assert json.loads((await c.run(worker, "echo", "big", text=text)).result) == {"text": text}
        outcome = await c.run(worker, "value", "bigger", which="large", size=Bounds().result_bytes)
        assert outcome.reason == "result_invalid"
        assert (await c.run(worker, "echo", "after")).kind == "returned"


async def test_only_a_worker_with_one_slot_can_say_what_an_attempt_used() -> None:
    async with crew() as c:
        shared, dedicated = await c.worker(), await c.worker("process")
        outcome = await c.run(shared, "allocate", "s", bytes=1000)
        assert (outcome.cpu_seconds, outcome.peak_rss_bytes) == (None, None)
        large = await c.run(dedicated, "allocate", "d", bytes=200_000_000)
        small = await c.run(dedicated, "allocate", "e", bytes=1000)
        assert large.cpu_seconds is not None
        assert large.cpu_seconds >= 0.02
        assert large.peak_rss_bytes is not None
        assert small.peak_rss_bytes is not None
        assert small.peak_rss_bytes < 200_000_000 < large.peak_rss_bytes


@on_both_loops
async def test_a_thousand_attempts_at_once_each_get_their_own_outcome() -> None:
    async with crew(slots=250) as c:
        worker = await c.worker()
        for number in range(1000):
            c.start(worker, "echo", f"r{number}", token=number, number=number)
        await c.heard.until(lambda: len(c.heard.outcomes) == 1000)
        for number in range(1000):
            outcome = c.heard.outcomes[f"r{number}"]
            assert (outcome.token, json.loads(outcome.result)) == (number, {"number": number})


# -- logs


@on_both_loops
async def test_the_log_comes_in_order_and_before_the_outcome() -> None:
    async with crew() as c:
        await c.run(await c.worker(), "talk")
    entries = c.heard.entries["r"]
    assert [(entry["level"], entry["message"], entry["percentage"]) for entry in entries] == [
        ("info", "one", None),
        ("progress", "two", 50),
        ("warning", "three", None),
        ("error", "four \N{SNOWMAN}", None),
        ("info", "from a thread", None),
        ("info", "last", None),
    ]
    assert c.heard.said[-1] == "Outcome"
    assert sum(chunk.count for chunk in c.heard.chunks) == 6
    assert sum(chunk.warnings for chunk in c.heard.chunks) == 2
    assert [chunk.progress for chunk in c.heard.chunks if chunk.progress] == [("two", 50)]


async def test_a_log_without_end_is_cut_and_says_so() -> None:
    async with crew() as c:
        assert (await c.run(await c.worker(), "talk-too-much")).kind == "returned"
    assert sum(len(chunk.entries) for chunk in c.heard.chunks) <= Bounds().log_bytes
    assert "the log ends here" in c.heard.entries["r"][-1]["message"]
    assert c.heard.entries["r"][-1]["level"] == "warning"


async def test_a_storm_of_entries_is_thinned_and_says_so() -> None:
    async with crew(max_log_rate=20) as c:
        outcome = await c.run(await c.worker(), "storm")
    entries = c.heard.entries["r"]
    told = [entry for entry in entries if "entries were left out here" in entry["message"]]
    left_out = sum(int(entry["message"].split()[0]) for entry in told)
    # All that was written is there or counted, and the job's own view of its log is the same.
    assert len(entries) - len(told) + left_out == 5000
    assert json.loads(outcome.result) == len(entries) - len(told)
    assert 200 <= len(entries) - len(told) < 5000
    assert {entry["level"] for entry in told} == {"warning"}


async def test_the_settings_bound_logs_and_results() -> None:
    async with crew(max_log_bytes=3 * 1024 * 1024, max_result_bytes=1000) as c:
        worker = await c.worker()
        assert (await c.run(worker, "talk-too-much")).kind == "returned"
        kept = c.heard.entries["r"]
        assert [len(entry["message"]) for entry in kept[:-1]] == [1024 * 1024] * 2
        assert str(3 * 1024 * 1024) in kept[-1]["message"]
        outcome = await c.run(worker, "echo", "large", text="y" * 1000)
        assert outcome.reason == "result_invalid"
        assert outcome.error is not None
        assert "at most 1000" in outcome.error


async def test_what_a_job_prints_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    async with crew() as c:
        await c.run(await c.worker(), "print")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "from the job\n" in captured.err


# -- stop, cancel, kill


@on_both_loops
async def test_a_stop_reaches_the_attempt_of_its_token_only() -> None:
    async with crew() as c:
        worker = await c.worker()
        c.start(worker, "until-asked", token=7)
        c.start(worker, "until-asked", "s", token=7)
        await c.begun()
        worker.send(Cancel("r", 6))
        worker.send(Stop("r", 6))
        worker.send(Stop("nobody", 7))
        worker.send(Stop("s", 7))
        await c.outcome("s")
        await c.run(worker, "echo", "between")
        assert "r" not in c.heard.outcomes
        worker.send(Stop("r", 7))
        outcome = await c.outcome()
        assert (outcome.kind, outcome.result, outcome.obeyed_stop) == ("returned", b'"asked"', True)


@on_both_loops
async def test_a_job_that_never_lets_the_loop_turn_is_heard_and_hears_a_stop() -> None:
    async with crew() as c:
        worker = await c.worker()
        c.start(worker, "until-asked-blocking")
        await c.begun()
        c.start(worker, "colour", "other")
        worker.send(Stop("r", 7))
        assert (await c.outcome()).obeyed_stop
        # It came in while the other job had its context variables set.
        assert (await c.outcome("other")).result == b'"none"'


@on_both_loops
async def test_a_cancel_ends_an_attempt_even_before_its_first_step() -> None:
    async with crew() as c:
        worker = await c.worker()
        c.start(worker, "sleep")
        await c.begun()
        worker.send(Cancel("r", 7))
        outcome = await c.outcome()
        assert (outcome.kind, outcome.obeyed_stop) == ("cancelled", True)
        c.start(worker, "sleep", "s")
        worker.send(Cancel("s", 7))
        assert (await c.outcome("s")).kind == "cancelled"


@on_both_loops
async def test_what_ignores_a_cancel_is_killed_with_all_that_it_started() -> None:
    async with crew() as c:
        worker, neighbour = await c.worker("process"), await c.worker("process")
        pid = json.loads((await c.run(worker, "start-a-process", "p")).result)
        c.start(worker, "swallow")
        await c.begun()
        worker.send(Cancel("r", 7))
        await c.heard.until(lambda: len(c.heard.entries["r"]) == 2)
        worker.kill()
        worker.kill()
        assert await c.end_of(worker) == (-signal.SIGKILL, "worker d1 was killed by SIGKILL")
        assert worker.killed
        await until_dead(pid)
        worker.send(Stop("r", 7))
        assert (await c.run(neighbour, "echo", "n")).kind == "returned"


@on_both_loops
async def test_a_blocked_loop_shows_and_is_killed() -> None:
    async with crew() as c:
        worker = await c.worker()
        c.start(worker, "block")
        await c.begun()
        await asyncio.to_thread(wait_until, lambda: worker.lag_seconds > 0.2)
        worker.kill()
        assert (await c.end_of(worker))[0] == -signal.SIGKILL


async def test_beats_tell_lag_and_load() -> None:
    async with crew() as c:
        worker = await c.worker()
        c.start(worker, "block-briefly", "b")
        c.start(worker, "sleep")
        await c.outcome("b")
        told: list[tuple[float, int]] = []

        def lag_was_told() -> bool:
            told.append((worker.lag_seconds, worker.busy))
            return worker.lag_seconds > 0.3 and worker.busy == 1

        await asyncio.to_thread(wait_until, lag_was_told)
        await asyncio.to_thread(wait_until, lambda: worker.lag_seconds < 0.3)


# -- the end of a worker


@on_both_loops
async def test_how_a_worker_died_is_told_after_all_that_it_said() -> None:
    async with crew() as c:
        first, second = await c.worker(), await c.worker()
        c.start(first, "die", "a", how="exit")
        assert await c.end_of(first) == (3, "worker w1 exited by itself with code 3")
        c.start(second, "die", "b", how="segfault")
        assert await c.end_of(second) == (-signal.SIGSEGV, "worker w2 was killed by SIGSEGV")
        assert c.heard.entries["a"]
        assert c.heard.entries["b"]
        third = await c.worker()
        os.kill(third.pid, signal.SIGTERM)
        assert await c.end_of(third) == (-signal.SIGTERM, "worker w3 was killed by SIGTERM")
        assert not third.killed


@on_both_loops
async def test_what_a_dead_worker_had_sent_is_read_to_its_end() -> None:
    async with crew() as c:
        worker = await c.worker()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wire, "_READ_BYTES", 8)
            c.start(worker, "die", how="exit")
            # After the sending: this loop hears of the end as soon as it can read.
            asyncio.get_running_loop().call_soon(wait_until, lambda: not alive(worker.pid))
            await c.end_of(worker)
        assert c.heard.entries["r"]


@on_both_loops
async def test_processes_that_a_dead_worker_left_in_its_group_are_killed() -> None:
    async with crew() as c:
        worker = await c.worker()
        pid = json.loads((await c.run(worker, "start-a-process")).result)
        assert alive(pid)
        worker.leave()
        await c.end_of(worker)
        await until_dead(pid)


@on_both_loops
async def test_the_last_look_for_what_a_worker_left_begins_after_its_end() -> None:
    """What it left comes to the supervisor when it ends; a look that had begun by then may see it in neither place."""
    looks: list[int | None] = []

    def sweep(_: ProcessTrees, name: str, pid: int | None, spared: object) -> None:
        looks.append(pid)
        wait_until(lambda: worker.returncode is not None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessTrees, "sweep", sweep)
        async with crew() as c:
            worker = await c.worker()
            worker.kill()
            await c.end_of(worker)
    assert looks == [worker.pid, None]


async def test_a_process_in_another_session_that_holds_the_dead_workers_socket_is_killed(tmp_path: Path) -> None:
    async with crew() as c:
        worker = await c.worker()
        c.start(worker, "die", how="fork", pid_file=str(tmp_path / "pid"))
        assert (await c.end_of(worker))[0] == 3
        assert not alive(int((tmp_path / "pid").read_text()))


@on_both_loops
async def test_a_worker_that_sends_garbage_is_killed() -> None:
    async with crew() as c:
        worker = await c.worker()
        c.start(worker, "corrupt")
        returncode, problem = await c.end_of(worker)
        assert returncode == -signal.SIGKILL
        assert problem == "worker w1 sent what is no message: frame of 4294967295 bytes"


async def test_a_worker_that_closed_its_socket_and_lives_on_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "EXIT_SECONDS", 0.2)
    async with crew() as c:
        worker = await c.worker()
        c.start(worker, "close-socket")
        assert (await c.end_of(worker))[0] == -signal.SIGKILL


@on_both_loops
async def test_a_worker_that_leaves_ends_its_attempts_first() -> None:
    async with crew() as c:
        worker = await c.worker()
        c.start(worker, "sleep", seconds=0.2)
        await c.begun()
        worker.leave()
        worker.leave()
        assert worker.leaving
        assert await c.end_of(worker) == (0, "")
        assert c.heard.outcomes["r"].kind == "returned"


@on_both_loops
async def test_closing_kills_what_does_not_leave() -> None:
    async with crew(grace=0.1) as c:
        blocked, idle, starting = await c.worker(), await c.worker(), await c.start_worker()
        c.start(blocked, "block")
        await c.begun()
    assert c.heard.gone[blocked.name][0] == -signal.SIGKILL
    assert c.heard.gone.keys() == {blocked.name, idle.name, starting.name}
    assert not c.pool.workers


@on_both_loops
async def test_workers_are_killed_when_the_supervisor_fails() -> None:
    recorder = Recorder()
    pids: list[int] = []
    adopt_orphans()
    nursery = Nursery(environment_of("test"))

    async def supervise() -> None:
        async with asyncio.TaskGroup() as tasks:
            crew = Crew(Pool(tasks, ProcessTrees("test"), nursery), Settings(jobs=(JOBS,)), recorder)
            worker = await crew.start_worker()
            await recorder.until(lambda: worker.ready)
            # The task of this one is cancelled before its first step.
            pids.append((await crew.start_worker()).pid)
            raise RuntimeError("the supervisor is broken")

    with pytest.raises(ExceptionGroup):
        await supervise()
    assert recorder.gone["w1"][0] == -signal.SIGKILL
    await until_dead(pids[0])
    nursery.close()
    adopt_orphans(adopt=False)


SUPERVISOR = """
import asyncio, os, sys
from craft_easy_jobd.containment import ProcessTrees, adopt_orphans
from craft_easy_jobd.nursery import Nursery
from craft_easy_jobd.pool import Pool
from craft_easy_jobd.settings import Settings
from craft_easy_jobs.wire import Start

class Events:
    def worker_ready(self, worker, catalogue):
        worker.send(Start("r", 1, 1, sys.argv[2], b"{}", None, "tenant", []))
    def worker_said(self, worker, messages):
        print(worker.pid, flush=True)
    def worker_gone(self, *facts): ...

async def main():
    async with asyncio.TaskGroup() as tasks:
        pool = Pool(tasks, ProcessTrees("test"), Nursery(os.environ))
        await pool.start_worker("shared", Settings(jobs=(sys.argv[1],)), Events())

adopt_orphans()
asyncio.run(main())
"""


@pytest.mark.parametrize("job", ["block", "swallow"])
def test_a_worker_dies_with_its_supervisor(job: str) -> None:
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR, JOBS, job], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert alive(pid)
        supervisor.kill()
    wait_until(lambda: not alive(pid))
