"""craft-easy-jobd: run the daemon, and talk to it. A command imports only what it needs."""

import sys
from importlib import import_module

import click

from craft_easy_jobs import __version__
from craft_easy_jobs.errors import ApiError, CraftEasyJobsError, DaemonUnavailableError

PROGRAM = "craft-easy-jobd"
EXIT_FAILED, EXIT_NO_DAEMON, EXIT_NO_SUCH_RUN, EXIT_TIMED_OUT, EXIT_INTERRUPTED = 1, 3, 4, 124, 130

_DAEMON, _CLIENT = "craft_easy_jobd.daemon_cli", "craft_easy_jobd.client_cli"
_COMMANDS = {
    "serve": _DAEMON,
    "check": _DAEMON,
    "status": _CLIENT,
    "jobs": _CLIENT,
    "chains": _CLIENT,
    "tenants": _CLIENT,
    "retry": _CLIENT,
    "submit": _CLIENT,
    "list": _CLIENT,
    "show": _CLIENT,
    "logs": _CLIENT,
    "wait": _CLIENT,
    "cancel": _CLIENT,
    "reload": _CLIENT,
    "drain": _CLIENT,
    "stop": _CLIENT,
}


class _Commands(click.Group):
    """The commands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), f"{cmd_name}_command")
            return command
        return None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Run the job daemon, and talk to one that runs.

    Data goes to stdout, messages to stderr. Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 no daemon answers, 4 no such
    run, 77 not allowed, 78 wrong settings, 124 timed out.
    """


def main() -> None:
    """Run the command line; an error is one line on stderr and an exit code."""
    sys.exit(_run())


def _run() -> int:
    for stream in (sys.stdout, sys.stderr):
        # What jobs write may not exist in the terminal's encoding.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        return cli.main(prog_name=PROGRAM, standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
    except TimeoutError as error:
        return _fail(str(error), EXIT_TIMED_OUT)
    except CraftEasyJobsError as error:
        return _fail(str(error), exit_code(error))


def exit_code(error: CraftEasyJobsError) -> int:
    """What the command ends with after this error."""
    if isinstance(error, DaemonUnavailableError):
        return EXIT_NO_DAEMON
    if isinstance(error, ApiError):
        return {403: 77, 404: EXIT_NO_SUCH_RUN}.get(error.status, EXIT_FAILED)
    return getattr(error, "exit_code", EXIT_FAILED)


def _fail(message: str, code: int) -> int:
    from craft_easy_jobd.rendering import plain

    click.echo(f"{PROGRAM}: {plain(message)}", err=True)
    return code


if __name__ == "__main__":
    main()
