"""What goes out arrives once, whatever the forge answers; while it is away nothing breaks, and it is left alone.

The control steps and the herald are the real ones, against the practice Gitea over HTTP and a real PostgreSQL; the
agent and the gates are played.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from psycopg.types.json import Jsonb

from app import breaker as asked
from app import queries, settings, stitcher
from app.audit import verify
from app.clients.gitea import GiteaClient
from app.clients.http_faults import retry_after
from app.context import Clients
from app.edge import connected
from app.gitea_events import text_hash
from app.ledger import breaker, carried, dead_letters, effects, steps
from app.ledger.chain import transaction
from app.models import execute, fetch_one
from app.types import Ambiguous, Done, GateResult, LostLease, Misconfigured, Outage, Permanent, Pool, Transient, Trigger
from app.worker import Worker
from jobs import herald, runner, tasks
from jobs.herald.marker import marker
from tests import spine
from tests.worlds.forge import Account, Forge
from tests.worlds.gitea import Fault, PracticeGitea

pytestmark = pytest.mark.usefixtures("database")
ROOT = Path(__file__).resolve().parent.parent
ADMIN = "a" * 40
RULES = 'version = 1\n[[gates]]\nname = "test"\ntype = "test"\ncommand = "true"\n'
T = TypeVar("T")


def until(look: Callable[[], T | None], seconds: float = 20.0) -> T:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"waited {seconds:g} s"
        time.sleep(0.02)
    return found


@dataclass
class World:
    """A forge with alice and the bot, one repository with one issue, and what a control consumer holds."""

    practice: PracticeGitea
    forge: Forge
    alice: Account
    bot: Account
    repo: str
    number: int
    clients: Clients

    @property
    def repository_id(self) -> int:
        return next(repo.id for repo in self.practice.world.state.repos.values() if self.repo.endswith(f"/{repo.name}")
                    and self.practice.world.state.full_name(repo) == self.repo)  # fmt: skip

    def fault(self, method: str, path: str, kind: str, **more: Any) -> Fault:
        fault = Fault(method, path, kind, **more)
        self.practice.world.faults.add(fault)
        return fault

    def requests(self) -> int:
        """How many requests the bot has made, answered or not."""
        return len([row for row in list(self.practice.world.requests) if row["user"] != "root-admin"])

    def said(self, number: int | None = None) -> list[str]:
        """What the bot has said on an issue."""
        found = self.forge.comments(self.repo, number or self.number)
        return [one["body"] for one in found if one["user"]["id"] == self.bot.id]

    def impatient(self, seconds: float = 0.4) -> Clients:
        """The same consumer, which waits no longer than this for an answer."""
        token = self.clients.settings.gitea_token
        client = GiteaClient(self.practice.url, token, timeout=(3.05, seconds), guard=asked.forge)
        return replace(self.clients, forge=client)

    # ------------------------------------------------------------ jobs

    def ask(self, number: int | None = None) -> int:
        """Alice mentions the bot; the job as the receiver makes it."""
        where = number or self.number
        text = f"@{self.bot.login} fix this"
        comment = self.forge.comment(self.alice.token, self.repo, where, text)
        trigger = Trigger(
            kind="comment", repository_id=self.repository_id, repository=self.repo, number=where, is_pull=False,
            object_id=comment["id"], actor_id=self.alice.id, actor=self.alice.login, text=text,
            text_sha256=text_hash(text), permission="admin", at=comment["created_at"], issue_title="add() subtracts",
            issue_author=self.alice.login,
        )  # fmt: skip
        with transaction():
            job = stitcher.submit(trigger, trigger_key=f"test:{comment['id']}", instructions="fix this")
        assert job is not None
        return job

    def work(self, job: int, *, upto: str = "", limit: int = 60) -> str:
        """Do the steps of a job that are ready, until it rests, ends, or comes to the step `upto`; its status."""
        for _ in range(limit):
            ready = spine.ready_steps(job)
            step = queries.step(ready[0]) if ready else None
            if step is None or step.name == upto:
                break
            if step.name in ("runner.setup", "weaver.implement") or step.name.startswith("inspector.gate."):
                self._play(step.id)
            else:
                work = tasks.load(f"jobs.{step.name.replace('.', ':')}")
                tasks.perform(step.id, {step.name: tasks.Task(work)}, self.clients, go_on=0.0)
        found = queries.job(job)
        assert found is not None
        return found.status.value

    def _play(self, step_id: int) -> None:
        row = steps.claim(step_id, self.clients.worker.id, self.clients.worker.host)
        assert row is not None
        made = {step.name: step.output for step in queries.steps(row["job_id"])}
        output: dict[str, Any] = {}
        if row["name"] == "weaver.implement":
            tree = self.clients.paths.worktree(row["job_id"], made["runner.checkout"]["fence"])
            (tree / "calc.py").write_text(f"x = {row['job_id']}0\n")
            output = {"text": "x is right now."}
        elif row["name"] != "runner.setup":
            required, passed = row["name"] == "inspector.gate.test", row["name"] == "inspector.gate.test"
            name = row["name"].removeprefix("inspector.gate.")
            receipt = GateResult(
                name, "test", "true", required, passed, 0 if passed else 1, 0.1, "exit code", "",
                tree_sha=made["runner.commit"]["tree"],
            )  # fmt: skip
            output = {"required": required, "receipt": {key: getattr(receipt, key) for key in receipt.__slots__}}
        assert stitcher.record(row, Done(output=output))

    # ------------------------------------------------------------ effects

    def deliver(self, key: str, clients: Clients | None = None) -> dict[str, Any]:
        """Carry out one effect now, whatever it waits for; its row afterwards."""
        execute(
            "update effects set next_at = clock_timestamp(), "
            "settle_at = case when settle_at is not null then clock_timestamp() end where key = %s",
            key,
        )
        row = queries.effect(key)
        assert row is not None
        herald.deliver(row["id"], clients or self.clients)
        return row_of(key)

    def settled(self, key: str) -> dict[str, Any]:
        """The effect when no look at it is left."""
        while (row := row_of(key))["settle_at"] is not None or row["state"] == "planned":
            self.deliver(key)
        return row


def row_of(key: str) -> dict[str, Any]:
    row = queries.effect(key)
    assert row is not None
    return row


def lift(state: str, step_id: int) -> None:
    execute(f"update job_steps set {state} = clock_timestamp() where id = %s", step_id)


def step_of(job: int, name: str) -> dict[str, Any]:
    row = fetch_one("select * from job_steps where job_id = %s and name = %s order by id desc limit 1", job, name)
    assert row is not None
    return row


def kinds(job: int) -> list[str]:
    return [event.kind for event in queries.events(job)]


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PracticeGitea]:
    running = PracticeGitea(tmp_path_factory.mktemp("gitea"), ADMIN).start()
    yield running
    running.stop()


@pytest.fixture
def live(database: str) -> Iterator[Worker]:
    worker = Worker(database, "control", 8)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def world(practice: PracticeGitea, live: Worker, database: str, tmp_path: Path) -> Iterator[World]:
    forge = Forge(practice.url, ADMIN, control=True)
    bot, alice = forge.make_user("mosaic"), forge.make_user("alice")
    repo = forge.make_repo(alice.login, "calc", {"calc.py": "x = 1\n", ".mosaic.toml": RULES})
    forge.collaborator(repo, bot.login)
    number = int(forge.open_issue(alice.token, repo, "add() subtracts")["number"])
    config = tmp_path / "server.toml"
    config.write_text('repositories = ["*/*"]\n')
    env = {
        "MOSAIC_DATA_DIR": str(tmp_path / "var"), "MOSAIC_SECRET_KEY": "s" * 40, "MOSAIC_GITEA_URL": practice.url,
        "MOSAIC_GITEA_TOKEN": bot.token, "MOSAIC_GITEA_WEBHOOK_SECRET": "w" * 40, "MOSAIC_DATABASE_URL": database,
        "MOSAIC_CONFIG": str(config),
    }  # fmt: skip
    clients = tasks.build_clients(settings.load("control", env), Pool.CONTROL, live)
    clients.paths.make()
    runner.introduce(clients)
    yield World(practice, forge, alice, bot, repo, number, clients)
    practice.world.faults.clear()
    practice.up()
    assert practice.world.errors == []


# ---------------------------------------------------------------- unclear answers

UNCLEAR = ("ambiguous", "server_error", "unreachable")
LOST = ("status", "status_after", "cut_before", "cut_after", "cut_body", "stall")


def lose(world: World, method: str, path: str, kind: str) -> Fault:
    return world.fault(method, path, kind, status=502, message="bad gateway", seconds=1.0)


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("what", ["status", "closing", "reply"])
def test_a_comment_whose_answer_was_lost_is_there_once(world: World, what: str, kind: str) -> None:
    job = world.ask()
    assert world.work(job, upto="runner.snapshot") == "running"
    key = a_comment(world, job, what)
    fault = lose(world, "POST", "/comments$", kind)
    row = world.deliver(key, world.impatient())
    assert (fault.hits, row["state"]) == (1, "planned") and row["error"] and row["code"] in UNCLEAR
    row = world.deliver(key)
    assert (row["state"], row["error"], row["code"]) == ("done", "", "") and row["settle_at"] is not None
    until(lambda: kind != "stall" or len(world.said()) == 2)  # what was given up arrives all the same
    row = world.settled(key)
    [left] = [one for one in world.forge.comments(world.repo, world.number) if one["user"]["id"] == world.bot.id]
    assert str(left["id"]) == row["external_id"]


def a_comment(world: World, job: int, what: str) -> str:
    """A planned comment of this kind; its key."""
    place = {"repository_id": world.repository_id, "repository": world.repo, "number": world.number}
    if what == "closing":
        effects.plan_once(f"job:{job}:closing", "comment.closing", place, job_id=job)
    if what == "reply":
        delivery = fetch_one("insert into deliveries (source, delivery_id, state) values ('gitea', 'd', 'answered') "
                             "returning id")  # fmt: skip
        assert delivery is not None
        effects.plan_once("reply", "comment.reply", {**place, "body": "Yes."}, delivery_id=delivery["id"])
        return "reply"
    return f"job:{job}:{what}"


@pytest.mark.parametrize("kind", LOST)
def test_an_edit_whose_answer_was_lost_ends_with_the_newest_text(world: World, kind: str) -> None:
    job = world.ask()
    world.work(job, upto="runner.snapshot")
    key = f"job:{job}:status"
    world.deliver(key)
    world.work(job, upto="runner.commit")
    lose(world, "PATCH", "/comments/", kind)
    world.deliver(key, world.impatient())
    world.deliver(key)
    world.settled(key)
    [text] = world.said()
    assert text == newest_status(world, key)


def newest_status(world: World, key: str) -> str:
    """The status comment after it was surely told again."""
    execute("update effects set wanted = wanted + 1, state = 'planned', result = result - 'sha256' where key = %s", key)
    world.deliver(key)
    [text] = world.said()
    return text


@pytest.mark.parametrize("kind", LOST)
def test_reaction_label_and_commit_status_are_there_once(world: World, kind: str) -> None:
    job = world.ask()
    place = {"repository_id": world.repository_id, "repository": world.repo, "number": world.number}
    comment = queries.job(job).trigger.object_id  # type: ignore[union-attr]
    world.forge.label(world.alice.token, world.repo, world.number, "mosaic")
    effects.plan_once("unlabel", "label.remove", {**place, "label": "mosaic"}, job_id=job)
    sha = world.forge.call("GET", f"/repos/{world.repo}/branches/main")["commit"]["id"]
    status = {**place, "sha": sha, "context": "mosaic/test", "state": "success", "description": "ok", "url": ""}
    effects.plan_once("status", "commit.status", status, job_id=job)
    for key, method, path in (
        (f"job:{job}:eyes", "POST", "/reactions$"),
        ("unlabel", "DELETE", "/labels/"),
        ("status", "POST", "/statuses/"),
    ):
        fault = lose(world, method, path, kind)
        world.deliver(key, world.impatient())
        assert fault.hits == 1
        assert world.deliver(key)["state"] == "done"
    assert world.forge.reactions(world.repo, world.number, comment) == [(world.bot.login, "eyes")]
    assert world.forge.issue(world.repo, world.number)["labels"] == []
    assert world.forge.statuses(world.repo, sha) == {"mosaic/test": "success"}


@pytest.mark.parametrize("kind", LOST)
def test_branch_and_pull_request_are_there_once(world: World, kind: str) -> None:
    job = world.ask()
    world.work(job, upto="herald.publish")
    world.clients = world.impatient()
    faults = [lose(world, "POST", "git-receive-pack", kind), lose(world, "POST", "/pulls$", kind)]
    for _ in range(6):
        if world.work(job) == "completed":
            break
        lift("run_after", step_of(job, "herald.publish")["id"])
        execute("update effects set next_at = clock_timestamp()")
    assert [fault.hits for fault in faults] == [1, 1]
    [pull] = world.forge.pulls(world.repo)
    found = queries.job(job)
    assert found is not None and (found.reason, found.pull_request) == ("done", pull["number"])
    assert pull["head"]["sha"] == found.head_sha
    assert kinds(job).count("git.pushed") == 1 and kinds(job).count("pr.opened") == 1
    assert step_of(job, "herald.publish")["attempt"] == 1


# ---------------------------------------------------------------- lost and frozen writers


def test_what_a_killed_owner_had_under_way_is_found_and_removed(world: World) -> None:
    """It is killed after it sent; its request reaches the forge when the next owner has looked and written."""
    job = world.ask()
    key, dead = a_comment(world, job, "closing"), spine.worker()  # that worker holds no session lock
    lost = effects.claim(row_of(key)["id"], dead)
    assert lost is not None
    sign = marker(world.clients.settings.secret_key, world.repository_id, world.number, "closing", f"job-{job}")
    assert world.deliver(key)["state"] == "done"
    late = world.forge.comment(world.bot.token, world.repo, world.number, f"The same words.\n\n{sign}")
    with pytest.raises(Exception, match="no longer ours"):
        effects.check(lost)
    assert len(world.said()) == 2
    row = world.settled(key)
    [left] = world.forge.comments(world.repo, world.number)[1:]
    assert str(left["id"]) == row["external_id"] != str(late["id"])


def test_a_comment_that_a_person_deleted_is_not_made_again_by_a_look_for_copies(world: World) -> None:
    job = world.ask()
    key = a_comment(world, job, "closing")
    lose(world, "POST", "/comments$", "cut_after")
    world.deliver(key)
    row = world.deliver(key)
    world.forge.delete_comment(world.alice.token, world.repo, int(row["external_id"]))
    world.settled(key)
    assert world.said() == []


def test_two_writers_frozen_between_fence_and_write_leave_one_pull_request(world: World) -> None:
    job = world.ask()
    world.work(job, upto="herald.publish")
    made = queries.job(job)
    assert made is not None and made.branch and made.head_sha
    world.clients.forge_git(made.repository_id, world.repo, push=True).push(made.head_sha, made.branch, None)
    place = {"repository_id": world.repository_id, "repository": world.repo, "number": world.number}
    effects.plan_once(f"job:{job}:pull", "pull_request", place, job_id=job)
    key = f"job:{job}:pull"
    slow = world.fault("POST", "/pulls$", "stall", seconds=1.5)

    def first() -> None:
        with connected():
            herald.deliver(row_of(key)["id"], world.clients)

    frozen = threading.Thread(target=first)
    frozen.start()
    until(lambda: slow.hits)
    execute("update effects set lease_until = clock_timestamp() - interval '1 second' where key = %s", key)
    row = world.deliver(key)
    frozen.join()
    [pull] = world.forge.pulls(world.repo)
    assert row["external_id"] == str(pull["number"]) == row_of(key)["external_id"]
    assert world.settled(key)["external_id"] == str(pull["number"])


def test_of_two_open_pull_requests_the_older_one_stays(world: World) -> None:
    """A forge that looks before it writes without a lock can open two."""
    job = world.ask()
    world.work(job, upto="herald.publish")
    made = queries.job(job)
    assert made is not None and made.branch and made.head_sha
    world.clients.forge_git(made.repository_id, world.repo, push=True).push(made.head_sha, made.branch, None)
    state, opened = world.practice.world.state, []
    for who in (world.bot, world.bot, world.alice):
        opened.append(world.forge.open_pull(who.token, world.repo, made.branch, "main", "again")["number"])
        with state.lock:
            pull = state.repos[world.repository_id].issues[opened[-1]].pull
            assert pull is not None
            pull.base = "elsewhere"
    with state.lock:
        for number in opened:
            state.repos[world.repository_id].issues[number].pull.base = "main"  # type: ignore[union-attr]
    assert len(world.forge.pulls(world.repo, "open")) == 3
    assert world.work(job) == "completed"
    left = {pull["number"] for pull in world.forge.pulls(world.repo, "open")}
    found = queries.job(job)
    assert found is not None and found.pull_request == opened[0]
    assert left == {opened[0], opened[2]}  # what somebody else opened is none of ours


def test_a_pull_request_of_somebody_else_is_a_conflict(world: World) -> None:
    job = world.ask()
    world.work(job, upto="herald.publish")
    made = queries.job(job)
    assert made is not None and made.branch and made.head_sha
    world.clients.forge_git(made.repository_id, world.repo, push=True).push(made.head_sha, made.branch, None)
    execute(
        "insert into effects (key, kind, target, state, result) values ('p', 'push', jsonb_build_object("
        "'branch', %s::text, 'repository_id', %s::bigint), 'done', jsonb_build_object('sha', %s::text))",
        made.branch, made.repository_id, made.head_sha,
    )  # fmt: skip
    theirs = world.forge.open_pull(world.alice.token, world.repo, made.branch, "main", "mine")
    assert world.work(job) == "failed"
    found = queries.job(job)
    assert found is not None and found.reason == "conflict"
    [left] = world.forge.pulls(world.repo)
    assert (left["number"], left["body"]) == (theirs["number"], "")


# ---------------------------------------------------------------- forged markers


def test_a_marker_counts_only_in_the_bots_own_comment_of_this_very_place(world: World) -> None:
    """Pasted by a stranger, copied from another issue, job or repository, of another kind, with a MAC that is off."""
    job = world.ask()
    key, secret, here = a_comment(world, job, "closing"), world.clients.settings.secret_key, world.repository_id
    right = marker(secret, here, world.number, "closing", f"job-{job}")
    wrong = [
        marker(secret, here, world.number + 1, "closing", f"job-{job}"),
        marker(secret, here, world.number, "closing", f"job-{job + 1}"),
        marker(secret, here + 1, world.number, "closing", f"job-{job}"),
        marker(secret, here, world.number, "status", f"job-{job}"),
        marker(b"another key", here, world.number, "closing", f"job-{job}"),
        f"{right} and more",
    ]
    forged = [world.forge.comment(world.alice.token, world.repo, world.number, f"Ha.\n\n{right}")]
    forged += [world.forge.comment(world.bot.token, world.repo, world.number, f"Old.\n\n{sign}") for sign in wrong]
    row = world.deliver(key)
    bodies = {one["id"]: one["body"] for one in world.forge.comments(world.repo, world.number)}
    assert row["state"] == "done" and int(row["external_id"]) not in {one["id"] for one in forged}
    assert {one["id"]: one["body"] for one in forged}.items() <= bodies.items()
    assert bodies[int(row["external_id"])].endswith(right)


def test_another_things_own_comment_is_left_alone_whatever_marker_was_edited_into_it(world: World) -> None:
    """Who may write to the repository can edit the bot's comments."""
    first, second = world.ask(), world.ask()
    kept = world.deliver(a_comment(world, first, "closing"))["external_id"]
    sign = marker(
        world.clients.settings.secret_key, world.repository_id, world.number, "closing", f"job-{second}"
    )  # fmt: skip
    world.forge.edit_comment(world.alice.token, world.repo, int(kept), f"Edited.\n\n{sign}")
    key = a_comment(world, second, "closing")
    lose(world, "POST", "/comments$", "cut_after")
    world.deliver(key)
    world.deliver(key)
    row = world.settled(key)
    mine = {str(one["id"]): one["body"] for one in world.forge.comments(world.repo, world.number)
            if one["user"]["id"] == world.bot.id}  # fmt: skip
    assert set(mine) == {kept, row["external_id"]} and mine[kept].startswith("Edited.")


# ---------------------------------------------------------------- status comments of retries


def test_a_second_retry_takes_the_status_comment_over_and_nobody_fights_for_it(world: World) -> None:
    jobs = [world.ask()]
    world.work(jobs[0], upto="runner.snapshot")
    comment = world.deliver(f"job:{jobs[0]}:status")["external_id"]
    stitcher.cancel(jobs[0], "gitea:alice")
    world.work(jobs[0])
    for key in ("a", "b"):  # two retries of the same job
        found = queries.job(jobs[0])
        assert found is not None
        new = stitcher.retry(found, actor="gitea:alice", actor_id=world.alice.id, login=world.alice.login, key=key,
                             permission="admin")  # fmt: skip
        assert new is not None
        world.work(new, upto="runner.snapshot")
        jobs.append(new)
        row = world.deliver(f"job:{new}:status")
        assert row["external_id"] == comment
    last = world.forge.call("GET", f"/repos/{world.repo}/issues/comments/{comment}")["body"]
    assert f"job-{jobs[2]}:" in last
    execute("update effects set wanted = wanted + 1, state = 'planned' where kind = 'comment.status'")
    for job in reversed(jobs):  # the older ones speak last
        world.deliver(f"job:{job}:status")
    execute("update effects set wanted = wanted + 1, state = 'planned' where kind = 'comment.status'")
    for job in reversed(jobs):
        world.deliver(f"job:{job}:status")
    shown = {str(one["id"]): one["body"] for one in world.forge.comments(world.repo, world.number)}
    assert f"job-{jobs[2]}:" in shown[comment]
    own = row_of(f"job:{jobs[1]}:status")["external_id"]  # it still works, in a comment of its own
    assert own != comment and f"job-{jobs[1]}:" in shown[own]
    signs = [body.rsplit(":", 2)[1] for body in shown.values() if "mosaic:status" in body]
    assert sorted(signs) == sorted([f"job-{jobs[1]}", f"job-{jobs[2]}"])


def test_who_writes_into_a_comment_that_was_just_taken_over_lets_the_new_owner_write_again(world: World) -> None:
    first = world.ask()
    world.work(first, upto="runner.snapshot")
    key = f"job:{first}:status"
    world.deliver(key)
    stitcher.cancel(first, "gitea:alice")
    world.work(first, upto="herald.report")
    slow = world.fault("PATCH", "/comments/", "stall", seconds=1.5)

    def late() -> None:
        with connected():
            execute("update effects set next_at = clock_timestamp() where key = %s", key)
            herald.deliver(row_of(key)["id"], world.clients)

    old = threading.Thread(target=late)
    old.start()
    until(lambda: slow.hits)
    world.work(first)
    found = queries.job(first)
    assert found is not None
    new = stitcher.retry(found, actor="gitea:alice", actor_id=world.alice.id, login=world.alice.login, key="k",
                         permission="admin")  # fmt: skip
    assert new is not None
    world.work(new, upto="runner.snapshot")
    world.deliver(f"job:{new}:status")
    old.join()
    row = row_of(f"job:{new}:status")
    assert row["state"] == "planned"  # it is asked to write once more
    world.deliver(f"job:{new}:status")
    [text] = [body for body in world.said() if "mosaic:status" in body]
    assert f"job-{new}:" in text


# ---------------------------------------------------------------- rate limits


def test_retry_after_in_seconds_and_as_a_date_and_absurd() -> None:
    noon = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    sent, later = (format_datetime(moment, usegmt=True) for moment in (noon, noon + timedelta(seconds=90)))
    assert retry_after({"Retry-After": "7"}) == 7
    assert retry_after({"Retry-After": later, "Date": sent}) == 90  # by the forge's clock, not by ours
    assert retry_after({"Retry-After": sent, "Date": later}) == 0
    for absurd in ("9" * 30, "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"):
        assert retry_after({"Retry-After": absurd}) == 3600
    for nonsense in ("", "soon", "-1", "1e9", "Fri, 99 Dec 2026 23:59:59 GMT", "Sun, 22 Nov 2026 12:00:00"):
        assert retry_after({"Retry-After": nonsense, "Date": sent}) is None


@pytest.mark.parametrize("status", [429, 503])
def test_an_effect_comes_back_when_the_forge_says_so(world: World, status: int) -> None:
    key = a_comment(world, world.ask(), "closing")
    world.fault("POST", "/comments$", "status", status=status, headers={"Retry-After": "70"})
    row = world.deliver(key)
    assert row["state"] == "planned" and row["code"] == {429: "rate_limited", 503: "server_error"}[status]
    assert round((row["next_at"] - row["waiting_since"]).total_seconds()) == 70
    assert (row["worker_id"], row["lease_until"]) == (None, None)  # nobody is held for it
    assert effects.due() and row["id"] not in effects.due()
    assert world.deliver(key)["state"] == "done" and len(world.said()) == 1


def test_a_step_comes_back_when_the_forge_says_so(world: World) -> None:
    job = world.ask()
    world.fault("GET", "/repositories/", "status", status=429, headers={"Retry-After": "70"})
    assert world.work(job) == "pending"
    row = step_of(job, "runner.admit")
    assert (row["status"], row["faults"], row["worker_id"]) == ("pending", 1, None)
    [told] = [event.data for event in queries.events(job) if event.kind == "step.progress"]
    assert (told["waiting"], told["retry_in"]) == ("forge_unavailable", 70)
    lift("run_after", row["id"])
    assert world.work(job, upto="runner.snapshot") == "running"


def test_an_ambiguous_answer_is_looked_at_soon_but_not_for_ever_as_often(world: World) -> None:
    key = a_comment(world, world.ask(), "closing")
    world.fault("POST", "/comments$", "status", times=4, status=500)
    pauses = []
    for _ in range(3):
        execute("update effects set waiting_since = null where key = %s", key)
        row = world.deliver(key)
        pauses.append(round((row["next_at"] - row["waiting_since"]).total_seconds()))
    assert pauses == list(herald_pauses(3))


def herald_pauses(count: int) -> tuple[int, ...]:
    from jobs.herald.deliver import BACKOFF

    return tuple(round(pause) for pause in BACKOFF[:count])


# ---------------------------------------------------------------- the circuit breaker


def trip(world: World) -> None:
    """So many failures in a row that the forge is left alone."""
    world.practice.down()
    for _ in range(breaker.THRESHOLD):
        with pytest.raises(Transient):
            world.clients.forge.version()  # type: ignore[union-attr]
    assert queries.breaker().state == "open"


def test_it_opens_after_failures_in_a_row_and_only_then(world: World) -> None:
    forge = world.clients.forge
    assert forge is not None and queries.breaker().closed
    for _ in range(2):
        world.fault("GET", "/version", "status", times=breaker.THRESHOLD - 1, status=500)
        for _ in range(breaker.THRESHOLD - 1):
            with pytest.raises(Transient):
                forge.version()
        assert (queries.breaker().state, queries.breaker().failures) == ("closed", breaker.THRESHOLD - 1)
        assert queries.breaker().since is not None
        with pytest.raises(Permanent):  # a refusal is an answer
            forge.create_pull(world.repo, "nowhere", "main", "t", "b")
        assert (queries.breaker().failures, queries.breaker().since) == (0, None)
    world.fault("GET", "/version", "status", times=breaker.THRESHOLD, status=500)
    for _ in range(breaker.THRESHOLD):
        with pytest.raises(Transient):
            forge.version()
    now = queries.breaker()
    assert (now.state, now.code) == ("open", "server_error") and "500" in now.detail


def test_while_it_is_open_nobody_asks_and_nothing_is_rung(world: World) -> None:
    job = world.ask()
    key = a_comment(world, job, "closing")
    trip(world)
    world.practice.up()
    before = world.requests()
    with pytest.raises(Outage, match="unreachable"):
        world.clients.forge.version()  # type: ignore[union-attr]
    git = world.clients.forge_git(world.repository_id, world.repo)
    git.ensure()
    for act in (git.fetch, lambda: git.remote_head("main"), lambda: git.push("0" * 40, "b", None)):
        with pytest.raises(Outage):
            act()
    now = queries.breaker()
    assert not breaker.failed("late", "under way when it opened") and queries.breaker().code == now.code
    execute("update effects set rung_at = null, next_at = clock_timestamp()")
    row = world.deliver(key)
    assert (row["attempts"], row["fence"], row["state"]) == (0, 0, "planned")  # not even claimed
    assert effects.due() == []
    stitcher.tell(row["job_id"])  # asks for a new version, and rings for nobody
    assert world.work(job) == "pending"
    admit = step_of(job, "runner.admit")
    assert (admit["status"], admit["reason"], admit["faults"]) == ("pending", "forge_unavailable", 1)
    events = len(kinds(job))
    execute("update job_steps set run_after = clock_timestamp(), rung_at = null where id = %s", admit["id"])
    spine.silence()
    stitcher.advance(job)
    assert step_of(job, "runner.admit")["ready_at"] is not None
    execute("update circuit_breakers set next_probe_at = clock_timestamp() + interval '1 hour'")
    for _ in range(3):
        stitcher.sweep()
    assert [bell for bell in spine.bells() if bell[1] in ("runner.admit", "herald.deliver", "herald.probe")] == []
    assert len(kinds(job)) == events and world.requests() == before


def test_one_probe_at_a_time_and_a_lost_one_is_replaced(world: World) -> None:
    trip(world)
    execute("update circuit_breakers set next_probe_at = clock_timestamp()")

    def claim(_: int) -> int | None:
        with connected():
            return breaker.claim_probe()

    with ThreadPoolExecutor(8) as pool:
        [first] = [fence for fence in pool.map(claim, range(8)) if fence]
    assert queries.breaker().state == "half_open" and not queries.probe_due()
    with pytest.raises(Outage):
        world.clients.forge.version()  # type: ignore[union-attr]
    execute("update circuit_breakers set probe_until = clock_timestamp() - interval '1 second'")
    assert queries.probe_due()
    second = breaker.claim_probe()
    assert second is not None and second > first
    assert not breaker.close(first) and queries.breaker().state == "half_open"  # a frozen prober is not believed
    breaker.probe_failed(first, "x", "late")
    assert queries.breaker().state == "half_open"
    assert breaker.close(second) and queries.breaker().closed


def test_probes_come_ever_later_and_as_the_forge_asks(world: World) -> None:
    trip(world)
    waits = []
    for _ in range(len(breaker.PROBE_PAUSES) + 1):
        execute("update circuit_breakers set next_probe_at = clock_timestamp()")
        herald.probe(0, world.clients)
        waits.append(round(queries.breaker().wait))
    assert waits == [round(pause) for pause in (*breaker.PROBE_PAUSES, breaker.PROBE_PAUSES[-1])]
    world.practice.up()
    for header, wait in (("120", 120), ("999999", round(breaker.LONGEST_PAUSE))):
        world.fault("GET", "/user", "status", times=3, status=503, headers={"Retry-After": header})
        execute("update circuit_breakers set next_probe_at = clock_timestamp()")
        herald.probe(0, world.clients)
        assert (queries.breaker().state, round(queries.breaker().wait)) == ("open", wait)
        world.practice.world.faults.clear()
    herald.probe(0, world.clients)  # not before its time
    assert queries.breaker().state == "open"
    execute("update circuit_breakers set next_probe_at = clock_timestamp()")
    herald.probe(0, world.clients)
    assert queries.breaker().closed and queries.breaker().probes == 0


def test_after_an_outage_what_waited_goes_out_oldest_first_and_slowly(world: World) -> None:
    job = world.ask()
    assert world.work(job, upto="runner.admit") == "pending"
    trip(world)
    world.work(job)
    place = {"repository_id": world.repository_id, "repository": world.repo, "number": world.number}
    keys = [f"n{n:03}" for n in range(50)]
    ids = [effects.plan_once(key, "comment.closing", place, job_id=job) for key in keys]
    limited = effects.plan_once("limited", "comment.closing", place, job_id=job)
    execute(
        "update effects set error = 'x', code = case key when 'limited' then 'rate_limited' else 'unreachable' end, "
        "next_at = clock_timestamp() + (1000 - id) * interval '1 minute' where key ~ '^(n|lim)'"
    )
    herald.probe(0, world.clients)  # still down
    world.practice.up()
    execute("update circuit_breakers set next_probe_at = clock_timestamp()")
    stitcher.sweep()
    assert ("mosaic-control", "herald.probe", 0) in spine.bells()
    herald.probe(0, world.clients)
    assert queries.breaker().closed
    assert spine.ready_steps(job) or queries.jobs_to_advance() == [job]  # its wait is over at once
    execute("update effects set rung_at = clock_timestamp() where key !~ '^n'")  # the rest was rung already
    first, second = effects.due(), effects.due()
    assert sorted(first) == ids[:20] and sorted(second) == ids[20:40]
    execute("update circuit_breakers set closed_at = clock_timestamp() - interval '2 minutes'")
    assert sorted(effects.due()) == ids[40:]
    row = queries.effect_by_id(limited or 0)
    assert row is not None and row["next_at"] > queries.now() + timedelta(minutes=10)  # as it was told


@pytest.mark.parametrize(("outage", "at_once"), [("unreachable", False), ("rate_limited", True)])
def test_who_was_told_to_come_later_does_so_and_no_outage_counts_against_him(
    world: World, outage: str, at_once: bool
) -> None:
    """The limit of one is over only when the limit was the outage; the hours of the outage are nobody's delay."""
    job = world.ask()
    trip(world)
    key = a_comment(world, job, "closing")
    execute(
        "update effects set error = 'x', code = 'rate_limited', next_at = clock_timestamp() + interval '5 minutes', "
        "waiting_since = clock_timestamp() - interval '30 hours' where key = %s",
        key,
    )
    execute("update circuit_breakers set code = %s, probes = 1, next_probe_at = clock_timestamp()", outage)
    world.practice.up()
    herald.probe(0, world.clients)
    row = row_of(key)
    assert queries.breaker().closed and (row["next_at"] <= queries.now()) is at_once
    assert row["waiting_since"] is None and not effects.overdue(row)


def test_a_false_alarm_changes_no_waiting_times(world: World) -> None:
    key = a_comment(world, world.ask(), "closing")
    execute("update effects set error = 'x', next_at = clock_timestamp() + interval '1 hour' where key = %s", key)
    world.fault("GET", "/version", "status", times=breaker.THRESHOLD, status=500)
    for _ in range(breaker.THRESHOLD):
        with pytest.raises(Transient):
            world.clients.forge.version()  # type: ignore[union-attr]
    herald.probe(0, world.clients)
    assert queries.breaker().closed
    assert row_of(key)["next_at"] > queries.now() + timedelta(minutes=50)


def test_a_failure_of_ours_is_none_of_the_forges(world: World) -> None:
    """A full disk, a mirror in use, a missing scope: the forge did nothing wrong."""
    for error in (Misconfigured("no scope", code="token_scope", status=403), Permanent("odd", code="bad_answer")):
        for _ in range(breaker.THRESHOLD):
            with pytest.raises(type(error)), asked.forge():
                raise error
    assert queries.breaker().closed and queries.breaker().failures == 0
    with pytest.raises(Ambiguous), asked.forge():
        raise Ambiguous("cut off")
    assert queries.breaker().failures == 1
    with pytest.raises(Permanent), asked.forge():
        raise Permanent("odd", code="bad_answer")  # no word from the forge: the row of failures stays
    assert queries.breaker().failures == 1


# ---------------------------------------------------------------- an outage never breaks a job


def test_what_a_job_waits_for_the_forge_does_not_count_against_its_time(world: World) -> None:
    job = world.ask()
    world.work(job, upto="herald.publish")
    before = queries.job(job)
    trip(world)
    world.work(job)
    publish = step_of(job, "herald.publish")
    assert (publish["status"], publish["reason"]) == ("pending", "forge_unavailable")
    execute(
        "update runner_jobs set deadline_at = clock_timestamp() - interval '5 minutes', "
        "forge_wait_since = clock_timestamp() - interval '3 hours' where id = %s", job
    )  # fmt: skip
    stitcher.sweep()
    stitcher.advance(job)
    found = queries.job(job)
    assert found is not None and (found.reason, found.status.value) == (None, "running")
    world.practice.up()
    execute("update circuit_breakers set next_probe_at = clock_timestamp()")
    herald.probe(0, world.clients)
    lift("run_after", publish["id"])
    stitcher.sweep()
    assert world.work(job) == "completed"
    found = queries.job(job)
    assert before is not None and found is not None and found.reason == "done"
    late = fetch_one(
        "select forge_wait_since, deadline_at - clock_timestamp() as left from runner_jobs where id = %s", job
    )
    assert late is not None and late["forge_wait_since"] is None
    assert timedelta(hours=2, minutes=50) < late["left"] < timedelta(hours=3)
    assert len(world.forge.pulls(world.repo)) == 1 and step_of(job, "herald.publish")["attempt"] == 1


@pytest.mark.parametrize("where", ["runner.admit", "herald.publish"])
def test_a_wait_for_the_forge_has_an_end(world: World, where: str) -> None:
    job = world.ask()
    world.work(job, upto=where)
    trip(world)
    world.work(job)
    assert step_of(job, where)["reason"] == "forge_unavailable"
    for hours in (breaker.MAX_OUTAGE_HOURS - 1, breaker.MAX_OUTAGE_HOURS + 1):
        found = queries.job(job)
        assert found is not None and found.reason is None
        execute("update runner_jobs set forge_wait_since = clock_timestamp() - %s * interval '1 hour' where id = %s",
                hours, job)  # fmt: skip
        stitcher.sweep()
    assert world.work(job) == "failed"
    found = queries.job(job)
    assert found is not None and found.reason == "forge_unavailable" and "not asked at the moment" in found.detail
    assert spine.broken_links(job) == []


def test_news_of_a_job_that_ended_during_an_outage_goes_out_after_it(world: World) -> None:
    job = world.ask()
    world.work(job, upto="runner.snapshot")
    trip(world)
    stitcher.cancel(job, "gitea:alice")
    assert world.work(job) == "cancelled"
    world.practice.up()
    assert world.said() == []
    execute("update circuit_breakers set next_probe_at = clock_timestamp()")
    herald.probe(0, world.clients)
    execute("update effects set rung_at = null")
    for number in effects.due():
        herald.deliver(number, world.clients)
    assert len(world.said()) == 2
    assert len(world.forge.reactions(world.repo, world.number, queries.job(job).trigger.object_id)) == 1  # type: ignore[union-attr]


# ---------------------------------------------------------------- tokens and rights


def test_a_refused_token_stops_nothing_for_good(world: World) -> None:
    job = world.ask()
    token = world.practice.world.state.tokens.pop(world.bot.token)
    assert world.work(job) == "pending"
    now = queries.breaker()
    assert (now.state, now.code) == ("open", "token_refused")  # at the first one
    assert "does not accept the token" in step_of(job, "runner.admit")["detail"]
    for _ in range(2):
        execute("update circuit_breakers set next_probe_at = clock_timestamp()")
        herald.probe(0, world.clients)
    assert (queries.breaker().state, queries.breaker().code) == ("open", "token_refused")
    world.practice.world.state.tokens[world.bot.token] = token
    execute("update circuit_breakers set next_probe_at = clock_timestamp()")
    herald.probe(0, world.clients)
    assert queries.breaker().closed
    stitcher.sweep()
    assert world.work(job) == "completed"


def test_a_refused_push_token_is_noticed_by_the_probe_too(world: World) -> None:
    job = world.ask()
    world.work(job, upto="herald.publish")
    good = world.clients
    world.clients = replace(good, settings=replace(good.settings, gitea_push_token="0" * 40))
    assert world.work(job) == "running"
    assert queries.breaker().code == "token_refused"
    execute("update circuit_breakers set next_probe_at = clock_timestamp()")
    herald.probe(0, world.clients)
    assert queries.breaker().state == "open"
    world.clients = good
    execute("update circuit_breakers set next_probe_at = clock_timestamp()")
    herald.probe(0, world.clients)
    lift("run_after", step_of(job, "herald.publish")["id"])
    execute("update effects set next_at = clock_timestamp()")
    stitcher.sweep()
    assert world.work(job) == "completed"


def test_a_token_without_the_scope_waits_for_the_operator_and_leaves_the_rest_alone(world: World) -> None:
    key = a_comment(world, world.ask(), "closing")
    words = "token does not have at least one of required scope(s), required=[write:issue], token scope="
    world.fault("POST", "/comments$", "status", status=403, message=words)
    row = world.deliver(key)
    assert (row["state"], row["code"]) == ("planned", "token_scope") and queries.breaker().closed
    assert world.deliver(key)["state"] == "done"


@pytest.mark.parametrize("how", ["read", "archived", "gone"])
def test_a_repository_that_the_bot_may_not_write_to_is_said_as_such(world: World, how: str) -> None:
    job = world.ask()
    world.work(job, upto="herald.publish")
    if how == "read":
        world.forge.collaborator(world.repo, world.bot.login, "read")
    elif how == "archived":
        world.forge.call("PATCH", f"/repos/{world.repo}", body={"archived": True})
    else:
        world.forge.call("PATCH", f"/repos/{world.repo}", body={"private": True})
        world.forge.call("DELETE", f"/repos/{world.repo}/collaborators/{world.bot.login}")
    assert world.work(job) == "failed"
    found = queries.job(job)
    assert found is not None and found.reason == "forge_forbidden" and found.detail
    assert queries.breaker().closed
    if how == "read":
        assert "write access" in world.said()[-1] and "retry" in world.said()[-1]


def test_an_optional_red_gate_leaves_the_commit_green(world: World) -> None:
    rules = f'{RULES}[[gates]]\nname = "style"\ntype = "lint"\ncommand = "false"\nrequired = false\n'
    world.repo = world.forge.make_repo(world.alice.login, "calc-2", {"calc.py": "x = 1\n", ".mosaic.toml": rules})
    world.forge.collaborator(world.repo, world.bot.login)
    world.number = int(world.forge.open_issue(world.alice.token, world.repo, "t")["number"])
    job = world.ask()
    assert world.work(job) == "completed"
    sha = queries.job(job).head_sha  # type: ignore[union-attr]
    combined = world.forge.call("GET", f"/repos/{world.repo}/commits/{sha}/status")
    assert combined["state"] == "success"
    [style] = [one for one in combined["statuses"] if one["context"] == "mosaic/style"]
    assert style["status"] == "success" and style["description"].startswith("optional: failed")


# ---------------------------------------------------------------- dead letters


def lock(world: World, locked: bool = True) -> None:
    with world.practice.world.state.lock:
        world.practice.world.state.repos[world.repository_id].issues[world.number].locked = locked


def dead(world: World, job: int, what: str = "closing") -> dict[str, Any]:
    """A comment that is refused: the bot may only read, and the conversation is locked."""
    world.forge.collaborator(world.repo, world.bot.login, "read")
    lock(world)
    row = world.deliver(a_comment(world, job, what))
    assert (row["state"], row["code"]) == ("failed", "forge_forbidden")
    return row


def test_a_refused_comment_is_a_dead_letter_that_its_job_tells_and_that_is_replayed_by_hand(world: World) -> None:
    job = world.ask()
    row = dead(world, job)
    told = queries.events(job)[-1]
    assert (told.kind, told.data["key"], told.data["code"]) == ("notification.failed", row["key"], "forge_forbidden")
    assert [one["id"] for one in queries.dead_effects()] == [row["id"]]
    assert queries.effect_counts()[("comment.closing", "failed")] == 1
    for _ in range(3):
        stitcher.sweep()
        assert world.deliver(row["key"])["state"] == "failed"
    assert world.said() == []
    lock(world, False)
    assert dead_letters.replay(row["id"], "cli:root") and not dead_letters.replay(row["id"], "cli:root")
    assert queries.events(job)[-1].kind == "notification.retried" and queries.events(job)[-1].actor == "cli:root"
    assert world.deliver(row["key"])["state"] == "done" and len(world.said()) == 1
    assert queries.dead_effects() == [] and spine.broken_links(job) == []


def test_one_that_is_given_up_is_never_told(world: World) -> None:
    job = world.ask()
    row = dead(world, job)
    lock(world, False)
    assert dead_letters.drop(row["id"], "cli:root") and not dead_letters.drop(row["id"], "cli:root")
    assert queries.dead_effects() == [] and queries.events(job)[-1].kind == "notification.dropped"
    waiting = a_comment(world, job, "reply")
    assert dead_letters.drop(row_of(waiting)["id"], "cli:root")
    for key in (row["key"], waiting):
        assert world.deliver(key)["state"] == "failed"
    assert world.said() == []
    assert dead_letters.replay(row["id"], "cli:root")  # until somebody thinks better of it
    assert world.deliver(row["key"])["state"] == "done"


def test_one_that_is_under_way_is_not_given_up(world: World) -> None:
    key = a_comment(world, world.ask(), "closing")
    assert effects.claim(row_of(key)["id"], world.clients.worker.id) is not None
    assert not dead_letters.drop(row_of(key)["id"], "cli:root")
    assert row_of(key)["state"] == "planned"


def test_a_refused_status_comment_is_tried_once_in_each_new_status_of_its_job(world: World) -> None:
    job = world.ask()
    world.work(job, upto="runner.snapshot")
    key = f"job:{job}:status"
    dead(world, job, "status")
    posts = world.fault("POST", "/comments$", "status", times=99, status=403, message="locked")
    for _ in range(3):
        stitcher.tell(job)
        world.deliver(key)
    assert posts.hits == 0  # running, and it was refused while running
    stitcher.cancel(job, "gitea:alice")
    world.work(job, upto="herald.report")
    world.deliver(key)
    assert posts.hits == 0
    assert world.work(job) == "cancelled"
    hits = posts.hits  # the report's own comment is among them
    world.deliver(key)
    assert (row_of(key)["state"], posts.hits) == ("failed", hits + 1)
    for _ in range(3):
        stitcher.tell(job)
        world.deliver(key)
    assert posts.hits == hits + 1


def test_what_fails_for_longer_than_an_outage_may_last_is_dead(world: World) -> None:
    job = world.ask()
    key = a_comment(world, job, "closing")
    world.fault("GET", "/comments$", "status", times=9, status=500)
    world.deliver(key)
    execute("update effects set waiting_since = clock_timestamp() - interval '23 hours' where key = %s", key)
    assert world.deliver(key)["state"] == "planned"
    execute("update effects set waiting_since = clock_timestamp() - interval '25 hours' where key = %s", key)
    row = world.deliver(key)
    assert (row["state"], row["code"]) == ("failed", "server_error")
    assert queries.events(job)[-1].kind == "notification.failed"


def test_a_fault_of_ours_is_not_tried_for_ever(world: World) -> None:
    job = world.ask()
    place = {"repository_id": world.repository_id, "repository": world.repo, "number": world.number}
    effects.plan_once("odd", "no.such.kind", place, job_id=job)
    states = [world.deliver("odd")["state"] for _ in range(10)]
    assert states == ["planned"] * 9 + ["failed"] and row_of("odd")["code"] == "internal_error"


def test_what_is_told_stays_told_though_looking_for_copies_fails(world: World) -> None:
    job = world.ask()
    key = a_comment(world, job, "closing")
    execute("update effects set unsure = true where key = %s", key)
    assert world.deliver(key)["settle_at"] is not None and len(world.said()) == 1
    execute("update effects set target = target - 'number' where key = %s", key)  # a fault of ours in every look
    seen = [world.deliver(key) for _ in range(10)]
    assert {row["state"] for row in seen} == {"done"}
    assert (seen[-1]["settled"], seen[-1]["code"], seen[-1]["unsure"]) == (1, "internal_error", False)
    assert "number" in seen[-1]["error"] and seen[-1]["settle_at"] is not None and seen[-1]["waiting_since"] is None
    assert queries.dead_effects() == [] and "notification.failed" not in kinds(job)
    assert [row["key"] for row in queries.unlooked_effects()] == [key]
    assert f"done   comment.closing  {world.repo}" in mosaic(world).stdout
    execute("update effects set target = target || %s where key = %s", Jsonb({"number": world.number}), key)
    row = world.settled(key)
    assert (row["state"], row["code"], len(world.said())) == ("done", "", 1) and queries.unlooked_effects() == []


# ---------------------------------------------------------------- what a step carries


def test_a_push_of_a_job_that_ended_without_it_is_closed(world: World) -> None:
    job = world.ask()
    world.work(job, upto="herald.publish")
    world.fault("GET", "/info/refs", "status", times=1, status=503)
    world.work(job)
    key = f"job:{job}:push"
    assert row_of(key)["state"] == "planned" and key in [row["key"] for row in queries.waiting_effects()]
    stitcher.cancel(job, "gitea:alice")
    assert world.work(job) == "cancelled"
    row = row_of(key)
    assert (row["state"], row["code"], row["error"]) == (
        "failed", "not_wanted", "The job was cancelled before this was done."
    )  # fmt: skip
    told = [event for event in queries.events(job) if event.kind == "notification.dropped"]
    assert [(event.data["key"], event.data["code"], event.actor) for event in told] == [
        (key, "not_wanted", "system:stitcher")
    ]
    assert queries.waiting_effects() == [one for one in queries.waiting_effects() if one["kind"] != "push"]
    assert queries.dead_effects() == [] and ("push", "failed") not in queries.effect_counts()
    shown = mosaic(world).stdout
    assert f"{row['id']:>6}  closed push             {world.repo}#{world.number}  job {job}" in shown
    assert "not_wanted: The job was cancelled before this was done." in shown
    url = str(world.clients.settings.database_url)
    assert verify(url, witness=world.clients.paths.audit).violations == []
    execute("update effects set state = 'planned' where key = %s", key)
    found = verify(url, witness=world.clients.paths.audit).violations
    assert [str(one) for one in found] == [f"effects: job {job}: {key} is planned, and its job has ended"]


def test_a_publisher_that_wakes_up_after_the_end_of_its_job_pushes_nothing(world: World) -> None:
    job = world.ask()
    world.work(job, upto="herald.publish")
    before, effect = claimed_push(world, job)
    execute("update job_steps set lease_until = clock_timestamp() - interval '1 second' where id = %s", before["id"])
    stitcher.cancel(job, "gitea:alice")
    stitcher.sweep()
    assert world.work(job) == "cancelled"
    with pytest.raises(LostLease):
        effects.check(effect)
    assert row_of(effect["key"])["unsure"], "somebody had it in hand"
    for anew in (False, True):
        with pytest.raises(LostLease):
            carried.plan_for(before, f"job:{job}:pull", "pull_request", {}, anew=anew)
    assert queries.effect(f"job:{job}:pull") is None and world.forge.pulls(world.repo) == []


def claimed_push(world: World, job: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(step, effect) of a publisher that is about to push."""
    row = steps.claim(spine.ready_steps(job)[0], world.clients.worker.id, world.clients.worker.host)
    assert row is not None
    carried.plan_for(row, f"job:{job}:push", "push", {"repository_id": world.repository_id, "sha": "1" * 40})
    effect = effects.claim(row_of(f"job:{job}:push")["id"], world.clients.worker.id)
    assert effect is not None
    return row, effect


# ---------------------------------------------------------------- the command line


def mosaic(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": os.environ["PATH"], "HOME": "/nowhere",
        "MOSAIC_DATA_DIR": str(world.clients.settings.data_dir),
        "MOSAIC_DATABASE_URL": str(world.clients.settings.database_url),
    }  # fmt: skip
    command = [sys.executable, "-m", "app", "effects", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def test_the_command_line_lists_replays_and_drops(world: World) -> None:
    job = world.ask()
    execute("delete from effects")
    ran = mosaic(world)
    assert (ran.returncode, ran.stdout) == (0, "forge   answers\nnothing waits, nothing is dead\n"), ran
    row = dead(world, job)
    waiting = a_comment(world, job, "reply")
    world.fault("GET", "/comments$", "status", times=3, status=503)
    world.deliver(waiting)
    world.practice.world.faults.clear()
    shown = mosaic(world).stdout
    assert "forge   answers (1 failures in a row, the last: server_error)" in shown
    assert f"{row['id']:>6}  dead   comment.closing  {world.repo}#{world.number}  job {job}  since " in shown
    assert "forge_forbidden: POST" in shown and "mosaic effects replay ID" in shown
    number = row_of(waiting)["id"]
    assert f"{number:>6}  waits  comment.reply" in shown and "server_error: GET" in shown and "next try" in shown

    spine.silence()
    ran = mosaic(world, "replay", "--all")
    assert (ran.returncode, ran.stdout) == (0, f"Effect {row['id']} is tried again.\n"), ran
    assert ("mosaic-control", "herald.deliver", row["id"]) in spine.bells()
    again = mosaic(world, "replay", str(row["id"]))
    assert again.returncode == 1 and "is not dead" in again.stderr and again.stderr.endswith("(not_found)\n")
    assert mosaic(world, "drop", str(number)).stdout == f"Effect {number} is given up.\n"
    assert mosaic(world, "drop", str(number)).returncode == mosaic(world, "drop", "999999").returncode == 1
    assert mosaic(world, "replay").returncode == 2
    trip(world)
    assert "forge   left alone since" in mosaic(world).stdout
