"""The commands that are the daemon: serve and check. Their options are made from the fields of Settings."""

import gc
import inspect
import json
import os
import subprocess
import sys
from functools import cache, partial
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

import click
import msgspec

from craft_easy_jobd.errors import EX_CONFIG
from craft_easy_jobd.identity import Rights
from craft_easy_jobd.loading_settings import CONFIG_VARIABLE, PREFIX, flag_of, is_list, load_settings
from craft_easy_jobd.premises import premises
from craft_easy_jobd.settings import Settings

_METAVARS = {int: "N", float: "SECONDS"}
_SINGULAR = {"jobs": "MODULE", "allowed_users": "USER", "allowed_groups": "GROUP", "control_groups": "GROUP"}


class _SettingOption(click.Option):
    """Its help is made when it is shown: `serve` starts without."""

    def __init__(self, field: msgspec.structs.FieldInfo) -> None:
        super().__init__(
            [flag_of(field.name), field.name],
            multiple=is_list(field.name),
            metavar=_metavar(field.name, field.type),
        )
        self._default_text = _default_text(field.default)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.help = f"{setting_docs()[self.name or '']}{self._default_text}"
        return super().get_help_record(ctx)


def setting_options() -> list[click.Option]:
    """One option a setting; all are text here, so that one place reads and refuses values."""
    return [_SettingOption(field) for field in msgspec.structs.fields(Settings)]


@cache
def setting_docs() -> dict[str, str]:
    """The docstring below each field of Settings, in one line; Python does not keep them at run time."""
    import ast

    [body] = [node.body for node in ast.parse(inspect.getsource(Settings)).body if isinstance(node, ast.ClassDef)]
    docs = {}
    for field, text in pairwise(body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[name] = " ".join(doc.split())
    return docs


def _metavar(name: str, kind: Any) -> str:
    if is_list(name):
        return _SINGULAR[name]
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    plain = kind.__origin__ if hasattr(kind, "__metadata__") else kind
    return _METAVARS.get(plain, "PATH")


def _default_text(default: Any) -> str:
    if default == ():
        return " Repeatable."
    return (
        ""
        if default is None
        else f" [default: {default:g}]"
        if isinstance(default, float)
        else f" [default: {default}]"
    )


_CONFIG = click.Option(["--config"], metavar="FILE", help=f"Settings in TOML (${CONFIG_VARIABLE}).")
_EPILOG = f"Each setting may also stand in the file, or in the environment as {PREFIX}NAME; an option wins over both."


def _serve(config: str | None, **flags: Any) -> int:
    """Run the daemon in the foreground until it is stopped.

    SIGTERM or Ctrl-C: no new runs start, those under way are asked to stop and are waited for; the second cuts them,
    the third ends all now. SIGHUP: settings, tenants and job modules are read anew, as `reload` does.
    """
    load = partial(load_settings, config=config, environment=os.environ, flags=flags)
    settings = load()
    # Collections would find nothing among what is imported now, neither during the imports nor later.
    gc.disable()
    with premises(settings) as nursery:
        from craft_easy_jobd.supervisor import serve

        gc.freeze()
        gc.enable()
        return serve(settings, nursery, reread=load)


def _check(config: str | None, as_json: bool, **flags: Any) -> int:
    """Check settings and job modules, and start nothing.

    The modules are imported in a process of their own, as a worker does it. Exit codes: 0 all is well, 78 not.
    """
    settings = load_settings(config=config, environment=os.environ, flags=flags)
    Rights(settings)
    code, catalogue = _catalogue(settings.jobs)
    if code == 0 and as_json:
        click.echo(json.dumps({"settings": msgspec.to_builtins(settings), **catalogue}))
    elif code == 0:
        from craft_easy_jobd.rendering import jobs_table

        click.echo(jobs_table(catalogue["jobs"]))
        click.echo(f"settings and {len(catalogue['jobs'])} jobs are well", err=True)
    return EX_CONFIG if code else 0


def _catalogue(modules: tuple[str, ...]) -> tuple[int, Any]:
    """Exit code and document of the author's `list` in a child process, whose messages go to our stderr."""
    options = [part for module in modules for part in ("--jobs", module)]
    # The author's own environment must not add modules that the daemon would not load.
    environment = {name: value for name, value in os.environ.items() if name != "CRAFT_EASY_JOB_JOBS"}
    command = [sys.executable, "-m", "craft_easy_jobs", "list", "--json", *options]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else None


_JSON = click.Option(["--json", "as_json"], is_flag=True, default=False, help="Settings, jobs and chains as JSON.")

serve_command = click.Command(
    "serve", callback=_serve, params=[_CONFIG, *setting_options()], help=inspect.getdoc(_serve), epilog=_EPILOG
)
check_command = click.Command(
    "check", callback=_check, params=[_CONFIG, _JSON, *setting_options()], help=inspect.getdoc(_check), epilog=_EPILOG
)
