"""Who may submit and control, and who asked: decided on data, and by real users on real files and sockets."""

import errno
import json
import os
import pwd
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from craft_easy_jobd import control
from craft_easy_jobd.admission import Catalogue, Rules
from craft_easy_jobd.errors import SettingsError
from craft_easy_jobd.identity import People, Person, Rights
from craft_easy_jobd.intake import Claim, Intake
from craft_easy_jobd.ledger import RunSpec
from craft_easy_jobd.settings import Settings
from craft_easy_jobs.client import Client
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.wire import Catalogue as Announced
from tests.jobd.looking import claims_of
from tests.jobd.serving import serving
from tests.support.users import NOBODY, OTHERGROUP, SOMEBODY, SOMEGROUP, as_root, run_as

CATALOGUE = Catalogue(Announced(jobs=[JobOptions("echo")]))
ECHO = b'{"job": "echo"}'


def person(uid: int = SOMEBODY, *groups: int) -> Person:
    return Person(uid, f"uid:{uid}", frozenset(groups))


# -- people


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_system_s_users_are_known_by_name_and_groups() -> None:
    assert People().person(0).name == "root"
    me = pwd.getpwuid(os.geteuid())
    found = People().person(os.geteuid())
    assert (found.uid, found.name) == (os.geteuid(), me.pw_name)
    assert found.groups == set(os.getgrouplist(me.pw_name, me.pw_gid)) >= {me.pw_gid}


def test_users_without_a_name_are_named_by_number() -> None:
    assert People().person(3_999_999_999) == Person(3_999_999_999, "uid:3999999999", frozenset())


def test_a_user_who_is_put_into_a_group_later_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, look_ups = [1], []
    monkeypatch.setattr(os, "getgrouplist", lambda *_: look_ups.append(1) or list(groups))
    clock = Clock()
    people = People(30.0, clock=clock)
    assert people.known(0) is None
    assert people.person(0).groups == {1}
    groups.append(2)
    clock.now += 29
    assert people.person(0).groups == {1}
    assert (len(look_ups), people.known(0)) == (1, people.person(0))
    clock.now += 2
    assert people.known(0) is None
    assert people.person(0).groups == {1, 2}


# -- rights


@pytest.mark.parametrize(
    ("settings", "who", "controls", "asks", "submits"),
    [
        ({}, person(), False, False, True),
        ({}, person(0), True, True, True),
        ({}, person(os.geteuid()), True, True, True),
        ({"allowed_users": (str(SOMEBODY),)}, person(), False, True, True),
        ({"allowed_users": ("root", str(NOBODY))}, person(), False, False, False),
        ({"allowed_users": (str(NOBODY),)}, person(0), True, True, True),
        ({"allowed_users": (str(NOBODY),)}, person(os.geteuid()), True, True, True),
        ({"allowed_groups": (str(SOMEGROUP),)}, person(SOMEBODY, 7, SOMEGROUP), False, True, True),
        ({"allowed_groups": (str(SOMEGROUP),)}, person(SOMEGROUP, 7), False, False, False),
        ({"control_groups": (str(SOMEGROUP),)}, person(SOMEBODY, SOMEGROUP), True, True, True),
        ({"control_groups": (str(SOMEGROUP),)}, person(), False, False, True),
        (
            {"allowed_users": (str(NOBODY),), "control_groups": (str(SOMEGROUP),)},
            person(SOMEBODY, SOMEGROUP),
            True,
            True,
            True,
        ),
    ],
)
def test_who_may_what(settings: dict[str, Any], who: Person, controls: bool, asks: bool, submits: bool) -> None:
    rights = Rights(Settings(**settings))
    assert (rights.may_control(who), rights.may_ask(who), rights.may_submit(who)) == (controls, asks, submits)


@pytest.mark.parametrize("key", ["allowed_users", "allowed_groups", "control_groups"])
@pytest.mark.parametrize("name", ["no-such-name", "", "nul\0", "99999999999", "-1", "\u0661"])
def test_a_name_that_is_not_there_is_named_with_its_key(key: str, name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Rights(Settings(**{key: ("0", name)}))
    assert caught.value.key == key
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({}, {}, True),
        ({"allowed_users": ("0",)}, {"allowed_users": ("0", "1")}, True),
        ({"allowed_users": ("0",)}, {"allowed_users": ("1",), "control_groups": ("7",)}, True),
        ({}, {"allowed_users": ("0",)}, False),
        ({}, {"control_groups": ("7",)}, False),
        ({"allowed_groups": ("7",)}, {"allowed_groups": ("7", "8")}, False),
    ],
)
def test_who_may_can_change_while_folders_and_socket_stay_as_they_are(
    before: dict[str, Any], after: dict[str, Any], same: bool
) -> None:
    assert (Rights(Settings(**before)).doors == Rights(Settings(**after)).doors) is same


# -- folders and files


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, 0o750),
        ({"control_groups": (str(os.getegid()),)}, 0o750),
        ({"allowed_groups": (str(os.getegid()),)}, 0o3730),
        ({"allowed_groups": (str(os.getegid()), "0", "7")}, 0o3733),
        ({"allowed_users": (str(SOMEBODY),)}, 0o3733),
    ],
)
def test_incoming_is_open_to_whom_the_settings_name(tmp_path: Path, settings: dict[str, Any], mode: int) -> None:
    settings = {"root": str(tmp_path / "var"), **settings}
    before = os.umask(0o027)
    try:
        rights = Rights(Settings(**settings))
        Intake(Rules(Settings(**settings), rights, CATALOGUE), before_look=lambda: None).prepare()
    finally:
        os.umask(before)
    incoming = tmp_path / "var" / "spool" / "incoming"
    assert stat.S_IMODE(incoming.stat().st_mode) == mode
    assert incoming.stat().st_gid == os.getegid()
    assert sorted(each.name for each in incoming.parent.iterdir()) == ["claimed", "incoming", "rejected"]


def test_a_service_that_may_make_no_setgid_folder_makes_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.chmod

    def restricted(path: Any, mode: int, **options: Any) -> None:
        if mode & stat.S_ISGID:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(path, mode, **options)

    monkeypatch.setattr(os, "chmod", restricted)
    settings = Settings(root=str(tmp_path), allowed_groups=(str(os.getegid()),))
    Intake(Rules(settings, Rights(settings), CATALOGUE), before_look=lambda: None).prepare()
    assert stat.S_IMODE(settings.incoming_dir.stat().st_mode) == 0o1730


class Spool:
    """Folders of a daemon that lets somebody in, looked through when the test says so."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.settings = Settings(root=str(root), settle_seconds=0.0, **settings)
        self.incoming = self.settings.incoming_dir
        self.intake = Intake(Rules(self.settings, Rights(self.settings), CATALOGUE), before_look=lambda: None)
        root.chmod(0o755)
        before = os.umask(0o022)
        self.intake.prepare()
        os.umask(before)

    def look(self) -> list[Claim]:
        return claims_of(self.intake.incoming())

    def askers(self) -> list[str | None]:
        """Who asked for what was taken."""
        return [claim.run.requested_by for claim in self.look() if isinstance(claim.run, RunSpec)]

    def drop_as(self, uid: int, name: str = "request.json", mode: int = 0o644) -> Path:
        file = self.incoming / name
        file.write_bytes(ECHO)
        file.chmod(mode)
        os.chown(file, uid, uid)
        return file

    def reason(self, name: str = "request.json") -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.settings.rejected_dir / f"{name}.reason.json").read_bytes())
        return document


@pytest.fixture
def spool(short_dir: Path) -> Iterator[Spool]:
    return Spool(short_dir, allowed_groups=(str(SOMEGROUP),), allowed_users=(str(SOMEBODY), "root"))


@as_root
def test_a_request_of_somebody_who_may_not_is_answered(spool: Spool) -> None:
    spool.drop_as(NOBODY)
    assert spool.look() == []
    assert not list(spool.incoming.iterdir())
    reason = spool.reason()
    assert (reason["uid"], reason["field"]) == (NOBODY, "")
    assert reason["error"] == "belongs to nobody, who may not submit; see allowed_users and allowed_groups"
    spool.drop_as(SOMEBODY)
    spool.drop_as(0, "roots.json")
    assert sorted(filter(None, spool.askers())) == ["root", f"uid:{SOMEBODY}"]


@as_root
@pytest.mark.parametrize("mode", [0o666, 0o660])
def test_a_file_that_others_may_write_is_no_proof_of_who_asks(spool: Spool, mode: int) -> None:
    spool.drop_as(SOMEBODY, mode=mode)
    assert spool.look() == []
    assert f"(mode {mode:o})" in spool.reason()["error"]


def test_where_all_may_submit_it_matters_to_nobody(short_dir: Path) -> None:
    spool = Spool(short_dir)
    (spool.incoming / "request.json").write_bytes(ECHO)
    (spool.incoming / "request.json").chmod(0o666)
    assert spool.askers() == [pwd.getpwuid(os.geteuid()).pw_name]


@as_root
def test_a_second_name_of_somebody_s_file_borrows_nothing(spool: Spool, short_dir: Path) -> None:
    theirs = short_dir / "theirs.json"
    theirs.write_bytes(ECHO)
    os.chown(theirs, SOMEBODY, SOMEBODY)
    os.link(theirs, spool.incoming / "request.json")
    (spool.incoming / "link.json").symlink_to(theirs)
    for _ in range(2):
        assert spool.look() == []
    assert "2 hard links" in spool.reason()["error"]
    assert "a symbolic link" in spool.reason("link.json")["error"]


@as_root
def test_a_file_that_takes_the_place_of_another_while_it_is_opened_borrows_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = spool.drop_as(SOMEBODY)
    evil = spool.drop_as(NOBODY, ".evil")
    same = file.stat()
    os.utime(evil, ns=(same.st_atime_ns, same.st_mtime_ns))
    real = os.open

    def replaced_first(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if path == file.name and evil.exists():
            evil.rename(file)
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", replaced_first)
    assert spool.look() == []
    assert spool.look() == []
    assert spool.reason()["uid"] == NOBODY


# -- real users at incoming/

_DROP = """
from craft_easy_jobs.client import Client
import craft_easy_jobs.model, uuid_utils.compat
become()
os.umask(0o077)
print(Client(root=sys.argv[1]).drop({"job": "echo"}))
"""
_TRY = """
become()
folder, name = sys.argv[1:]
path = os.path.join(folder, name)
for what, attempt in {
    "list": lambda: os.listdir(folder),
    "read": lambda: open(path),
    "write": lambda: open(path, "r+"),
    "remove": lambda: os.unlink(path),
    "replace": lambda: os.rename(path, path + ".mine"),
}.items():
    try:
        attempt()
        print(what)
    except PermissionError:
        pass
"""


@as_root
@pytest.mark.parametrize("by_group", [True, False])
def test_a_submitter_drops_what_only_the_daemon_reads(short_dir: Path, by_group: bool) -> None:
    named = {"allowed_groups": (str(SOMEGROUP),)} if by_group else {"allowed_users": (str(SOMEBODY),)}
    spool = Spool(short_dir, **named)
    mine = {"uid": SOMEBODY, "gid": SOMEBODY, "groups": [SOMEGROUP]}
    run_id = run_as(_DROP, short_dir, **mine).strip()
    [file] = spool.incoming.iterdir()
    assert file.name.startswith(f"{run_id}."), run_id
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.stat().st_gid == (SOMEGROUP if by_group else os.getegid())
    assert run_as(_TRY, spool.incoming, file.name, **{**mine, "uid": NOBODY}) == ("read\n" if by_group else "")
    assert run_as(_TRY, spool.incoming, file.name, uid=NOBODY, gid=OTHERGROUP) == ""


@as_root
def test_who_may_not_write_there_is_told(short_dir: Path) -> None:
    Spool(short_dir, allowed_groups=(str(SOMEGROUP),))
    assert "cannot drop a request into" in run_as(_DROP, short_dir, uid=NOBODY, gid=NOBODY)


# -- real users at the control socket

_CALL = """
from craft_easy_jobs.client import Client
from craft_easy_jobs.errors import CraftEasyJobsError
become()
client, run_id = Client(root=sys.argv[1]), sys.argv[2]
for name, call in {
    "status": client.status,
    "runs": lambda: list(client.runs()),
    "submit": lambda: client.submit("export", run_id=run_id),
    "get": lambda: client.get(run_id)["requested_by"],
    "logs": lambda: list(client.logs(run_id)),
    "cancel": lambda: client.cancel(run_id),
    "others": lambda: client.get("others"),
    "cancel others": lambda: client.cancel("others"),
    "drain": client.drain,
    "stop": client.stop,
}.items():
    try:
        call()
        print(name)
    except CraftEasyJobsError as error:
        print(f"no {name} ({getattr(error, 'status', error)})")
"""
_ALL = ["status", "runs", "submit", "get", "logs", "cancel", "others", "cancel others", "drain", "stop"]
_OWN = [
    "no status (403)",
    "no runs (403)",
    *_ALL[2:6],
    "no others (404)",
    "no cancel others (404)",
    "no drain (403)",
    "no stop (403)",
]
_NONE = [f"no {name} (403)" for name in _ALL]


def calls(root: Path, uid: int, *groups: int) -> list[str]:
    return run_as(_CALL, root, f"of-{uid}", uid=uid, gid=uid, groups=groups).splitlines()


@as_root
@pytest.mark.parametrize(
    ("settings", "groups", "answers"),
    [
        ({"control_groups": (str(SOMEGROUP),)}, [SOMEGROUP], _ALL),
        ({"control_groups": (str(SOMEGROUP),)}, [OTHERGROUP], _NONE),
        ({"control_groups": (str(SOMEGROUP), str(OTHERGROUP))}, [7, OTHERGROUP], _ALL),
        ({"control_groups": (str(SOMEGROUP), str(OTHERGROUP))}, [7], _NONE),
        ({}, [SOMEGROUP], _NONE),
        ({"allowed_groups": (str(SOMEGROUP),)}, [SOMEGROUP], _OWN),
        ({"allowed_groups": (str(SOMEGROUP),), "control_groups": (str(OTHERGROUP),)}, [SOMEGROUP], _OWN),
        ({"allowed_users": (str(SOMEBODY),)}, [], _OWN),
        ({"allowed_users": (str(NOBODY),)}, [], _NONE),
        ({"allowed_users": (str(NOBODY),), "control_groups": (str(SOMEGROUP),)}, [SOMEGROUP], _ALL),
    ],
)
def test_who_may_call_what(short_dir: Path, settings: dict[str, Any], groups: list[int], answers: list[str]) -> None:
    short_dir.chmod(0o755)
    with serving(short_dir, **settings) as served:
        Client(root=str(short_dir)).submit("export", run_id="others")
        assert calls(short_dir, SOMEBODY, *groups) == answers
        if "submit" in answers:
            run = served.run(served.desk.ledger.get, f"of-{SOMEBODY}")
            assert run is not None
            assert run.spec.requested_by == f"uid:{SOMEBODY}"


def test_the_socket_is_for_one_group_or_left_to_the_check(short_dir: Path) -> None:
    group = str(os.getegid())
    for settings, mode in (
        ({}, 0o660),
        ({"control_groups": (group,)}, 0o660),
        ({"control_groups": (group,), "allowed_groups": (group,)}, 0o660),
        ({"control_groups": (group,), "allowed_groups": ("7",)}, 0o666),
        ({"allowed_users": (str(SOMEBODY),)}, 0o666),
    ):
        with serving(short_dir, **settings) as served:
            assert stat.S_IMODE(served.socket.stat().st_mode) == mode, settings


@as_root
def test_a_name_service_that_hangs_holds_up_nobody_else(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_dir.chmod(0o755)
    monkeypatch.setattr(control, "_LOOK_UP_SECONDS", 0.2)
    goes_on = threading.Event()
    real = pwd.getpwuid
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (uid == 0 or goes_on.wait(30), real(uid))[1])
    with serving(short_dir, allowed_users=(str(SOMEBODY),)) as served:
        assert served.get("/v1/status")["state"] == "running"
        assert calls(short_dir, NOBODY)[0] == "no status (503)"
        assert served.get("/v1/status")["state"] == "running"
        goes_on.set()
