"""craft-easy-job chain: list, draw, check and run chains."""

import sys
from typing import Any

import click

from craft_easy_jobs.cli_options import EXIT_FAILED, Asked, Common, common_options, run_options
from craft_easy_jobs.cli_running import carry_out, load, show_error, stdout_for_data, write_json


@click.group("chain")
def chain_commands() -> None:
    """List, draw, check and run chains of jobs."""


@chain_commands.command("list")
@common_options
def list_chains(**given: Any) -> None:
    """List the chains with their steps in the order of their start."""
    common = Common(**given)
    with stdout_for_data() as out:
        load(common.modules, common.verbose)
        from craft_easy_jobs.chaining import chains
        from craft_easy_jobs.listing import chain_document, chain_text

        if common.as_json:
            write_json(out, [chain_document(chain) for chain in chains.values()])
        else:
            out.writelines(f"{line}\n".encode() for chain in chains.values() for line in chain_text(chain))


@chain_commands.command("show")
@click.argument("name")
@common_options
def show_chain(name: str, **given: Any) -> None:
    """Draw the chain NAME: its steps, and what each of them waits for."""
    common = Common(**given)
    with stdout_for_data() as out:
        load(common.modules, common.verbose)
        from craft_easy_jobs.chaining import chains, find_chain
        from craft_easy_jobs.drawing import draw
        from craft_easy_jobs.listing import chain_document

        chain = find_chain(name, chains)
        if common.as_json:
            write_json(out, chain_document(chain))
        else:
            out.write(draw(chain).encode() + b"\n")


@chain_commands.command("check")
@common_options
def check_chains(**given: Any) -> None:
    """Check that every step of every chain has a registered job whose params_schema can be applied.

    Exit codes: 0 all is well, 1 a step has no such job, 2 something else is declared wrongly.
    """
    common = Common(**given)
    with stdout_for_data() as out:
        load(common.modules, common.verbose)
        from craft_easy_jobs.chaining import chains
        from craft_easy_jobs.definition import registry
        from craft_easy_jobs.listing import bad_schemas, missing_steps

        problems = missing_steps(chains, registry) + bad_schemas(chains, registry)
        if common.as_json:
            write_json(out, {"chains": list(chains), "problems": problems})
        else:
            out.write(f"{len(chains)} chains, {len(problems)} problems\n".encode())
    for sentence in problems:
        show_error(sentence)
    sys.exit(EXIT_FAILED if problems else 0)


@chain_commands.command("run")
@click.argument("name")
@run_options
def run_chain(name: str, **given: Any) -> None:
    """Run the chain NAME here and now; its log goes to stderr, its JobResult to stdout.

    Each step's job gets --params, overlaid by the step's own. Ctrl-C (or SIGTERM) asks what runs to stop and skips the
    rest; the second one cuts it off.

    Exit codes: 0 completed, 1 failed, 2 nothing was run (wrong usage, unknown chain, job or tenant, wrong params).
    """
    carry_out(name, Asked(**given), chain=True)
