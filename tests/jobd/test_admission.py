"""What becomes of a request: a run as the job's options say, or a refusal that names the key."""

import json
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_easy_jobd.admission import Catalogue, admit
from craft_easy_jobd.ledger import RunSpec
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.errors import DefinitionError, RequestError
from craft_easy_jobs.model import Request, decode_request
from craft_easy_jobs.run_ids import new_run_id
from craft_easy_jobs.wire import Catalogue as Announced

PERIOD = {"period": {"type": "string", "pattern": "^\\d{4}-\\d{2}$"}, "size": {"type": "integer", "minimum": 1}}

CATALOGUE = Catalogue(
    Announced(
        jobs=[
            JobOptions("echo"),
            JobOptions("settlement", params_schema=PERIOD, isolation="process", on_interrupt="fail"),
            JobOptions("rollup", scope="parent_tenant"),
            JobOptions("sweep", scope="system"),
        ],
        chains={"month-end": ["settlement", "sweep"]},
        code_version="v1",
    )
)


def admitted(**fields: Any) -> RunSpec:
    return admit(Request(**fields), CATALOGUE, run_id="r1", requested_by="ada")


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        admitted(**fields)
    return caught.value


def test_a_run_takes_what_the_request_asks_for() -> None:
    moment = datetime(2026, 4, 5, 10, 30, tzinfo=UTC)
    spec = admitted(job="echo", params={"a": [1, None]}, tenant_id="t1", priority=7, not_before=moment)
    assert spec == RunSpec(
        run_id="r1",
        job="echo",
        params=b'{"a":[1,null]}',
        tenant_id="t1",
        priority=7,
        not_before=moment.timestamp(),
        requested_by="ada",
    )


def test_a_run_takes_what_its_job_declares() -> None:
    spec = admitted(job="settlement", params={"period": "2026-04"})
    assert (spec.scope, spec.isolation, spec.on_interrupt) == ("tenant", "process", "fail")
    assert admitted(job="rollup", tenant_id="t1").scope == "parent_tenant"


def test_a_moment_before_1970_is_a_moment_too() -> None:
    """Zero seconds are not none."""
    assert admitted(job="echo", not_before=datetime(1970, 1, 1, tzinfo=UTC)).not_before == 0.0


def test_an_unknown_job_is_refused_with_the_one_that_was_meant() -> None:
    error = refused(job="setlement")
    assert error.field == "job"
    assert "'setlement'" in error.problem
    assert "did you mean 'settlement'?" in error.problem


def test_params_are_refused_by_path_with_all_problems() -> None:
    error = refused(job="settlement", params={"period": "April", "size": 0})
    assert error.field == "params.period"
    assert "'April' does not match" in error.problem
    assert "params.size: 0 is less than the minimum of 1" in error.problem


def test_params_go_unchecked_when_the_request_says_so() -> None:
    spec = admitted(job="settlement", params={"period": "April"}, validate=False)
    assert not spec.validate
    assert spec.params == b'{"period":"April"}'


def test_a_system_job_has_no_tenant() -> None:
    assert admitted(job="sweep").tenant_id is None
    assert admitted(job="sweep").scope == "system"
    error = refused(job="sweep", tenant_id="t1")
    assert error.field == "tenant_id"
    assert "'system'" in error.problem


def test_a_catalogue_refuses_a_schema_that_is_none() -> None:
    broken = JobOptions("broken", params_schema={"type": "object", "properties": {"a": {"type": "no-type"}}})
    with pytest.raises(DefinitionError, match="broken"):
        Catalogue(Announced(jobs=[broken]))


def test_jobs_without_schemas_do_not_load_the_validator() -> None:
    """It takes longer to import than the rest of the daemon's start."""
    program = (
        "import sys; from craft_easy_jobd.admission import Catalogue;"
        "from craft_easy_jobs.definition import JobOptions;"
        "from craft_easy_jobs.wire import Catalogue as Announced; Catalogue(Announced(jobs=[JobOptions('a')]));"
        "print([m for m in ('jsonschema', 'craft_easy_jobs.params') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_run_ids_are_uuids_that_sort_as_they_were_made() -> None:
    ids = [new_run_id() for _ in range(10_000)]
    assert sorted(set(ids)) == ids
    assert uuid.UUID(ids[0]).version == 7


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(params=st.dictionaries(st.text(), JSON, max_size=5))
def test_params_come_through_as_they_are(params: dict[str, Any]) -> None:
    text = json.dumps({"job": "echo", "params": params})
    try:
        request = decode_request(text.encode())
    except RequestError:
        return
    assert json.loads(admit(request, CATALOGUE, run_id="r", requested_by=None).params) == json.loads(text)["params"]
