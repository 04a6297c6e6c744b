"""craft-easy-job: list and run jobs and chains in this process; no daemon needed."""

import sys
from typing import Any

import click

from craft_easy_jobs import __version__
from craft_easy_jobs.chain_cli import chain_commands
from craft_easy_jobs.cli_options import (
    EXIT_FAILED,
    EXIT_USAGE,
    TENANTS_VARIABLE,
    Asked,
    Common,
    common_options,
    run_options,
    tenants_option,
)
from craft_easy_jobs.cli_running import carry_out, load, read_directory, show_error, stdout_for_data, write_json
from craft_easy_jobs.errors import CraftEasyJobsError

PROGRAM = "craft-easy-job"


def main() -> None:
    """Run the command line; what users got wrong is told in one line and ends with EXIT_USAGE."""
    try:
        cli(prog_name=PROGRAM)
    except CraftEasyJobsError as error:
        show_error(str(error))
        sys.exit(EXIT_USAGE)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """List and run jobs and chains in this process; no daemon needed.

    To look around: craft-easy-job list --jobs craft_easy_jobs.demo
    """


cli.add_command(chain_commands)


@cli.command("list")
@common_options
def list_jobs(**given: Any) -> None:
    """List the jobs with their options and parameters, and the chains.

    Exit codes: 0 all is well, 1 a chain has a step whose job is not registered, 2 something is declared wrongly.
    """
    common = Common(**given)
    with stdout_for_data() as out:
        load(common.modules, common.verbose)
        from craft_easy_jobs.chaining import chains
        from craft_easy_jobs.definition import registry
        from craft_easy_jobs.listing import as_document, as_text, missing_steps
        from craft_easy_jobs.params import compile_params

        options = [definition.options for definition in registry.values()]
        for job in options:
            if job.params_schema:
                compile_params(job.name, job.params_schema)
        if common.as_json:
            write_json(out, as_document(options, chains))
        else:
            out.writelines(f"{line}\n".encode() for line in as_text(options, chains))
        missing = missing_steps(chains, registry)
    for sentence in missing:
        show_error(sentence)
    sys.exit(EXIT_FAILED if missing else 0)


@cli.command()
@click.argument("name")
@click.option("--scope", type=click.Choice(["tenant", "parent_tenant", "system"]), help="Instead of the job's own.")
@run_options
def run(name: str, scope: Any, **given: Any) -> None:
    """Run the job NAME here and now; its log goes to stderr, its JobResult to stdout.

    A per_tenant job runs once for each tenant of its scope; the result is a table of them.

    Ctrl-C (or SIGTERM) asks the job to stop; the second one cuts it off.

    Exit codes: 0 completed, 1 failed, 2 nothing was run (wrong usage, unknown job, module, tenant or params), 124
    timed out.
    """
    carry_out(name, Asked(**given), scope=scope)


@cli.command("tenants")
@tenants_option
@common_options
def show_tenants(tenants: str | None, **given: Any) -> None:
    """Show the tenants as a tree."""
    common = Common(**given)
    if not tenants:
        raise click.UsageError(
            f"there is no tenant directory. Give --tenants FILE|MODULE:NAME (or ${TENANTS_VARIABLE})"
        )
    with stdout_for_data() as out:
        from craft_easy_jobs.listing import tenant_lines, tenants_document

        if common.modules:
            load(common.modules, common.verbose)
        directory = read_directory(tenants)
        if common.as_json:
            write_json(out, tenants_document(directory))
        else:
            out.writelines(f"{line}\n".encode() for line in tenant_lines(directory))


if __name__ == "__main__":
    main()
