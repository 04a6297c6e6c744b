"""The worker process: imports the jobs, says which there are, and carries out what the supervisor asks for.

Forked by the nursery, which has it end with the supervisor. All that it has to say goes through one
socket (see `wire`); what jobs print goes to stderr. Linux only.
"""

import asyncio
import faulthandler
import io
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from craft_easy_jobs.belongings import Threads, take_note
from craft_easy_jobs.board import Board, show_stack_on_signal
from craft_easy_jobs.chaining import chains
from craft_easy_jobs.definition import registry
from craft_easy_jobs.errors import CraftEasyJobsError
from craft_easy_jobs.loading import code_version, load_jobs
from craft_easy_jobs.orphans import adopt_orphans, enter_cgroup, keep_reaping
from craft_easy_jobs.params import ParamsValidator, compile_params
from craft_easy_jobs.tenants import list_tenants
from craft_easy_jobs.wire import Catalogue, WorkerOptions, pack
from craft_easy_jobs.workload import Bounds, Workload, lose_supervisor

EX_CONFIG = 78


def main() -> None:
    """Work until the supervisor says that no more will come."""
    options = _options()
    if options.cgroup:
        enter_cgroup(options.cgroup)
    adopt_orphans()
    _prepare_process()
    sock = socket.socket(fileno=options.fd)
    sock.set_inheritable(False)
    board = Board(options.board)
    if options.stack != -1:
        os.set_inheritable(options.stack, False)
        show_stack_on_signal(options.stack)
    take_note()
    catalogue, validators = load(options.jobs, options.tenants)
    try:
        sock.sendall(pack([catalogue]))
    except ConnectionError:
        lose_supervisor("")
    if catalogue.error is not None:
        sys.exit(EX_CONFIG)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        workload = Workload(
            runner.get_loop(),
            sock,
            validators,
            board,
            slots=options.slots,
            bounds=Bounds(options.max_log_bytes, options.max_result_bytes, options.max_log_rate),
            tenants=options.tenants,
            credentials=options.credentials,
        )
        workload.loop.set_default_executor(Threads(thread_name_prefix="asyncio"))
        keep_reaping(workload.loop)
        while not workload.finished:
            # A task that a job started may raise these; asyncio lets them out of the loop, its neighbours go on.
            with suppress(SystemExit, KeyboardInterrupt):
                workload.loop.run_forever()


def load(modules: Sequence[str], tenants: str | None = None) -> tuple[Catalogue, dict[str, ParamsValidator]]:
    """Import the modules of jobs; what is wrong with them is in the catalogue's `error`."""
    try:
        load_jobs(modules)
        jobs = [definition.options for definition in registry.values()]
        listed = list_tenants(tenants) if tenants else None
        validators = {job.name: compile_params(job.name, job.params_schema) for job in jobs if job.params_schema}
    except CraftEasyJobsError as error:
        return Catalogue(jobs=[], error=str(error)), {}
    version = code_version(modules)
    return Catalogue(jobs=jobs, chains=dict(chains), code_version=version, tenants=listed), validators


def _options() -> WorkerOptions:
    try:
        return msgspec.json.decode(" ".join(sys.argv[1:]), type=WorkerOptions)
    except msgspec.MsgspecError:
        sys.exit("craft_easy_jobs.worker is started by craft-easy-jobd only; to run a job yourself: craft-easy-job run")


def _prepare_process() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    faulthandler.enable()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


if __name__ == "__main__":
    main()
