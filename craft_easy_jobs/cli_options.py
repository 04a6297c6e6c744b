"""What the commands of craft-easy-job have in common: options, environment names, exit codes."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

EXIT_FAILED, EXIT_USAGE, EXIT_TIMED_OUT = 1, 2, 124
JOBS_VARIABLE = "CRAFT_EASY_JOB_JOBS"
TENANTS_VARIABLE = "CRAFT_EASY_JOB_TENANTS"
CREDENTIALS_VARIABLE = "CRAFT_EASY_JOB_CREDENTIALS"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Common:
    """The options that every command takes."""

    modules: tuple[str, ...]
    as_json: bool
    verbose: bool


@dataclass(frozen=True, kw_only=True)
class Asked(Common):
    """The options of the commands that run something."""

    tenant_id: str | None
    all_tenants: bool
    concurrency: int
    tenants: str | None
    credentials: str | None
    source: str | None
    pairs: tuple[str, ...]
    no_validate: bool
    run_id: str | None


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
    """The fields of Common."""
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


tenants_option = click.option(
    "--tenants",
    metavar="FILE|MODULE:NAME",
    envvar=TENANTS_VARIABLE,
    help=f"The tenants there are: a tenants.toml, or a callable that gives them. Default: ${TENANTS_VARIABLE}.",
)

_RUN_OPTIONS = (
    click.option("--tenant-id", metavar="ID", help="The tenant to run for."),
    click.option("--all-tenants", is_flag=True, default=False, help="Run per_tenant jobs for every active tenant."),
    click.option(
        "--concurrency", metavar="N", type=click.IntRange(min=1), default=4, help="Tenants side by side; default 4."
    ),
    tenants_option,
    click.option(
        "--credentials",
        metavar="DIR",
        # The last is what systemd gives to a unit with LoadCredential=.
        envvar=[CREDENTIALS_VARIABLE, "CREDENTIALS_DIRECTORY"],
        help=f"Folder of the secrets that ctx.credential(NAME) reads, a file each. Default: ${CREDENTIALS_VARIABLE}.",
    ),
    click.option("--params", "source", metavar="JSON|@FILE|-", help="Parameters: a JSON object, a file, or stdin."),
    click.option(
        "-p",
        "pairs",
        multiple=True,
        metavar="KEY=VALUE",
        help="One parameter; JSON if it parses, else a string. Repeatable.",
    ),
    click.option("--no-validate", is_flag=True, default=False, help="Run even if the params miss the job's schema."),
    click.option("--run-id", metavar="ID", help="Instead of a new UUID.", callback=_run_id),
)


def run_options(command: F) -> F:
    """The fields of Asked."""
    command = common_options(command)
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command
