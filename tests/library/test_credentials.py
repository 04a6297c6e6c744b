"""`ctx.credential(name)`: secrets from a folder, and nowhere else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from craft_easy_jobs import JobContext, JobRunner, chain, job
from craft_easy_jobs.chaining import ChainStep
from craft_easy_jobs.definition import Registry
from craft_easy_jobs.errors import CredentialError

SECRET = "s3cr3t-Ünïcode\n"

JOBS = """
from craft_easy_jobs import ChainStep, JobContext, chain, job

@job(name="reads")
async def reads(ctx: JobContext) -> int:
    return len(ctx.credential("db-password"))

@job(name="asks-for-another")
async def asks_for_another(ctx: JobContext) -> None:
    ctx.credential("db-password")
    ctx.credential("mail")

chain("both", steps=[ChainStep("reads")])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "db-password").write_text(SECRET)
    return folder


def context(folder: Path | None) -> JobContext:
    return JobContext("r1", "a", credentials=folder)


def problem(folder: Path | None, name: str) -> str:
    with pytest.raises(CredentialError) as caught:
        context(folder).credential(name)
    assert caught.value.name == name
    return str(caught.value)


def test_a_credential_is_the_text_of_its_file_as_it_is_now(folder: Path) -> None:
    ctx = context(folder)
    assert ctx.credential("db-password") == SECRET
    (folder / "db-password").write_text(" another ")
    assert ctx.credential("db-password") == " another "


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../credentials/db-password", "a b", "a\0", "å", "x" * 256])
def test_a_name_cannot_leave_the_folder(folder: Path, name: str) -> None:
    assert "letters, digits" in problem(folder, name)


def test_who_has_no_folder_hears_how_to_give_one() -> None:
    text = problem(None, "db-password")
    assert text.startswith("credential 'db-password': there is no folder of credentials")
    assert "LoadCredential=db-password:/path/of/file" in text
    assert "--credentials DIR" in text


def test_a_name_that_is_not_there_is_told_with_those_that_are(folder: Path) -> None:
    assert problem(folder, "db-pasword").endswith("did you mean 'db-password'?")
    (folder / "smtp").write_text("x")
    (folder / "more").mkdir()
    assert problem(folder, "token").endswith(f"there is none in {folder}; there are: db-password, smtp")
    assert "the folder cannot be read: No such file" in problem(folder / "nowhere", "token")


def test_what_is_no_text_file_is_refused_without_showing_it(folder: Path) -> None:
    (folder / "key").write_bytes(b"hunter2\xff")
    with pytest.raises(CredentialError, match="is no UTF-8 text; encode it") as caught:
        context(folder).credential("key")
    assert "hunter2" not in str(caught.value)
    # Whoever shows causes and contexts, or logs their arguments, would show the secret.
    assert caught.value.__context__ is caught.value.__cause__ is None
    (folder / "folder").mkdir()
    assert "cannot be read: " in problem(folder, "folder")
    os.mkfifo(folder / "pipe")
    assert "cannot be read: not a regular file" in problem(folder, "pipe")


def test_a_secret_is_in_no_repr(folder: Path) -> None:
    ctx = context(folder)
    ctx.credential("db-password")
    assert SECRET.strip() not in f"{ctx!r} {vars(ctx)}"


async def test_runs_in_this_process_are_given_the_folder(fresh_registry: Registry, folder: Path) -> None:
    @job(name="reads", per_tenant=False)
    async def reads(ctx: JobContext) -> int:
        return len(ctx.credential("db-password"))

    chain("one", steps=[ChainStep("reads")])
    result = await JobRunner(credentials=folder).run("reads")
    assert result.result == len(SECRET)
    result = await JobRunner(credentials=folder).run_chain("one")
    assert result.status == "completed", result.error


class TestCommand:
    """`craft-easy-job run`."""

    @pytest.fixture
    def jobs(self, tmp_path: Path) -> Path:
        path = tmp_path / "secret_jobs.py"
        path.write_text(JOBS)
        return path

    def run(self, *args: str, **environment: str) -> tuple[dict[str, Any], str]:
        command = [sys.executable, "-m", "craft_easy_jobs", *args, "--json"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CRAFT_EASY_JOB_")}
        done = subprocess.run(
            command, env=kept | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
        )
        assert SECRET.strip() not in done.stdout + done.stderr
        return json.loads(done.stdout), done.stderr

    def test_an_option_or_the_environment_gives_the_folder(self, jobs: Path, folder: Path) -> None:
        for given, environment in (
            (["--credentials", str(folder)], {}),
            ([], {"CRAFT_EASY_JOB_CREDENTIALS": str(folder)}),
            ([], {"CREDENTIALS_DIRECTORY": str(folder)}),
        ):
            result, _ = self.run("run", "reads", "--jobs", str(jobs), *given, **environment)
            assert result["result"] == len(SECRET)
        result, _ = self.run("chain", "run", "both", "--jobs", str(jobs), "--credentials", str(folder))
        assert result["status"] == "completed"

    def test_a_failure_is_told_without_the_secret(self, jobs: Path, folder: Path) -> None:
        result, _ = self.run("run", "asks-for-another", "--jobs", str(jobs), "--credentials", str(folder), "-v")
        assert (result["status"], result["reason"]) == ("failed", "exception")
        assert "credential 'mail': there is none in" in result["error"]
        assert SECRET.strip() not in json.dumps(result, ensure_ascii=False)
