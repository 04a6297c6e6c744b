"""craft-easy-job: list and run jobs in this process; no daemon needed."""

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from craft_easy_jobs import __version__
from craft_easy_jobs.errors import CraftEasyJobsError, LoadError

if TYPE_CHECKING:
    from craft_easy_jobs.model import JobResult
    from craft_easy_jobs.terminal import Lines

PROGRAM = "craft-easy-job"
EXIT_FAILED, EXIT_USAGE, EXIT_TIMED_OUT = 1, 2, 124
JOBS_VARIABLE = "CRAFT_EASY_JOB_JOBS"

F = TypeVar("F", bound=Callable[..., Any])


def main() -> None:
    """Run the command line; what users got wrong is told in one line and ends with EXIT_USAGE."""
    try:
        cli(prog_name=PROGRAM)
    except CraftEasyJobsError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_USAGE)


def _modules(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    listed = os.environ.get(JOBS_VARIABLE, "").split(",")
    return given or tuple(name.strip() for name in listed if name.strip())


def _run_id(_context: click.Context, _option: click.Parameter, given: str | None) -> str | None:
    if given is None:
        return None
    from craft_easy_jobs.model import RUN_ID_PATTERN

    if not re.match(RUN_ID_PATTERN, given):
        raise click.BadParameter("up to 128 letters, digits, '.', '_' and '-'; the first a letter or digit")
    return given


def common_options(command: F) -> F:
    """The options that every command takes."""
    jobs = click.option(
        "--jobs",
        "modules",
        multiple=True,
        metavar="MODULE",
        callback=_modules,
        help=f"Import name or .py file that declares jobs; repeatable. Default: ${JOBS_VARIABLE}, comma separated.",
    )
    as_json = click.option("--json", "as_json", is_flag=True, default=False, help="One line of JSON on stdout.")
    verbose = click.option("-v", "--verbose", is_flag=True, default=False, help="Show tracebacks of your code.")
    return jobs(as_json(verbose(command)))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """List and run jobs in this process; no daemon needed.

    To look around: craft-easy-job list --jobs craft_easy_jobs.demo
    """


@cli.command("list")
@common_options
def list_jobs(modules: tuple[str, ...], as_json: bool, verbose: bool) -> None:
    """List the jobs with their options and parameters, and the chains.

    Exit codes: 0 all is well, 1 a chain has a step whose job is not registered, 2 something is declared wrongly.
    """
    with _stdout_for_data() as out:
        _load(modules, verbose)
        from craft_easy_jobs.chaining import chains
        from craft_easy_jobs.definition import registry
        from craft_easy_jobs.listing import as_document, as_text, missing_steps
        from craft_easy_jobs.params import compile_params

        options = [definition.options for definition in registry.values()]
        for job in options:
            if job.params_schema:
                compile_params(job.name, job.params_schema)
        if as_json:
            from craft_easy_jobs.model import encode_value

            out.write(encode_value(as_document(options, chains)) + b"\n")
        else:
            out.writelines(f"{line}\n".encode() for line in as_text(options, chains))
        missing = missing_steps(chains, registry)
    for sentence in missing:
        click.echo(f"Error: {sentence}", err=True)
    sys.exit(EXIT_FAILED if missing else 0)


@cli.command()
@click.argument("name")
@click.option("--tenant-id", metavar="ID", help="The tenant to run for.")
@click.option("--scope", type=click.Choice(["tenant", "parent_tenant", "system"]), help="Instead of the job's own.")
@click.option("--params", "source", metavar="JSON|@FILE|-", help="Parameters: a JSON object, a file, or stdin.")
@click.option(
    "-p",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="One parameter; JSON if it parses, else a string. Repeatable.",
)
@click.option("--no-validate", is_flag=True, default=False, help="Run even if the params miss the job's schema.")
@click.option("--run-id", metavar="ID", help="Instead of a new UUID.", callback=_run_id)
@common_options
def run(
    name: str,
    tenant_id: str | None,
    scope: Any,
    source: str | None,
    pairs: tuple[str, ...],
    no_validate: bool,
    run_id: str | None,
    modules: tuple[str, ...],
    as_json: bool,
    verbose: bool,
) -> None:
    """Run the job NAME here and now; its log goes to stderr, its JobResult to stdout.

    Ctrl-C (or SIGTERM) asks the job to stop; the second one cuts it off.

    Exit codes: 0 completed, 1 failed, 2 nothing was run (wrong usage, unknown job, module or params), 124 timed out.
    """
    from craft_easy_jobs.arguments import read_params

    params = read_params(source, pairs)
    with _stdout_for_data() as out:
        _load(modules, verbose)
        from craft_easy_jobs.loading import code_version
        from craft_easy_jobs.runner import JobRunner
        from craft_easy_jobs.terminal import display

        if verbose:
            _show_tracebacks()
        live = display(plain=as_json)
        report = _Report(out, live, code_version(modules), as_json)
        result = JobRunner(on_stuck=report.give_and_exit).run_sync(
            name,
            params=params,
            tenant_id=tenant_id,
            scope=scope,
            run_id=run_id,
            validate=not no_validate,
            emit=live.show,
            on_signal=_tell_of_signal,
        )
        if result.reason in ("timed_out", "cancelled"):
            # Threads that the job started would keep this process, but a stop is a stop.
            report.give_and_exit(result)
        report.give(result)
    sys.exit(_exit_code(result))


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

    def give_and_exit(self, result: "JobResult") -> None:
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


def _load(modules: Sequence[str], verbose: bool) -> None:
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


def _show_tracebacks() -> None:
    logger = logging.getLogger("craft_easy_jobs.attempt")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.DEBUG)


@contextmanager
def _stdout_for_data() -> Iterator[BinaryIO]:
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


if __name__ == "__main__":
    main()
