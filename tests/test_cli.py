"""The command line as people use it: real processes, an embedded database in a directory of its own."""

from __future__ import annotations

import argparse
import getpass
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app import models, queries, stitcher
from app.cli import LATER, base
from app.ledger import jobs, steps, workers
from app.postgres import Cluster
from app.types import Done, Failed, GateResult, HandBack
from tests import spine

ROOT = Path(__file__).resolve().parent.parent
ACTS = (
    "audit",
    "blame",
    "serve",
    "run",
    "engine",
    "migrate",
    "jobs",
    "show",
    "cancel",
    "retry",
    "submit",
    "demo",
    "continue",
    "pause",
    "resume",
    "wip",
    "effects",
    "doctor",
    "backup",
    "restore",
    "gc",
    "reconcile",
)


@dataclass
class Home:
    """Where the command line is used: its data directory, and the server that runs there."""

    path: Path
    cluster: Cluster

    def mosaic(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return mosaic(self.path, *words, **more)


def environment(path: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(path), "MOSAIC_DATA_DIR": str(path / "var"), **more}


def mosaic(path: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *words],
        cwd=ROOT,
        env=environment(path, **more),
        capture_output=True,
        text=True,
        timeout=120,
    )


def failed(ran: subprocess.CompletedProcess[str], code: str, *words: str) -> None:
    """Exit 1, nothing on standard output, one message with its stable code on the other."""
    assert (ran.returncode, ran.stdout) == (1, ""), ran
    assert ran.stderr.startswith("mosaic: ") and ran.stderr.endswith(f" ({code})\n") and ran.stderr.count("\n") == 1
    assert all(word in ran.stderr for word in words), ran.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    path = tmp_path_factory.mktemp("home")
    assert mosaic(path, "migrate").returncode == 0  # runs the server itself, for the time that it needs
    with Cluster(path / "var").opened() as cluster:
        models.bind(cluster.app_url)
        with models.db.connection_context():
            yield Home(path, cluster)
        models.db.close_all()


def gate(row: dict[str, object]) -> Done | Failed:
    """Red in the first round, green in the second."""
    green = row["round"] == 2
    result = GateResult(
        "test", "test", "make test", True, green, 0 if green else 1, 1.26, "exit code 0" if green else "1 failed", "out"
    )
    output = {"required": True, "receipt": {name: getattr(result, name) for name in result.__slots__}}
    return Done(output=output) if green else Failed("gate_red", "1 failed", output=output)


# ---------------------------------------------------------------- wrong use, and what is not there yet


def test_help_lists_every_command_with_a_word_about_it(tmp_path: Path) -> None:
    ran = mosaic(tmp_path, "--help")
    assert ran.returncode == 0 and ran.stderr == ""
    listed = dict(re.findall(r"^    (\w+)\s+(\S.*)$", ran.stdout, re.MULTILINE))
    assert set(listed) == {*ACTS, *LATER}
    assert {listed[name] for name in LATER} == {"comes with a later version"}


@pytest.mark.parametrize("words", [(), ("nonsense",), ("show", "x"), ("jobs", "--limit", "-1")])
def test_wrong_use_is_exit_2_with_the_usage(tmp_path: Path, words: tuple[str, ...]) -> None:
    ran = mosaic(tmp_path, *words)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("usage: mosaic") and "error: " in ran.stderr and "Traceback" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_count_is_a_number_from_one_up() -> None:
    assert [base.count(text) for text in ("1", "20", "999999")] == [1, 20, 999999]
    for text in ("0", "-1", "", "1000000", "9" * 5000, "1.5", "x", "²"):
        with pytest.raises(argparse.ArgumentTypeError):
            base.count(text)


def test_the_verbs_of_later_parts_say_so(tmp_path: Path) -> None:
    for words in (["watch", "7"], ["keys", "add", "--remote"], ["report", "--since", "1d"]):
        ran = mosaic(tmp_path, *words)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr == f"mosaic: `{words[0]}` is not there yet; it comes with a later version.\n"


def test_every_wrong_setting_is_named_at_once(tmp_path: Path) -> None:
    ran = mosaic(tmp_path, "jobs", MOSAIC_LISTEN="nonsense", MOSAIC_MODEL_API="telepathy")
    assert ran.returncode == 1 and ran.stderr.startswith(
        "mosaic: Mosaic cannot start as `cli`: 2 settings need attention."
    )
    assert "MOSAIC_LISTEN" in ran.stderr and "MOSAIC_MODEL_API" in ran.stderr


# ---------------------------------------------------------------- the database


def test_without_a_database_it_says_what_makes_one(tmp_path: Path) -> None:
    failed(mosaic(tmp_path, "jobs"), "database_missing", "`mosaic serve` makes it")


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://mosaic:not-to-be-shown@127.0.0.1:1/mosaic"
    ran = mosaic(tmp_path, "show", "1", MOSAIC_DATABASE_URL=url)
    failed(ran, "database_unavailable", "MOSAIC_DATABASE_URL")
    assert "not-to-be-shown" not in ran.stderr


def test_a_database_without_tables_asks_for_migrate_which_does_it_once(tmp_path: Path) -> None:
    with Cluster(tmp_path / "var").opened():
        failed(mosaic(tmp_path, "jobs"), "schema_outdated", "0001_spine", "`mosaic migrate`")
        first, second = mosaic(tmp_path, "migrate"), mosaic(tmp_path, "migrate")
        assert (first.returncode, first.stdout.splitlines()[0]) == (0, "applied 0001_spine")
        assert (second.returncode, second.stdout) == (0, "nothing to do: the database is up to date\n")
        assert mosaic(tmp_path, "jobs").returncode == 0


def test_migrate_wants_both_roles_of_a_server_elsewhere(tmp_path: Path) -> None:
    ran = mosaic(tmp_path, "migrate", MOSAIC_DATABASE_URL="postgresql://u@127.0.0.1:1/x")
    assert ran.returncode == 1 and "MOSAIC_DATABASE_OWNER_URL is not set although MOSAIC_DATABASE_URL is" in ran.stderr


# ---------------------------------------------------------------- jobs


def test_jobs_and_show(home: Home) -> None:
    me = spine.worker()
    done = spine.submit(repository_id=501, repository="acme/shown")
    assert spine.work(done, me, {"inspector.gate.test": gate}) == "completed"
    refused = spine.submit(repository_id=501, repository="acme/shown")
    assert spine.work(refused, me, {"runner.admit": lambda row: Failed("refused", "bob may only read")}) == "failed"
    queued: list[int] = []
    held = spine.submit(repository_id=501, repository="acme/shown")
    slow = {"runner.snapshot": lambda row: HandBack("forge_unavailable", "503", 3600.0)}
    assert spine.work(held, me, slow) == "running"
    for other, state in ((500, "running"), (500, "queued"), (501, "queued"), (501, "queued")):
        job = spine.submit(repository_id=other, repository="acme/shown" if other == 501 else "acme/other")
        queued.append(job)
        assert spine.work(job, me, slow) == state

    queued = queued[2:]  # a place in the queue is one among the jobs of the same repository
    lines = home.mosaic("jobs", "--repository", "ACME/shown").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [str(job) for job in (*reversed(queued), held, refused, done)]
    assert "queued (2. in the queue)" in lines[0] and "queued (1. in the queue)" in lines[1]
    assert "running" in lines[2] and re.search(r"failed +refused +acme/shown#\d+ +gitea:alice", lines[3])
    assert len(home.mosaic("jobs", "--limit", "2").stdout.splitlines()) == 2
    assert home.mosaic("jobs", "--repository", "acme/none").stdout == ""

    shown = home.mosaic("show", str(done))
    assert shown.returncode == 0 and shown.stderr == ""
    assert f"http://127.0.0.1:8080/jobs/{done}" in shown.stdout
    assert "All gates are green and the pull request is open. (done)" in shown.stdout
    assert re.search(r"failed +inspector\.gate\.test@1\.1 +gate_red", shown.stdout)
    assert re.search(r"completed +inspector\.gate\.test@2\.1", shown.stdout)
    assert re.search(r"gate +round 1 test +red +1\.3 s  1 failed", shown.stdout)
    assert re.search(r"gate +round 2 test +green +1\.3 s  exit code 0", shown.stdout)
    assert re.search(r"job\.completed .*\"reason\": \"done\"", shown.stdout)
    why = home.mosaic("show", str(refused)).stdout
    assert "The request was not allowed. (refused)" in why and "bob may only read" in why and "  next  Ask" in why


def test_a_job_that_is_not_there_is_exit_1(home: Home) -> None:
    for command, number in (("show", "987654321"), ("show", "9" * 40), ("cancel", "0"), ("retry", "-1")):
        failed(home.mosaic(command, number), "not_found", f"There is no job {number}.", "`mosaic jobs`")


def test_cancel_stops_a_job_once(home: Home) -> None:
    job, me = spine.submit(repository_id=502), spine.worker()
    ran = home.mosaic("cancel", str(job))
    assert (ran.returncode, ran.stdout) == (0, f"Job {job} is being stopped.\n")
    again = home.mosaic("cancel", str(job))
    assert again.returncode == 1 and again.stdout.endswith("there is nothing to stop.\n")
    assert spine.work(job, me) == "cancelled"
    ended = queries.job(job)
    assert ended is not None and ended.reason == "cancelled_by_user"
    assert queries.events(job)[-1].actor.startswith("cli:")
    late = home.mosaic("cancel", str(job))
    assert (late.returncode, late.stdout) == (1, f"Job {job} is cancelled; there is nothing to stop.\n")


def test_cancel_reaches_a_step_that_runs(home: Home) -> None:
    job, me = spine.submit(repository_id=503), spine.worker()
    [admit] = spine.ready_steps(job)
    assert steps.claim(admit, me, "here") is not None
    assert home.mosaic("cancel", str(job)).returncode == 0
    [row] = steps.running(me)
    assert row["stop"] is True


def test_retry_starts_a_job_that_ended_once_more(home: Home) -> None:
    job, me = spine.submit(repository_id=504), spine.worker()
    failed(home.mosaic("retry", str(job)), "not_finished", f"Job {job} is still pending.")
    assert spine.work(job, me) == "completed"
    ran = home.mosaic("retry", str(job))
    [new] = [found.id for found in queries.jobs(limit=5) if found.retry_of == job]
    assert (ran.returncode, ran.stdout) == (0, f"Job {new} runs job {job} again.\n")
    assert queries.events(job)[-1].kind == "job.retried"
    first, second = queries.job(job), queries.job(new)
    assert first is not None and second is not None
    assert (second.branch, second.pull_request) == (first.branch, first.pull_request) == (f"mosaic/issue-{job}", 5)
    assert second.requester.startswith("cli:") and second.requester_id == first.requester_id


def test_submit_needs_a_forge_and_something_to_do(home: Home) -> None:
    failed(home.mosaic("submit", "acme/calc", "do"), "unset", "MOSAIC_GITEA_URL", "MOSAIC_GITEA_TOKEN")
    away = {"MOSAIC_GITEA_URL": "http://127.0.0.1:1", "MOSAIC_GITEA_TOKEN": "0" * 40}
    failed(home.mosaic("submit", "calc", "do", **away), "invalid_name", "owner/name")
    failed(home.mosaic("submit", "acme/calc", "do", **away), "transient", "no connection to Gitea")


def kept(repository: int, **more: object) -> int:
    """A job that was stopped; runner.keep says that it kept two files."""
    job, me = spine.submit(repository_id=repository), spine.worker()
    saved = {"kept": "c" * 40, "start": "d" * 40, "files": 2, "added": 5, "removed": 1, **more}
    script = {"weaver.implement": lambda _: Failed("stalled", "silence"), "runner.keep": lambda _: Done(output=saved)}
    assert spine.work(job, me, script) == "failed"
    return job


def test_kept_work_is_listed_and_continued(home: Home) -> None:
    job, nothing = kept(510), spine.submit(repository_id=511)
    assert spine.work(nothing, spine.worker(), {"runner.admit": lambda _: Failed("refused", "no")}) == "failed"
    assert f"  kept  2 files, +5 -1 lines, on here: `mosaic continue {job}`" in home.mosaic("show", str(job)).stdout
    [line] = [line for line in home.mosaic("wip").stdout.splitlines() if line.split()[0] == str(job)]
    assert re.fullmatch(rf" +{job} +2 files  \+5 -1  acme/calc  \(not here: here kept it\)", line)
    failed(home.mosaic("continue", str(job)), "host_gone", "kept on here", f"`mosaic retry {job}`")
    failed(home.mosaic("continue", str(nothing)), "nothing_kept", f"`mosaic retry {nothing}`")
    failed(home.mosaic("wip", "push", str(job)), "host_gone", "kept on here")
    failed(home.mosaic("wip", "push", str(nothing)), "nothing_kept")
    failed(home.mosaic("wip", "push"), "nothing_asked")
    alive = spine.worker()
    models.fetch("select pg_advisory_lock(%s, %s)", workers.LOCK_CLASS, alive)
    ran = home.mosaic("continue", str(job), "use", "the other API")
    models.fetch("select pg_advisory_unlock(%s, %s)", workers.LOCK_CLASS, alive)
    new = queries.jobs(limit=1)[0]
    assert ran.stdout == f"Job {new.id} goes on from what job {job} had done (2 files changed).\n", ran.stderr
    assert (new.retry_of, new.requester_id, new.metadata["continues"]["sha"]) == (job, 7, "c" * 40)
    assert new.metadata["added"] == [{"by": f"cli:{getpass.getuser()}", "text": "use the other API"}]
    failed(home.mosaic("continue", str(new.id)), "not_finished")
    spine.work(new.id, spine.worker(), {"runner.admit": lambda _: Failed("refused", "no")})


def test_pause_and_resume(home: Home) -> None:
    jobs.remember_repository(520, "acme/held", "main", True, "mosaic")
    ran = home.mosaic("pause", "ACME/held")
    assert ran.stdout == "acme/held is paused: requests are taken and wait.\n", ran.stderr
    assert home.mosaic("pause", "acme/held").stdout.startswith("acme/held is paused already: ")
    job, me = spine.submit(repository_id=520, repository="acme/held"), spine.worker()
    assert spine.work(job, me) == "queued"
    line = home.mosaic("jobs", "--repository", "acme/held").stdout
    assert "queued (1. in the queue)" in line and "Paused by the operator since " in line
    assert "  waits Paused by the operator since " in home.mosaic("show", str(job)).stdout
    assert home.mosaic("pause").stdout == "Everything is paused: requests are taken and wait.\n"
    both = home.mosaic("resume", "acme/held").stdout
    assert both.startswith("acme/held goes on.\nStill paused: everything. Paused by the operator since ")
    assert home.mosaic("resume").stdout == "Everything goes on.\n"
    assert home.mosaic("resume").stdout == "Everything was not paused.\n"
    stitcher.advance(job)
    assert spine.work(job, me) == "completed"
    failed(home.mosaic("pause", "acme/unknown"), "unset", "MOSAIC_GITEA_URL")


def test_a_reader_who_has_seen_enough_is_no_fault(home: Home) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "jobs"],
        cwd=ROOT,
        env=environment(home.path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    spine.submit(repository_id=505)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 0
    process.stderr.close()


def test_serve_says_at_once_that_its_address_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        ran = mosaic(
            tmp_path,
            "serve",
            MOSAIC_LISTEN=address,
            MOSAIC_GITEA_URL="http://127.0.0.1:9",
            MOSAIC_GITEA_TOKEN="a-token-of-the-bot",
            MOSAIC_GITEA_WEBHOOK_SECRET="0123456789abcdef",
        )
    assert ran.returncode == 1
    assert f"cannot listen on {address}: Address already in use" in ran.stderr and "(address_unusable)" in ran.stderr


def test_serve_lists_everything_that_is_not_set_before_it_starts_anything(tmp_path: Path) -> None:
    ran = mosaic(tmp_path, "serve", MOSAIC_GITEA_URL="", MOSAIC_GITEA_TOKEN="", MOSAIC_GITEA_WEBHOOK_SECRET="")
    assert ran.returncode == 1
    assert ran.stderr.startswith("mosaic: Mosaic cannot start as `serve`: 3 settings need attention.\n")
    for name in ("MOSAIC_GITEA_URL", "MOSAIC_GITEA_TOKEN", "MOSAIC_GITEA_WEBHOOK_SECRET"):
        assert ran.stderr.count(f"- {name} is not set.") == 1
    assert "postgres" not in ran.stdout
