"""What a real journal has of the daemon: its events, and a run from its start to its end."""

import json
from typing import Any

from craft_easy_jobd.events import MESSAGE_IDS, Event
from tests.support.machine import needed
from tests.support.service import SPOOL, SUBMITTER, UNIT, Service
from tests.support.waiting import wait_until

pytestmark = needed()

_EVIL = "acme\nPRIORITY=0\n\x1b[31mred"


def entries(service: Service, *matches: str) -> list[dict[str, Any]]:
    told = service.machine.journal(f"--unit={UNIT}", "--output=json", *matches)
    return [json.loads(line) for line in told.splitlines()]


def events(found: list[dict[str, Any]]) -> list[str | None]:
    names = {number: event for event, number in MESSAGE_IDS.items()}
    return [names.get(each.get("MESSAGE_ID", "")) for each in found]


def test_the_journal_shows_one_run(service: Service) -> None:
    service.systemctl("start")
    run = service.submit("obedient", "--tenant-id", _EVIL)
    wait_until(lambda: entries(service, f"JOB_RUN_ID={run}"), every=0.2)
    service.command("cancel", run)
    service.result(run)
    found = wait_until(lambda: [each] if len(each := entries(service, f"JOB_RUN_ID={run}")) > 1 else None)[0]
    assert events(found) == [Event.RUN_STARTED, Event.RUN_COMPLETED]
    for each in found:
        assert (each["JOB_NAME"], each["ATTEMPT"], each["PRIORITY"]) == ("obedient", "1", "6")
        assert each["TENANT_ID"] == "acme\\nPRIORITY=0\\n\\x1b[31mred"
        assert each["SYSLOG_IDENTIFIER"] == "craft-easy-jobd"
        assert each["CODE_FILE"].endswith("endings.py")
    assert found[1]["REASON"] == "stopped"
    assert entries(service, "TENANT_ID=acme\\nPRIORITY=0\\n\\x1b[31mred") == found


def test_the_journal_finds_events(service: Service) -> None:
    service.systemctl("start")
    bad = f"cat >{SPOOL}/incoming/\"$(printf 'a\\nMESSAGE=b')\""
    service.machine.run("sh", "-c", bad, user=SUBMITTER, stdin="[]")
    rejected = f"MESSAGE_ID={MESSAGE_IDS[Event.REQUEST_REJECTED]}"
    [entry] = wait_until(lambda: entries(service, rejected), every=0.2)
    assert entry["MESSAGE"].startswith(r'request rejected file="a\nMESSAGE=b" problem=')
    assert entry["MESSAGE"].endswith(f" user={SUBMITTER}")
    assert entry["PRIORITY"] == "4"
    service.systemctl("stop")
    for event in (Event.READY, Event.STOPPING):
        assert set(events(entries(service, f"MESSAGE_ID={MESSAGE_IDS[event]}"))) == {event}
