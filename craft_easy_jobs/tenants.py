"""The tenants that runs are for: who there is, who belongs to whom, and which of them a request concerns."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.errors import CraftEasyJobsError, TenantError, did_you_mean


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant; `parent`: the id of the one above it, None at a root."""

    id: str
    parent: str | None = None
    active: bool = True
    name: str = ""


class TenantDirectory:
    """All tenants as a forest; never changes.

    Each tenant's own flag says whether it is active: below an inactive one, others may be active.

    Raises:
        TenantError: a wrong type, an id twice, a parent that is no tenant, or tenants that are above each other.
    """

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self._tenants: dict[str, Tenant] = {}
        for tenant in tenants:
            _check(tenant)
            if tenant.id in self._tenants:
                raise TenantError(tenant.id, "is there twice; ids must be unique")
            self._tenants[tenant.id] = tenant
        self._children: dict[str | None, list[str]] = {}
        for tenant_id in sorted(self._tenants):
            self._children.setdefault(self._checked_parent(self._tenants[tenant_id]), []).append(tenant_id)
        self._tree = self._below(None)
        if len(self._tree) < len(self._tenants):
            self._refuse_cycle()

    def __len__(self) -> int:
        return len(self._tenants)

    def get(self, tenant_id: str) -> Tenant:
        """The tenant of this id.

        Raises:
            TenantError: there is none.
        """
        if tenant_id not in self._tenants:
            raise TenantError(tenant_id, f"unknown; {did_you_mean(tenant_id, list(self._tenants), 'known')}")
        return self._tenants[tenant_id]

    def require(self, tenant_id: str) -> Tenant:
        """As `get`, for a tenant to run for.

        Raises:
            TenantError: there is none, or it is not active.
        """
        tenant = self.get(tenant_id)
        if not tenant.active:
            raise TenantError(tenant_id, "is not active; activate it in the tenant directory, or leave it out")
        return tenant

    def descendants(self, tenant_id: str) -> list[str]:
        """The active tenants below this one, at every depth: depth first, siblings sorted by id."""
        self.get(tenant_id)
        return [tenant.id for _, tenant in self._below(tenant_id) if tenant.active]

    def active(self) -> list[str]:
        """All active tenants, depth first, siblings sorted by id."""
        return [tenant.id for _, tenant in self._tree if tenant.active]

    def tree(self) -> list[tuple[int, Tenant]]:
        """All tenants with their depth (0: a root), in the order in which a tree is drawn."""
        return list(self._tree)

    def _below(self, top: str | None) -> list[tuple[int, Tenant]]:
        found = []
        waiting = [(0, child) for child in reversed(self._children.get(top, []))]
        while waiting:
            depth, tenant_id = waiting.pop()
            found.append((depth, self._tenants[tenant_id]))
            waiting += [(depth + 1, child) for child in reversed(self._children.get(tenant_id, []))]
        return found

    def _checked_parent(self, tenant: Tenant) -> str | None:
        if tenant.parent is not None and tenant.parent not in self._tenants:
            hint = did_you_mean(tenant.parent, list(self._tenants), "known")
            raise TenantError(tenant.id, f"its parent {tenant.parent!r} is no tenant; {hint}")
        return tenant.parent

    def _refuse_cycle(self) -> None:
        reached = {tenant.id for _, tenant in self._tree}
        walk = [min(self._tenants.keys() - reached)]
        while (parent := self._tenants[walk[-1]].parent) is not None and parent not in walk:
            walk.append(parent)
        circle = walk[walk.index(str(parent)) :]
        raise TenantError(circle[0], f"is above itself: {' -> '.join([*circle, circle[0]])}")


def load_tenants(path: str | Path) -> TenantDirectory:
    """Read a `tenants.toml`: a table `[tenants.ID]` for each, with `parent`, `active` and `name` if need be.

    Raises:
        TenantError: names the file, and in it the line, the key or the tenant that is wrong.
    """
    import tomllib

    try:
        tables = tomllib.loads(Path(path).read_text("utf-8"))
        return TenantDirectory(_from_tables(tables))
    except (OSError, UnicodeDecodeError) as error:
        raise TenantError(None, f"cannot read the tenants in {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise TenantError(None, f"{path} is no TOML: {error}") from None
    except TenantError as error:
        raise TenantError(None, f"{path}: {error}") from None


def call_directory(place: str) -> TenantDirectory:
    """The directory that the callable at `module:name` returns: an iterable of Tenant, or of dicts with its fields.

    It may be async; it then runs on a loop of its own, so call this from a thread that has none.

    Raises:
        TenantError: names the place, and what is wrong with it or with what it returned.
    """
    from craft_easy_jobs.failures import describe
    from craft_easy_jobs.loading import load_object

    try:
        return TenantDirectory(_as_tenant(found) for found in _call(load_object(place)))
    except CraftEasyJobsError as error:
        raise TenantError(None, f"tenants of {place}: {error}") from None
    except Exception as error:
        raise TenantError(None, f"tenants of {place}: {describe(error)}") from error


def list_tenants(place: str) -> list[Tenant]:
    """The tenants of `call_directory`, checked, parents before their children."""
    return [tenant for _, tenant in call_directory(place).tree()]


def fan_out(
    options: JobOptions, tenant_id: str | None, all_tenants: bool, directory: TenantDirectory | None
) -> list[str] | None:
    """The tenants to have a child run each; None when the job is not `per_tenant`.

    `system`: the tenant if one is given, else every active one.

    Raises:
        TenantError: says what is missing, or which tenant is not there or not active.
    """
    where = f"job {options.name!r}"
    if not options.per_tenant:
        if all_tenants:
            raise TenantError(None, f"{where} is not per_tenant; all_tenants is for jobs that run once per tenant")
        return None
    if tenant_id is not None and all_tenants:
        raise TenantError(tenant_id, "give either a tenant_id or all_tenants")
    if tenant_id is not None:
        below = _descendants(tenant_id, directory)
        return [tenant_id, *below] if options.scope == "parent_tenant" else [tenant_id]
    if not all_tenants and options.scope != "system":
        raise TenantError(None, f"{where} has the scope {options.scope!r}; give a tenant_id, or ask for all_tenants")
    if directory is None:
        raise TenantError(None, f"{where} is to run for all tenants, but no tenant directory is configured")
    return directory.active()


def resolve(options: JobOptions, tenant_id: str | None, directory: TenantDirectory | None) -> list[str]:
    """`sub_tenant_ids` of a run that is no fan-out: the tenant's descendants if the scope is `parent_tenant`.

    Raises:
        TenantError: the scope needs a tenant, or has none, or the tenant is not there or not active.
    """
    where = f"job {options.name!r} has the scope {options.scope!r}"
    if tenant_id is None:
        if options.scope == "parent_tenant":
            raise TenantError(None, f"{where}; give the tenant_id of the parent")
        return []
    if options.scope == "system" and not options.per_tenant:
        raise TenantError(tenant_id, f"{where} and no tenant; leave the tenant_id out")
    below = _descendants(tenant_id, directory)
    return below if options.scope == "parent_tenant" else []


def concerning(options: JobOptions, tenant_id: str | None, all_tenants: bool) -> tuple[str | None, bool]:
    """What of a chain's `tenant_id` and `all_tenants` concerns the run of a step with these options.

    A chain may mix scopes: a system step runs without the chain's tenant, one that is not `per_tenant` but once.
    """
    if options.per_tenant:
        return tenant_id, all_tenants
    return (None if options.scope == "system" else tenant_id), False


def _descendants(tenant_id: str, directory: TenantDirectory | None) -> list[str]:
    if not tenant_id:
        raise TenantError(tenant_id, "a tenant_id is a non-empty string")
    if directory is None:
        return []
    directory.require(tenant_id)
    return directory.descendants(tenant_id)


def _check(tenant: Any) -> None:
    if not isinstance(tenant, Tenant):
        raise TenantError(None, f"a directory holds tenants, not {tenant!r}")
    if not isinstance(tenant.id, str) or not tenant.id:
        raise TenantError(None, f"the id of a tenant must be a non-empty string, not {tenant.id!r}")
    kinds = {"parent": (str | None, "a tenant's id"), "active": (bool, "true or false"), "name": (str, "a string")}
    for key, (kind, told) in kinds.items():
        value = getattr(tenant, key)
        if not isinstance(value, kind):
            raise TenantError(tenant.id, f"{key} must be {told}, not {value!r}")


_FIELDS = tuple(field.name for field in fields(Tenant))


def _from_tables(tables: dict[str, Any]) -> Iterable[Tenant]:
    for key in tables.keys() - {"tenants"}:
        raise TenantError(None, f"unknown key {key!r}; write a table [tenants.ID] for each tenant")
    listed = tables.get("tenants", {})
    if not isinstance(listed, dict):
        raise TenantError(None, "tenants must be tables: [tenants.ID]")
    for tenant_id, table in listed.items():
        if not isinstance(table, dict):
            raise TenantError(tenant_id, f"must be a table [tenants.{tenant_id}], not {table!r}")
        if "id" in table:
            raise TenantError(tenant_id, "unknown key 'id'; the id is the table's name")
        yield _as_tenant({"id": tenant_id, **table})


def _as_tenant(found: Any) -> Tenant:
    if isinstance(found, Tenant):
        return found
    if not isinstance(found, Mapping) or "id" not in found:
        raise TenantError(None, f"a tenant is a Tenant or a dict with an 'id', not {found!r}")
    for key in found.keys() - set(_FIELDS):
        raise TenantError(found["id"], f"unknown key {key!r}; a tenant has: {', '.join(_FIELDS)}")
    return Tenant(**found)


def _call(function: Any) -> Iterable[Any]:
    from inspect import isawaitable

    found = function()
    if isawaitable(found):
        import asyncio

        async def wait() -> Any:
            return await found

        found = asyncio.run(wait())
    if not isinstance(found, Iterable) or isinstance(found, str | Mapping):
        raise TenantError(None, f"it must return an iterable of tenants, not {found!r}")
    return found
