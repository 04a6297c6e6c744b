"""The power goes while requests come in and results go out; what was acknowledged before is there after it."""

import os

import pytest

from craft_easy_jobs.model import decode_request
from tests.faults.book import workplace
from tests.faults.mounts import disk, require_mounts
from tests.faults.power import PowerCuts
from tests.faults.scale import LANES, figures, scaled, side_by_side, whole
from tests.support.users import NOBODY, run_as

pytestmark = [whole, pytest.mark.usefixtures("_mounts")]

CUTS = scaled(20, 500)


@pytest.fixture(scope="module")
def _mounts() -> None:
    require_mounts()


def cut_again_and_again(number: int) -> tuple[int, list[str]]:
    with disk(64) as made, workplace() as notes:
        cuts = PowerCuts(number, made, notes)
        try:
            for _ in range(CUTS // LANES + 1):
                if wrong := cuts.cycle():
                    return len(cuts.book.owed), wrong
            return len(cuts.book.owed), cuts.settle()
        finally:
            cuts.close()


def test_power_cuts_lose_double_and_tear_nothing() -> None:
    outcomes = side_by_side(cut_again_and_again, range(LANES))
    owed = sum(requests for requests, _ in outcomes)
    wrong = [each for _, lane_wrong in outcomes for each in lane_wrong]
    cuts = LANES * (CUTS // LANES + 1)
    figures.append(f"power cuts: {cuts}, {owed} requests acknowledged before them, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)


_DROP = """
from craft_easy_jobs.client import Client
import craft_easy_jobs.model, uuid_utils.compat
become()
print(Client(root=sys.argv[1]).drop({"job": "count"}))
"""


def test_what_was_dropped_where_nobody_can_list_is_there_after_a_power_cut() -> None:
    with disk(32) as made:
        incoming = made.folder / "var" / "spool" / "incoming"
        incoming.mkdir(parents=True)
        incoming.chmod(0o3733)
        incoming.parents[3].chmod(0o755)
        os.sync()
        run_id = run_as(_DROP, made.folder / "var", uid=NOBODY, gid=NOBODY).strip()
        made.cut_power()
        made.unmount()
        made.mount()
        [file] = incoming.iterdir()
        assert file.name.startswith(f"{run_id}."), run_id
        assert decode_request(file.read_bytes()).run_id == run_id
