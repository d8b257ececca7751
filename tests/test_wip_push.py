"""`mosaic wip push`: the command line asks, a herald on the host of the work pushes, the ledger tells of both."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app import audit, queries, stitcher
from app.edge import connected
from app.ledger import dead_letters
from app.models import execute, fetch
from app.types import Done
from app.worker import Worker
from jobs import herald
from tests import spine
from tests.test_effects import until
from tests.test_wip import HALF, Desk, wrote
from tests.worlds.forge import Forge
from tests.worlds.gitea import PracticeGitea
from tests.worlds.town import CALC

ROOT = Path(__file__).resolve().parent.parent
HERE, THERE = "here-1", "there-2"
ME = f"cli:{getpass.getuser()}"


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PracticeGitea]:
    server = PracticeGitea(tmp_path_factory.mktemp("gitea"), "a" * 40).start()
    yield server
    server.stop()


@contextmanager
def at(database: str, host: str) -> Iterator[Worker]:
    worker = Worker(database, "control", 8, host)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


@pytest.fixture
def desk(practice: PracticeGitea, database: str, tmp_path: Path) -> Iterator[Desk]:
    forge = Forge(practice.url, "a" * 40, control=True)
    with at(database, HERE) as worker:
        yield Desk(forge, practice.url, tmp_path, worker, dict(CALC))
    forge.cleanup()


def cli(desk: Desk, database: str, *words: str) -> Callable[[], subprocess.CompletedProcess[str]]:
    """The command line of the operator, who has no token at all."""
    env = {"PATH": os.environ["PATH"], "MOSAIC_DATA_DIR": str(desk.clients.paths.data), "MOSAIC_DATABASE_URL": database}
    order = [sys.executable, "-m", "app", "wip", *words]
    return lambda: subprocess.run(order, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def asked(job: int) -> dict[str, Any]:
    """The effect that was planned."""
    return until(lambda: queries.effect(f"job:{job}:wip"))


def push(desk: Desk, job: int) -> dict[str, Any]:
    """Ask for it and have it carried out at this desk; the effect as it is then."""
    saved = queries.saved_work(job)
    assert saved is not None
    effect = stitcher.push_saved(desk.job(job), saved, ME)
    herald.deliver(effect, desk.clients)
    return queries.effect_by_id(effect) or {}


def told(job: int) -> list[tuple[str, str]]:
    return [(event.kind, event.actor) for event in queries.events(job, limit=1000) if "wip" in str(event.data)]


def test_the_command_line_asks_and_the_herald_pushes(desk: Desk, database: str) -> None:
    job = desk.stopped({"calc.py": HALF})
    saved = queries.saved_work(job)
    assert saved is not None
    with ThreadPoolExecutor(1) as pool:
        ran = pool.submit(cli(desk, database, "push", str(job)))
        effect = asked(job)
        assert (f"mosaic-control@{HERE}", "herald.deliver", effect["id"]) in spine.bells()
        herald.deliver(effect["id"], desk.clients)
        done = ran.result()
    last = f"{desk.repo}: branch mosaic/wip/{job} is at {saved.sha[:12]}"
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == last, done.stderr
    assert desk.forge.branches(desk.repo)[f"mosaic/wip/{job}"] == saved.sha
    assert told(job) == [("wip.requested", ME), ("wip.pushed", "system:herald")]
    with connected():
        assert [one for one in audit.violations(database) if one.job_id == job] == []


def test_asked_for_again_it_is_pushed_again(desk: Desk, database: str) -> None:
    job = desk.stopped({"calc.py": HALF})
    first, again = push(desk, job), push(desk, job)
    assert (first["state"], first["result"]["outcome"]) == ("done", "pushed")
    assert (again["state"], again["result"]["outcome"]) == ("done", "same") and again["id"] == first["id"]
    desk.forge.call("DELETE", f"/repos/{desk.repo}/branches/mosaic%2Fwip%2F{job}")
    assert push(desk, job)["result"]["outcome"] == "pushed"
    assert f"mosaic/wip/{job}" in desk.forge.branches(desk.repo)


def test_another_branch_of_that_name_is_left_alone_and_can_be_replayed(desk: Desk, database: str) -> None:
    job = desk.stopped({"calc.py": HALF})
    branch, base = f"mosaic/wip/{job}", desk.forge.branches(desk.repo)["main"]
    assert desk.clients.forge_git(desk.id, desk.repo, push=True).push(base, branch, None) == "pushed"
    row = push(desk, job)
    assert (row["state"], row["code"]) == ("failed", "conflict") and desk.forge.branches(desk.repo)[branch] == base
    assert queries.events(job, limit=1000)[-1].kind == "notification.failed"
    assert row["id"] in [one["id"] for one in queries.dead_effects()], "mosaic effects shows it"
    ran = cli(desk, database, "push", str(job), "--wait", "1")
    with ThreadPoolExecutor(1) as pool:
        asked_again = pool.submit(ran)
        until(lambda: (queries.effect_by_id(row["id"]) or {})["state"] == "planned")
        herald.deliver(row["id"], desk.clients)
        failed = asked_again.result()
    assert failed.returncode == 1 and failed.stderr.endswith(f"(effect {row['id']}) (conflict)\n"), failed
    desk.forge.call("DELETE", f"/repos/{desk.repo}/branches/mosaic%2Fwip%2F{job}")
    assert dead_letters.replay(row["id"], ME)
    herald.deliver(row["id"], desk.clients)
    saved = queries.saved_work(job)
    assert saved is not None and desk.forge.branches(desk.repo)[branch] == saved.sha


def test_it_waits_for_a_forge_that_is_away_and_the_command_line_says_so(
    desk: Desk, database: str, practice: PracticeGitea
) -> None:
    job = desk.stopped({"calc.py": HALF})
    practice.down()
    try:
        with ThreadPoolExecutor(1) as pool:
            ran = pool.submit(cli(desk, database, "push", str(job), "--wait", "2"))
            effect = asked(job)
            herald.deliver(effect["id"], desk.clients)
            done = ran.result()
    finally:
        practice.up()
    assert done.returncode == 1 and "waits: unreachable: " in done.stdout, done
    assert done.stdout.splitlines()[-1] == (
        f"It goes on by itself: `mosaic effects` shows effect {effect['id']} until it is done."
    )
    execute("update effects set next_at = clock_timestamp()")
    herald.deliver(effect["id"], desk.clients)
    assert f"mosaic/wip/{job}" in desk.forge.branches(desk.repo)


def test_a_herald_elsewhere_calls_the_one_where_the_work_lies(desk: Desk, database: str) -> None:
    job = desk.stopped({"calc.py": HALF})
    saved = queries.saved_work(job)
    assert saved is not None
    effect = stitcher.push_saved(desk.job(job), saved, ME)
    with at(database, THERE) as other:
        spine.silence()
        herald.deliver(effect, replace(desk.clients, worker=other))
        assert (f"mosaic-control@{HERE}", "herald.deliver", effect) in spine.bells()
        row = queries.effect_by_id(effect) or {}
        assert (row["state"], row["attempts"], row["worker_id"]) == ("planned", 0, None)
        herald.deliver(effect, desk.clients)
        assert (queries.effect_by_id(effect) or {})["state"] == "done"


def test_while_its_host_is_away_it_waits_and_in_the_end_it_is_a_dead_letter(desk: Desk, database: str) -> None:
    job = desk.stopped({"calc.py": HALF})
    saved = queries.saved_work(job)
    assert saved is not None
    effect = stitcher.push_saved(desk.job(job), saved, ME)
    desk.worker.stop()
    with at(database, THERE) as other:
        away = replace(desk.clients, worker=other)
        herald.deliver(effect, away)
        row = queries.effect_by_id(effect) or {}
        assert (row["state"], row["code"]) == ("planned", "host_gone") and HERE in row["error"]
        execute("update effects set next_at = clock_timestamp(), waiting_since = waiting_since - interval '25 hours'")
        herald.deliver(effect, away)
        assert (queries.effect_by_id(effect) or {})["state"] == "failed"
    refused = cli(desk, database, "push", str(job))()
    assert refused.returncode == 1 and refused.stderr.endswith("(host_gone)\n")
    assert fetch("select count(*) as n from effects where kind = 'wip.push'") == [{"n": 1}]


def test_what_the_forge_might_run_stays_here(desk: Desk) -> None:
    """`[skip ci]` holds for pushes; a workflow may as well begin with a new branch."""
    job = desk.stopped({"calc.py": HALF, ".gitea/workflows/x.yml": "on: create\n"})
    row = push(desk, job)
    assert (row["state"], row["code"]) == ("failed", "starts_ci") and ".gitea/workflows/x.yml" in row["error"]
    assert set(desk.forge.branches(desk.repo)) == {"main"}


def test_what_was_kept_in_words_that_start_ci_stays_here(desk: Desk) -> None:
    """As an older version kept it."""
    job = desk.ask()
    desk.work(job, wrote({"calc.py": HALF}, Done(output={"text": "done"})), until="inspector.policy")
    stitcher.cancel(job, "gitea:alice")
    assert desk.work(job) == "cancelled"
    saved = queries.saved_work(job)
    assert saved is not None
    who = ("Mosaic", "mosaic@noreply.invalid")
    loud = desk.git.reword(saved.sha, "Work so far", who, who, desk.job(job).created_at)
    desk.git.keep(loud, saved.ref)
    effect = stitcher.push_saved(desk.job(job), replace(saved, sha=loud), ME)
    herald.deliver(effect, desk.clients)
    row = queries.effect_by_id(effect) or {}
    assert (row["state"], row["code"]) == ("failed", "starts_ci")
    assert set(desk.forge.branches(desk.repo)) == {"main"}


def test_work_that_is_gone_is_said_to_be_gone(desk: Desk) -> None:
    job = desk.stopped({"calc.py": HALF})
    desk.git.mirror.rename(desk.git.mirror.with_name("away"))
    row = push(desk, job)
    assert (row["state"], row["code"]) == ("failed", "nothing_kept")
