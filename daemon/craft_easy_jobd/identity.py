"""Who somebody is to the system, and what the settings let them do here.

Whoever controls the daemon may do everything: root, the daemon's own user, members of `control_groups`. While
`allowed_users` and `allowed_groups` are empty, whoever can write into incoming/ may submit. Else those who are named
may, by file and by socket, and on the socket they see and cancel their own runs.
"""

import grp
import os
import pwd
import socket
import struct
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from craft_easy_jobd.errors import SettingsError
from craft_easy_jobd.settings import Settings

# A user who is put into a group, or taken out of it, is seen as such after so long.
AGE_SECONDS = 30.0
_MOST_PEOPLE = 10_000

# asm-generic/socket.h; Python has no name for it.
_SO_PEERGROUPS = 59
# As many as Python's getsockopt takes; of a user in more groups than these 256 the group database has the others.
_GROUPS_BYTES = 1024
_LARGEST_ID = 2**32 - 2


class Person(NamedTuple):
    """A user, with the numbers of all groups that they are in."""

    uid: int
    name: str
    groups: frozenset[int]


class People:
    """The users of the system, each looked up once in `max_age` seconds.

    May be used from any thread. A look-up takes as long as the name service does, which may be a server far away.
    """

    def __init__(self, max_age: float = AGE_SECONDS, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_age = max_age
        self._clock = clock
        self._known: dict[int, tuple[float, Person]] = {}

    def known(self, uid: int) -> Person | None:
        """The user if they were looked up lately; never waits."""
        looked_up, person = self._known.get(uid, (0.0, None))
        return person if person and self._clock() < looked_up + self._max_age else None

    def person(self, uid: int) -> Person:
        """The user, looked up unless that was done lately."""
        if person := self.known(uid):
            return person
        if len(self._known) >= _MOST_PEOPLE:
            self._known.clear()
        person = _look_up(uid)
        self._known[uid] = (self._clock(), person)
        return person


def _look_up(uid: int) -> Person:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Person(uid, f"uid:{uid}", frozenset())
    return Person(uid, entry.pw_name, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))


class Rights:
    """What the settings let whom do.

    Raises:
        SettingsError: names the key and the name of a user or a group that is not there.
    """

    def __init__(self, settings: Settings, people: People | None = None) -> None:
        self.people = people or People()
        self._users = _numbers("allowed_users", settings.allowed_users, _user_number)
        self._groups = _numbers("allowed_groups", settings.allowed_groups, _group_number)
        self._controlling = _numbers("control_groups", settings.control_groups, _group_number)

    @property
    def doors(self) -> tuple[object, ...]:
        """What decides how folders and the control socket are made, which is done once."""
        return self.lets_others_in, self.socket_groups, self.incoming

    @property
    def restricted(self) -> bool:
        """Whether not everybody may submit who can write into incoming/."""
        return bool(self._users or self._groups)

    @property
    def lets_others_in(self) -> bool:
        """Whether anybody but root and the daemon's own user has to get at incoming/ or at the control socket."""
        return self.restricted or bool(self._controlling)

    def may_control(self, person: Person) -> bool:
        """Whether they may do all that the control socket offers."""
        return person.uid in (0, os.geteuid()) or bool(person.groups & self._controlling)

    def may_submit(self, person: Person) -> bool:
        """Whether their requests are taken."""
        return not self.restricted or self._is_named(person) or self.may_control(person)

    def may_ask(self, person: Person) -> bool:
        """Whether they may submit on the control socket, and see and cancel what they asked for."""
        return self._is_named(person) or self.may_control(person)

    def _is_named(self, person: Person) -> bool:
        return person.uid in self._users or bool(person.groups & self._groups)

    @property
    def socket_groups(self) -> frozenset[int] | None:
        """The groups that must get at the control socket, None when users must who are in no group of the settings."""
        return None if self._users else self._controlling | self._groups

    @property
    def incoming(self) -> tuple[int, int | None]:
        """Mode and group of incoming/ when the daemon makes it; None: the daemon's own group.

        A file that is dropped gets the folder's group and stays its owner's: nobody else can list, replace or remove
        it. A folder has one group, so for several, or for users, everybody may write and the check of the owner
        decides; the folder's group is then the daemon's own, so that submitters cannot read each other's files.
        """
        if not self.restricted:
            return 0o770, None
        if len(self._groups) == 1 and not self._users:
            return 0o3730, next(iter(self._groups))
        return 0o3733, None


def _user_number(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _group_number(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _numbers(key: str, names: Iterable[str], look_up: Callable[[str], int]) -> frozenset[int]:
    return frozenset(_number(key, name, look_up) for name in names)


def _number(key: str, name: str, look_up: Callable[[str], int]) -> int:
    """The number that a name stands for; a name of digits is one already."""
    if name.isascii() and name.isdecimal() and len(name) < 11 and int(name) <= _LARGEST_ID:
        return int(name)
    try:
        return look_up(name)
    except (KeyError, ValueError):
        kind = "user" if look_up is _user_number else "group"
        problem = f"there is no {kind} {name!r}; make the {kind} or take the name out"
        raise SettingsError("settings", key, problem) from None


class Peer(NamedTuple):
    """Who is at the other end of a unix socket, as the kernel knows since they connected."""

    uid: int
    groups: frozenset[int]


def peer_of(sock: socket.socket) -> Peer:
    """The credentials of whoever connected. The process may be another one's by now, so its number is not told."""
    _, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(uid, frozenset((gid, *_more_groups(sock))))


def _more_groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return ()
    return struct.unpack(f"{len(data) // 4}I", data)
