"""The tenant directory: what it refuses, whom it finds, and whom a run is for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.errors import TenantError
from craft_easy_jobs.tenants import (
    Tenant,
    TenantDirectory,
    call_directory,
    concerning,
    fan_out,
    load_tenants,
    resolve,
)

GROUP = TenantDirectory(
    [
        Tenant("zeta"),
        Tenant("north", parent="group"),
        Tenant("group", name="The group"),
        Tenant("south", parent="group", active=False),
        Tenant("oslo", parent="north"),
        Tenant("bergen", parent="north"),
        Tenant("rome", parent="south"),
    ]
)


def test_a_directory_is_a_forest() -> None:
    assert GROUP.active() == ["group", "north", "bergen", "oslo", "rome", "zeta"]
    assert GROUP.descendants("group") == ["north", "bergen", "oslo", "rome"]
    assert GROUP.descendants("oslo") == []
    assert [(depth, tenant.id) for depth, tenant in GROUP.tree()] == [
        (0, "group"),
        (1, "north"),
        (2, "bergen"),
        (2, "oslo"),
        (1, "south"),
        (2, "rome"),
        (0, "zeta"),
    ]
    assert GROUP.get("south").active is False
    assert len(GROUP) == 7


def test_a_directory_may_be_deep_and_wide() -> None:
    chain = [Tenant("t0"), *(Tenant(f"t{number}", parent=f"t{number - 1}") for number in range(1, 5000))]
    assert len(TenantDirectory(reversed(chain)).descendants("t0")) == 4999
    assert len(TenantDirectory(Tenant(f"t{number}") for number in range(10_000)).active()) == 10_000


@pytest.mark.parametrize(
    ("tenants", "told"),
    [
        ([Tenant("a"), Tenant("a")], "tenant 'a': is there twice; ids must be unique"),
        ([Tenant("a", parent="goup"), Tenant("group")], "'a': its parent 'goup' is no tenant; did you mean 'group'?"),
        ([Tenant("a", parent="a")], "tenant 'a': is above itself: a -> a"),
        ([Tenant("a", "c"), Tenant("b", "a"), Tenant("c", "b"), Tenant("0", "a")], "is above itself: "),
        ([Tenant("")], "the id of a tenant must be a non-empty string, not ''"),
        ([Tenant(3)], "the id of a tenant must be a non-empty string, not 3"),  # type: ignore[arg-type]
        ([Tenant("a", parent=3)], "tenant 'a': parent must be a tenant's id, not 3"),  # type: ignore[arg-type]
        ([Tenant("a", active="no")], "tenant 'a': active must be true or false, not 'no'"),  # type: ignore[arg-type]
        ([Tenant("a", name=None)], "tenant 'a': name must be a string, not None"),  # type: ignore[arg-type]
        (["a"], "a directory holds tenants, not 'a'"),
    ],
)
def test_a_wrong_directory_is_refused(tenants: list[Tenant], told: str) -> None:
    with pytest.raises(TenantError) as caught:
        TenantDirectory(tenants)
    assert told in str(caught.value)


def test_a_tenant_is_required() -> None:
    assert GROUP.require("oslo") == Tenant("oslo", parent="north")
    with pytest.raises(TenantError, match=r"^tenant 'osol': unknown; did you mean 'oslo'\?$") as caught:
        GROUP.require("osol")
    assert caught.value.tenant_id == "osol"
    with pytest.raises(TenantError, match=r"^tenant 'south': is not active; activate it"):
        GROUP.require("south")
    with pytest.raises(TenantError, match="unknown"):
        GROUP.descendants("gone")


def write(folder: Path, text: str) -> Path:
    file = folder / "tenants.toml"
    file.write_text(text)
    return file


def test_a_file_holds_a_table_for_each_tenant(tmp_path: Path) -> None:
    text = '[tenants.acme]\nname = "Acme"\n[tenants."a b"]\nparent = "acme"\nactive = false\n'
    directory = load_tenants(write(tmp_path, text))
    assert directory.tree() == [(0, Tenant("acme", name="Acme")), (1, Tenant("a b", parent="acme", active=False))]
    assert len(load_tenants(write(tmp_path, ""))) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[tenants.a]\nparent = \n", "tenants.toml is no TOML: Invalid value (at line 2, column 10)"),
        ("[tenants.a]\nparrent = 'b'\n", "tenants.toml: tenant 'a': unknown key 'parrent'; a tenant has: id, parent"),
        ("[tenants.a]\nid = 'b'\n", "tenants.toml: tenant 'a': unknown key 'id'"),
        ("[tenant.a]\n", "tenants.toml: unknown key 'tenant'; write a table [tenants.ID]"),
        ("tenants = ['a']\n", "tenants.toml: tenants must be tables"),
        ("tenants.a = 3\n", "tenants.toml: tenant 'a': must be a table"),
        ("[tenants.a]\nactive = 1\n", "tenants.toml: tenant 'a': active must be true or false, not 1"),
        ("[tenants.a]\nparent = 'b'\n", "tenants.toml: tenant 'a': its parent 'b' is no tenant; known: a"),
    ],
)
def test_a_wrong_file_is_refused(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(TenantError) as caught:
        load_tenants(write(tmp_path, text))
    assert told in str(caught.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(TenantError, match=r"cannot read the tenants in .*gone\.toml: .*No such file"):
        load_tenants(tmp_path / "gone.toml")
    (tmp_path / "latin.toml").write_bytes(b"[tenants.\xe9]")
    with pytest.raises(TenantError, match=r"cannot read the tenants in .*latin\.toml: "):
        load_tenants(tmp_path / "latin.toml")


SOURCE = """
from craft_easy_jobs.tenants import Tenant
def plain(): return [Tenant("a"), {"id": "b", "parent": "a", "active": False}]
async def later(): return plain()
def lazily(): yield from plain()
def wrong_key(): return [{"id": "a", "color": 3}]
def no_id(): return [{"name": "a"}]
def text(): return "abc"
def twice(): return ["a"]
def fails(): raise ConnectionError("no database")
def fails_later():
    yield Tenant("a")
    raise ConnectionError("no more")
constant = 3
"""


@pytest.mark.parametrize("name", ["plain", "later", "lazily"])
def test_a_callable_gives_tenants(name: str, project: Path) -> None:
    (project / "our_tenants.py").write_text(SOURCE)
    for module in ("our_tenants", "our_tenants.py"):
        directory = call_directory(f"{module}:{name}")
        assert directory.tree() == [(0, Tenant("a")), (1, Tenant("b", parent="a", active=False))]


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("wrong_key", "tenants of our_tenants:wrong_key: tenant 'a': unknown key 'color'"),
        ("no_id", "a tenant is a Tenant or a dict with an 'id', not {'name': 'a'}"),
        ("text", "it must return an iterable of tenants, not 'abc'"),
        ("twice", "a tenant is a Tenant or a dict with an 'id', not 'a'"),
        ("fails", "tenants of our_tenants:fails: ConnectionError: no database"),
        ("fails_later", "ConnectionError: no more"),
        ("constant", "'int' object is not callable"),
        ("gone", "jobs module 'our_tenants': it has no 'gone'"),
    ],
)
def test_a_wrong_callable_is_refused(place: str, told: str, project: Path) -> None:
    (project / "our_tenants.py").write_text(SOURCE)
    with pytest.raises(TenantError) as caught:
        call_directory(f"our_tenants:{place}")
    assert told in str(caught.value)


@pytest.mark.parametrize("place", ["gone_missing:plain", "plain", ":plain", "our_tenants:"])
def test_a_place_must_exist(place: str, project: Path) -> None:
    with pytest.raises(TenantError, match=f"^tenants of {place}: "):
        call_directory(place)


def options(scope: Any = "tenant", *, per_tenant: bool = True) -> JobOptions:
    return JobOptions("j", scope=scope, per_tenant=per_tenant)


@pytest.mark.parametrize(
    ("scope", "tenant_id", "all_tenants", "tenants"),
    [
        ("tenant", "group", False, ["group"]),
        ("tenant", None, True, GROUP.active()),
        ("parent_tenant", "group", False, ["group", "north", "bergen", "oslo", "rome"]),
        ("parent_tenant", None, True, GROUP.active()),
        ("system", None, False, GROUP.active()),
        ("system", None, True, GROUP.active()),
        ("system", "oslo", False, ["oslo"]),
    ],
)
def test_a_fan_out_is_for_the_tenants_of_its_scope(
    scope: str, tenant_id: str | None, all_tenants: bool, tenants: list[str]
) -> None:
    assert fan_out(options(scope), tenant_id, all_tenants, GROUP) == tenants


def test_without_a_directory_ids_are_taken_as_they_come() -> None:
    assert fan_out(options(), "any", False, None) == ["any"]
    assert fan_out(options("parent_tenant"), "any", False, None) == ["any"]
    assert resolve(options("parent_tenant", per_tenant=False), "any", None) == []


def test_a_job_that_is_not_per_tenant_does_not_fan_out() -> None:
    assert fan_out(options(per_tenant=False), "gone", False, GROUP) is None


def test_a_parents_run_has_its_descendants() -> None:
    assert resolve(options("parent_tenant", per_tenant=False), "group", GROUP) == ["north", "bergen", "oslo", "rome"]
    assert resolve(options(per_tenant=False), "group", GROUP) == []
    assert resolve(options(per_tenant=False), None, GROUP) == []
    assert resolve(options("system", per_tenant=False), None, GROUP) == []


Ask = Callable[[], object]


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: fan_out(options(), None, False, GROUP), "scope 'tenant'; give a tenant_id, or ask for all_tenants"),
        (lambda: fan_out(options("parent_tenant"), None, False, GROUP), "give a tenant_id"),
        (lambda: fan_out(options("system"), None, False, None), "no tenant directory is configured"),
        (lambda: fan_out(options(), None, True, None), "no tenant directory is configured"),
        (lambda: fan_out(options(), "oslo", True, GROUP), "give either a tenant_id or all_tenants"),
        (lambda: fan_out(options(), "osol", False, GROUP), "tenant 'osol': unknown; did you mean 'oslo'?"),
        (lambda: fan_out(options(), "south", False, GROUP), "tenant 'south': is not active"),
        (lambda: fan_out(options(), "", False, None), "a tenant_id is a non-empty string"),
        (lambda: fan_out(options(per_tenant=False), None, True, GROUP), "job 'j' is not per_tenant"),
        (lambda: resolve(options("parent_tenant", per_tenant=False), None, None), "give the tenant_id of the parent"),
        (lambda: resolve(options("system", per_tenant=False), "oslo", GROUP), "scope 'system' and no tenant"),
        (lambda: resolve(options(per_tenant=False), "osol", GROUP), "did you mean 'oslo'?"),
        (lambda: resolve(options(per_tenant=False), "south", GROUP), "is not active"),
    ],
)
def test_what_is_missing_is_told(ask: Ask, told: str) -> None:
    with pytest.raises(TenantError) as caught:
        ask()
    assert told in str(caught.value)


def test_a_chains_tenant_concerns_the_steps_that_have_one() -> None:
    assert concerning(options(), "a", True) == ("a", True)
    assert concerning(options(per_tenant=False), "a", True) == ("a", False)
    assert concerning(options("system", per_tenant=False), "a", True) == (None, False)
    assert concerning(options("system"), "a", False) == ("a", False)
