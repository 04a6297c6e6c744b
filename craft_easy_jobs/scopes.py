"""The three scopes of a job: which tenants a run is for."""

from typing import Literal

Scope = Literal["tenant", "parent_tenant", "system"]
"""`tenant`: one tenant; `parent_tenant`: a tenant and all its descendants; `system`: no tenant at all."""

SCOPES: tuple[Scope, ...] = ("tenant", "parent_tenant", "system")
