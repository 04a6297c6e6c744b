"""The commands that talk to a daemon, over its control socket."""

import functools
import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from craft_easy_jobd import rendering
from craft_easy_jobs.client import Client
from craft_easy_jobs.errors import ApiError, CraftEasyJobsError, RequestError

if TYPE_CHECKING:
    from craft_easy_jobs.client import Spool
    from craft_easy_jobs.model import JobResult

_STATES = ("scheduled", "held", "queued", "running", "stopping", "retrying", "completed", "failed")
_ROOT = click.option(
    "--root",
    envvar="CRAFT_EASY_JOBD_ROOT",
    metavar="DIR",
    help="The daemon's root; without it ./var, or where no daemon has been there, this machine's service.",
)
_SOCKET = click.option(
    "--socket", envvar="CRAFT_EASY_JOBD_SOCKET", metavar="PATH", help="Its control socket, if elsewhere."
)
_WAIT = click.option("--wait", "waits", is_flag=True, default=False, help="Return when the daemon's process has ended.")
_TIMEOUT = click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="With --wait: exit 124 after that."
)
_JSON = click.option("--json", "as_json", is_flag=True, default=False, help="JSON on stdout.")


def _command(function: Callable[..., Any]) -> click.Command:
    """A command with the options that all of them take; they reach it as `client` and `as_json`."""

    @functools.wraps(function)
    def call(root: str | None, socket: str | None, **options: Any) -> Any:
        return function(Client(socket, root=root), **options)

    for option in (_JSON, _SOCKET, _ROOT):
        call = option(call)
    return click.command(function.__name__.removesuffix("_command"))(call)


@_command
def status_command(client: Client, as_json: bool) -> None:
    """Show the daemon, its workers and what runs now."""
    status = client.status()
    click.echo(json.dumps(status) if as_json else rendering.status_text(status))


@_command
def jobs_command(client: Client, as_json: bool) -> None:
    """Show the jobs that the daemon can run."""
    jobs = client.jobs()
    click.echo(json.dumps(jobs) if as_json else rendering.jobs_table(jobs))


@_command
def chains_command(client: Client, as_json: bool) -> None:
    """Show the chains that the daemon can run, each with its steps."""
    chains = client.chains()
    click.echo(json.dumps(chains) if as_json else "\n\n".join(map(rendering.chain_text, chains)))


@_command
def tenants_command(client: Client, as_json: bool) -> None:
    """Show the tenants that the daemon knows, as a tree."""
    try:
        tenants = client.tenants()
    except ApiError as error:
        if error.status != 404:
            raise
        # Not an ApiError: its exit code would say that there is no such run.
        raise CraftEasyJobsError(str(error)) from None
    click.echo(json.dumps(tenants) if as_json else rendering.tenants_tree(tenants))


@_command
@click.argument("job", required=False)
@click.option("--chain", metavar="NAME", help="Run this chain instead of a job.")
@click.option("--tenant-id", metavar="ID", help="The tenant to run for.")
@click.option("--all-tenants", is_flag=True, default=False, help="Run once for each active tenant.")
@click.option("--params", "source", metavar="JSON|@FILE|-", help="Parameters: a JSON object, a file, or stdin.")
@click.option("-p", "pairs", multiple=True, metavar="KEY=VALUE", help="One parameter; JSON if it parses. Repeatable.")
@click.option("--priority", type=int, default=0, show_default=True, help="Higher ones start first.")
@click.option("--not-before", metavar="TIME", help="RFC 3339 with its zone, such as 2026-04-05T22:00:00Z.")
@click.option("--run-id", metavar="ID", help="Instead of a new UUID; makes the call safe to repeat.")
@click.option("--no-validate", is_flag=True, default=False, help="Take params that miss the job's schema.")
@click.option("--wait", "waits", is_flag=True, default=False, help="Wait for the end; exit 1 if the run failed.")
@click.option("--print-id", is_flag=True, default=False, help="Print the run_id and nothing else.")
@click.option(
    "--spool",
    type=click.Choice(["never", "auto", "always"]),
    default="never",
    show_default=True,
    help="Drop a request file when no daemon answers (auto), or in any case (always).",
)
def submit_command(
    client: Client,
    job: str | None,
    chain: str | None,
    source: str | None,
    pairs: tuple[str, ...],
    no_validate: bool,
    waits: bool,
    print_id: bool,
    as_json: bool,
    spool: "Spool",
    **request: Any,
) -> int:
    """Ask for a run of JOB, or of a chain, and print its run_id; it is durable once printed."""
    from craft_easy_jobs.arguments import read_params

    if (job is None) == (chain is None):
        raise click.UsageError("give exactly one of JOB and --chain NAME")
    try:
        params = read_params(source, pairs)
    except RequestError as error:
        raise click.UsageError(str(error)) from None
    run_id = client.submit(job, params, chain=chain, validate=not no_validate, spool=spool, **request)
    if not waits or print_id:
        click.echo(json.dumps({"run_id": run_id}) if as_json else run_id)
    if not waits and not (print_id or as_json):
        click.echo(f"Its log: craft-easy-jobd logs -f {run_id}", err=True)
    if not waits:
        return 0
    _die_of_ctrl_c()
    result = client.wait(run_id)
    if not print_id:
        _show_result(result, as_json)
    return _failed(result)


@_command
@click.option("--state", "states", multiple=True, type=click.Choice(_STATES), help="Repeatable.")
@click.option("--job", metavar="NAME")
@click.option("--tenant-id", metavar="ID")
@click.option("--parent", metavar="RUN", help="Child runs of this run.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
def list_command(client: Client, as_json: bool, **filters: Any) -> None:
    """List runs, newest first."""
    runs = list(client.runs(**filters))
    click.echo(json.dumps(runs) if as_json else rendering.runs_table(runs))


@_command
@click.argument("run_id", metavar="RUN")
def show_command(client: Client, run_id: str, as_json: bool) -> None:
    """Show all that is known of a run; of a fan-out or a chain also where its tenants or steps are."""
    run = client.get(run_id)
    if run["kind"] == "job":
        click.echo(json.dumps(run) if as_json else rendering.run_text(run))
        return
    # The result has them all once there is one.
    live = () if run["result"] else client.runs(parent=run_id, limit=None)
    children = rendering.children_of(run, live)
    click.echo(json.dumps({**run, "children": children}) if as_json else rendering.family_text(run, children))


@_command
@click.argument("run_id", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, default=False, help="Go on until the run has ended.")
def logs_command(client: Client, run_id: str, follow: bool, as_json: bool) -> None:
    """Show a run's log; with --json one entry a line."""
    _die_of_ctrl_c()
    for entry in client.logs(run_id, follow):
        click.echo(json.dumps(entry) if as_json else rendering.log_line(entry))


@_command
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Exit 124 when it takes longer.")
def wait_command(client: Client, run_ids: tuple[str, ...], timeout: float | None, as_json: bool) -> int:
    """Wait for the end of runs; exit 1 when one of them failed. With --json one JobResult a line."""
    _die_of_ctrl_c()
    deadline = None if timeout is None else time.monotonic() + timeout
    failed = 0
    for run_id in run_ids:
        result = client.wait(run_id, None if deadline is None else max(0.0, deadline - time.monotonic()))
        _show_result(result, as_json)
        failed |= _failed(result)
    return failed


@_command
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--force", is_flag=True, default=False, help="Do not leave it to the job: cancel it, then kill its worker."
)
def cancel_command(client: Client, run_ids: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Ask runs to stop; prints the state that each is in after that."""
    for run_id in run_ids:
        _show_state(run_id, client.cancel(run_id, force), as_json)


@_command
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--failed",
    is_flag=True,
    default=False,
    expose_value=False,
    help="Of a run with children only those that failed; so it is without this, too.",
)
def retry_command(client: Client, run_ids: tuple[str, ...], as_json: bool) -> None:
    """Run failed runs again; prints the state that each is in after that.

    Of a fan-out the tenants that failed are run again; a chain goes on at its failed steps.
    """
    for run_id in run_ids:
        _show_state(run_id, client.retry(run_id), as_json)


@_command
def reload_command(client: Client, as_json: bool) -> None:
    """Have the daemon read settings, tenants and job modules anew; exit 1 when it refuses them and keeps the old.

    New runs go to new workers with the new code; runs under way finish where they are.
    """
    now = client.reload()
    text = f"generation {now['generation']}  code {now['code_version'] or '-'}  jobs {now['jobs']}"
    click.echo(json.dumps(now) if as_json else text)


@_command
@_WAIT
@_TIMEOUT
def drain_command(client: Client, waits: bool, timeout: float | None, as_json: bool) -> None:
    """End the daemon once its runs have ended, which are asked to stop; to ask again changes nothing.

    What is queued waits for the next start. What has not obeyed after `drain_timeout` is cut.
    """
    _end(client, client.drain, waits, timeout, as_json)


@_command
@_WAIT
@_TIMEOUT
def stop_command(client: Client, waits: bool, timeout: float | None, as_json: bool) -> None:
    """Go one rung down the daemon's stop ladder, as SIGTERM does: drain, cut, now."""
    _end(client, client.stop, waits, timeout, as_json)


def _end(client: Client, ask: Callable[[], Any], waits: bool, timeout: float | None, as_json: bool) -> None:
    pid = client.status()["pid"]
    # Taken before it is asked: afterwards the number may be another process's.
    process = os.pidfd_open(pid)
    try:
        answer = ask()
        _die_of_ctrl_c()
        if waits and not select.select([process], [], [], timeout)[0]:
            raise TimeoutError(f"the daemon (pid {pid}) has not ended within {timeout:g} s")
    finally:
        os.close(process)
    click.echo(json.dumps(answer) if as_json else f"{'stopped' if waits else answer['state']}")


def _die_of_ctrl_c() -> None:
    """From here on. Python's own handler is heard after the call that waits for the daemon, if the signal came just
    before it: seconds later.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _show_state(run_id: str, state: str, as_json: bool) -> None:
    click.echo(json.dumps({"run_id": run_id, "state": state}) if as_json else f"{rendering.plain(run_id)}  {state}")


def _show_result(result: "JobResult", as_json: bool) -> None:
    from craft_easy_jobs.model import encode_result

    if as_json:
        # In ASCII, where nothing steers a terminal.
        click.echo(json.dumps(json.loads(encode_result(result))))
    else:
        reason = f" ({result.reason})" if result.reason else ""
        error = f": {result.error}" if result.error else ""
        click.echo(rendering.plain(f"{result.run_id}  {result.status}{reason}{error}"))


def _failed(result: "JobResult") -> int:
    return 0 if result.status == "completed" else 1
