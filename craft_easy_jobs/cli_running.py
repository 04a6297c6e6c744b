"""What happens behind the commands of craft-easy-job: modules are loaded, a run is carried out and told."""

import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import click

from craft_easy_jobs.cli_options import EXIT_FAILED, EXIT_TIMED_OUT, JOBS_VARIABLE, Asked
from craft_easy_jobs.errors import LoadError

if TYPE_CHECKING:
    from craft_easy_jobs.model import JobResult
    from craft_easy_jobs.scopes import Scope
    from craft_easy_jobs.tenants import TenantDirectory
    from craft_easy_jobs.terminal import Lines


def carry_out(name: str, asked: Asked, *, chain: bool = False, scope: "Scope | None" = None) -> NoReturn:
    """Run a job or a chain, its log on stderr, its JobResult on stdout, and exit with its code."""
    from craft_easy_jobs.arguments import read_params

    params = read_params(asked.source, asked.pairs)
    with stdout_for_data() as out:
        load(asked.modules, asked.verbose)
        from craft_easy_jobs.definition import registry
        from craft_easy_jobs.loading import code_version
        from craft_easy_jobs.runner import JobRunner
        from craft_easy_jobs.terminal import display

        if asked.verbose:
            _show_tracebacks()
        # A bar shows how far one run is, not many.
        live = display(plain=asked.as_json or chain or registry[name].options.per_tenant)
        _tell_of_limits(name, chain)
        report = _Report(out, live, code_version(asked.modules), asked.as_json)
        tenants = read_directory(asked.tenants) if asked.tenants else None
        runner = JobRunner(tenants=tenants, on_stuck=report.give_and_exit, credentials=asked.credentials)
        options: dict[str, Any] = {
            "params": params,
            "tenant_id": asked.tenant_id,
            "all_tenants": asked.all_tenants,
            "concurrency": asked.concurrency,
            "run_id": asked.run_id,
            "validate": not asked.no_validate,
            "emit": live.show,
            "on_signal": _tell_of_signal,
        }
        result = runner.run_chain_sync(name, **options) if chain else runner.run_sync(name, scope=scope, **options)
        if runner.cut_off:
            # Threads that the job started would keep this process, but a stop is a stop.
            report.give_and_exit(result)
        report.give(result)
    sys.exit(_exit_code(result))


def load(modules: Sequence[str], verbose: bool) -> None:
    """Import the modules that register jobs; without any job, there is nothing to do."""
    from craft_easy_jobs.definition import registry
    from craft_easy_jobs.loading import ENTRY_POINT_GROUP, load_jobs

    try:
        load_jobs(modules)
    except LoadError as error:
        if verbose:
            traceback.print_exception(error.__cause__)
        raise
    if not registry:
        where = f"none of {', '.join(modules)} declares one with @job" if modules else "no module was named"
        raise click.UsageError(
            f"there are no jobs: {where}. Give --jobs MODULE (or ${JOBS_VARIABLE}, or an entry point in the group "
            f"{ENTRY_POINT_GROUP!r}); to look around: --jobs craft_easy_jobs.demo"
        )


def read_directory(place: str) -> "TenantDirectory":
    """The tenants of a file or of `module:name`."""
    from craft_easy_jobs.tenants import call_directory, load_tenants

    return load_tenants(place) if place.endswith(".toml") or ":" not in place else call_directory(place)


def write_json(out: BinaryIO, document: Any) -> None:
    """One line of JSON."""
    from craft_easy_jobs.model import encode_value

    out.write(encode_value(document) + b"\n")


def show_error(text: str) -> None:
    """On stderr, on its own lines, without what steers a terminal."""
    from craft_easy_jobs.terminal import clean

    click.echo(clean(f"Error: {text}"), err=True)


@contextmanager
def stdout_for_data() -> Iterator[BinaryIO]:
    """The real stdout; what jobs, their modules and their child processes print meanwhile goes to stderr."""
    sys.stdout.flush()
    if isinstance(sys.stdout, TextIOWrapper):
        # Nothing printed is left in a buffer when the process ends the hard way.
        sys.stdout.reconfigure(line_buffering=True)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        try:
            yield out
        finally:
            sys.stdout.flush()
            os.dup2(out.fileno(), 1)


@dataclass(frozen=True)
class _Report:
    """Where and how a run's result is told."""

    out: BinaryIO
    live: "Lines"
    code_version: str | None
    as_json: bool

    def give(self, result: "JobResult") -> None:
        import msgspec

        from craft_easy_jobs.model import encode_result

        self.live.close(_summary(result))
        result.code_version = self.code_version
        document = encode_result(result)
        self.out.write(document if self.as_json else msgspec.json.format(document, indent=2) + b"\n")
        self.out.flush()

    def give_and_exit(self, result: "JobResult") -> NoReturn:
        try:
            self.give(result)
        finally:
            os._exit(_exit_code(result))


def _summary(result: "JobResult") -> str:
    reason = f" ({result.reason})" if result.reason else ""
    attempts = f", {result.attempts} attempts" if result.attempts > 1 else ""
    error = f": {result.error}" if result.error else ""
    return f"{result.job_name} {result.status}{reason} in {result.duration_seconds or 0:.1f} s{attempts}{error}"


def _exit_code(result: "JobResult") -> int:
    if result.status == "completed":
        return 0
    return EXIT_TIMED_OUT if result.reason == "timed_out" else EXIT_FAILED


def _tell_of_signal(count: int) -> None:
    text = "\nAsked the job to stop; once more to cut it off.\n" if count == 1 else "\nCutting it off.\n"
    # In a signal handler: the buffered stream may be in the middle of a write.
    with suppress(OSError):
        os.write(2, text.encode())


def _tell_of_limits(name: str, chain: bool) -> None:
    """Say what is not held here: this process is the author's own."""
    from craft_easy_jobs.chaining import chains
    from craft_easy_jobs.definition import registry

    steps = chains[name].steps if name in chains else ()
    jobs = [step.job for step in steps] if chain else [name]
    for job in jobs:
        if job in registry and (limit := registry[job].options.memory_limit_mb):
            click.echo(
                f"note: craft-easy-jobd holds job {job!r} to {limit} MB of memory; here it has no limit", err=True
            )


def _show_tracebacks() -> None:
    logger = logging.getLogger("craft_easy_jobs.attempt")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.DEBUG)
