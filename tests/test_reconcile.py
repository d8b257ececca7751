"""Looking for mentions whose webhook never came: on a real practice Gitea over HTTP, with a real database.

Each mention becomes exactly one request, whoever brings it first: the webhook, a look, or a replay long after.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from app import queries
from app.clients.gitea import GiteaClient
from app.clients.gitea_lists import Page
from app.edge import connected
from app.gitea_events import Ignored, Known, Request, interpret
from app.ledger import inbox, jobs, workers
from app.ledger import reconcile as ledger
from app.models import execute, fetch
from app.rules import ServerConfig
from app.stitcher.intake import take
from jobs.runner import lookout as look_out_module
from jobs.runner.evidence import verify
from jobs.runner.lookout import Lookout
from jobs.runner.reconcile import Reconciler, Stopped
from jobs.runner.windows import read_window
from tests import spine
from tests.worlds.forge import Account, Forge
from tests.worlds.gitea import PracticeGitea
from tests.worlds.mailbox import Letter, Mailbox

EVENTS = ("issues", "issue_assign", "issue_label", "issue_comment", "pull_request_comment", "pull_request")
ROOT = Path(__file__).resolve().parent.parent
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def gitea(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PracticeGitea]:
    running = PracticeGitea(tmp_path_factory.mktemp("gitea"), "a" * 40).start()
    yield running
    running.stop()
    assert running.world.errors == []


@dataclass
class Scene:
    """People and repositories of one test, and a Mosaic that knows who its bot is."""

    gitea: PracticeGitea
    forge: Forge
    bot: Account
    alice: Account
    bob: Account
    stem: str
    client: GiteaClient

    def repo(self, name: str = "", owner: Account | None = None, **more: Any) -> str:
        repo = self.forge.make_repo(
            (owner or self.alice).login, f"{self.stem}{name or next(_numbers)}", {"calc.py": "1\n"}, **more
        )
        self.forge.collaborator(repo, self.bot.login, "write")
        return repo

    def issue(self, repo: str, body: str = "", title: str = "It fails", by: Account | None = None, **more: Any) -> int:
        return int(self.forge.open_issue((by or self.alice).token, repo, title, body, **more)["number"])

    def say(self, repo: str, number: int, body: str, by: Account | None = None) -> int:
        return int(self.forge.comment((by or self.alice).token, repo, number, body)["id"])

    def edit(self, repo: str, comment: int, body: str, by: Account | None = None) -> None:
        """Changes a comment a second later: Gitea's clock has whole seconds."""
        self.forge.edit_comment((by or self.alice).token, repo, comment, body)
        self.gitea.world.state.comments[comment].updated += 1

    @property
    def mention(self) -> str:
        return f"@{self.bot.login}"

    def bob_writes(self, repo: str) -> str:
        """Bob's token, good for writing there."""
        self.forge.collaborator(repo, self.bob.login, "write")
        return self.bob.token

    def server(self, grace: int = 0, requests: int = 60_000, **more: Any) -> ServerConfig:
        pace = {"grace_seconds": grace, "requests_per_minute": requests, **more}
        limits = {"limits": {"per_user_hour": 10_000}}
        return ServerConfig.model_validate(
            {"repositories": (f"*/{self.stem}*",), "reconcile": pace, "defaults": limits, "ceilings": limits}
        )

    def looker(self, **more: Any) -> Reconciler:
        return Reconciler(self.client, self.server(**more))

    def round(self, looker: Reconciler | None = None, *, inbox: bool = True, **more: Any) -> Reconciler:
        """One whole round by hand, in the order of the thread."""
        looker = looker or self.looker(**more)
        looker.discover()
        if inbox:
            looker.notifications()
        for place in looker.places():
            looker.visit(place)
        return looker

    def age(self, seconds: int, *repos: str) -> None:
        """Everything that was said and done in these repositories happened longer ago."""
        world = self.gitea.world
        with world.state.lock:
            for repo in [r for r in world.state.repos.values() if world.state.full_name(r) in repos]:
                for issue in repo.issues.values():
                    issue.created, issue.updated = issue.created - seconds, issue.updated - seconds
                for comment in [c for c in world.state.comments.values() if c.repo_id == repo.id]:
                    comment.created, comment.updated = comment.created - seconds, comment.updated - seconds
                for review in [r for r in world.state.reviews.values() if r.repo_id == repo.id]:
                    review.submitted -= seconds
                for note in [n for n in world.state.notifications.values() if n.repo_id == repo.id]:
                    note.updated -= seconds
                repo.created -= seconds


@pytest.fixture
def scene(gitea: PracticeGitea, database: str) -> Iterator[Scene]:
    forge = Forge(gitea.url, "a" * 40, control=True, prefix=f"s{next(_numbers)}-")
    bot, alice, bob = (forge.make_user(name) for name in ("mosaic", "alice", "bob"))
    jobs.remember_self(bot.id, bot.login)
    yield Scene(gitea, forge, bot, alice, bob, f"calc-{next(_numbers)}-", GiteaClient(gitea.url, bot.token))
    gitea.world.faults.clear()
    forge.cleanup()


def made() -> list[tuple[int | None, str]]:
    """(issue, kind) of every job, in the order in which they were made."""
    rows = fetch("select number, trigger ->> 'kind' as kind from runner_jobs order by id")
    return [(row["number"], row["kind"]) for row in rows]


def stored(where: str = "true") -> list[dict[str, Any]]:
    return fetch(f"select * from deliveries where {where} order by id")


def read(letter: Letter, known: Known) -> Request | Ignored:
    return interpret(letter.headers["x-gitea-event-type"], letter.payload, known)


def hand(letter: Letter, known: Known) -> Any:
    """Give a delivery to Mosaic as the receiver does."""
    found = read(letter, known)
    assert isinstance(found, Request), found
    return take(found, str(uuid.uuid4()), letter.headers["x-gitea-event-type"], letter.body)


# ---------------------------------------------------------------- the same request


def test_what_is_found_is_what_its_webhook_would_have_said(scene: Scene) -> None:
    """But for the rights, which only a signed delivery states."""
    repo = scene.repo()
    known = Known(scene.bot.id, scene.bot.login)
    scene.round()
    with Mailbox() as box:
        scene.forge.hook(repo, box.url, "s", EVENTS)
        number = scene.issue(repo, f"{scene.mention} look <b>&amp;</b> 🚀\n\n> quoted", "A title")
        scene.say(repo, number, f"{scene.mention} fix this\n\n{scene.mention} status")
        plain = scene.issue(repo, title="No words")
        scene.forge.assign(scene.alice.token, repo, plain, scene.bot.login)
        letters = box.wait("issues opened", "issue_comment created", "issue_assign assigned")
    told = [read(one, known) for one in letters]
    wanted = {one.dedup_key: one for one in told if isinstance(one, Request)}
    scene.round()
    rows = stored("dedup_key is not null")
    assert {row["dedup_key"] for row in rows} == set(wanted) and len(wanted) == 3
    for row in rows:
        said = wanted[row["dedup_key"]].trigger
        mine = dict(row["trigger"])
        assert mine.pop("permission") is None and said.permission == "admin"
        theirs = {name: getattr(said, name) for name in mine}
        assert mine == theirs, row["dedup_key"]
        assert (row["source"], row["via"]) == ("gitea", "poll")
    assert len(made()) == 3
    [job] = fetch("select metadata from runner_jobs where trigger ->> 'kind' = 'comment'")
    assert job["metadata"] == {"found": "poll"}
    assert queries.events(1)[0].data["found"] == "poll"


@pytest.mark.parametrize("first", ["webhook", "look"])
def test_whichever_comes_first_counts_and_the_other_is_a_duplicate(scene: Scene, first: str) -> None:
    repo = scene.repo()
    known = Known(scene.bot.id, scene.bot.login)
    scene.round()
    with Mailbox() as box:
        scene.forge.hook(repo, box.url, "s", EVENTS)
        scene.say(repo, scene.issue(repo, f"{scene.mention} look"), f"{scene.mention} status")
        label = scene.issue(repo, title="Labelled")
        scene.forge.label(scene.alice.token, repo, label, "mosaic")
        scene.forge.assign(scene.alice.token, repo, scene.issue(repo, title="Assigned"), scene.bot.login)
        letters = box.wait(
            "issues opened", "issue_comment created", "issue_label label_updated", "issue_assign assigned"
        )
    asking = [one for one in letters if isinstance(read(one, known), Request)]
    assert len(asking) == 4
    if first == "look":
        scene.round()
    heard = [hand(letter, known) for letter in asking]
    scene.round()
    scene.round(scene.looker())
    assert [one is None for one in heard] == [first == "look"] * 4
    assert [hand(letter, known) for letter in asking] == [None] * 4  # a replay, long after
    assert sorted(made()) == [(1, "opened"), (2, "labeled"), (3, "assigned")]
    assert [row["event"] for row in stored("state = 'command'")] == ["issue_comment"]
    via = {row["via"] for row in stored("dedup_key is not null")}
    assert via == ({"confirmed"} if first == "look" else {"webhook"})


def test_a_look_and_a_webhook_at_the_same_moment_make_one_job(scene: Scene, database: str) -> None:
    repo, known = scene.repo(), Known(scene.bot.id, scene.bot.login)
    scene.round()
    with Mailbox() as box:
        scene.forge.hook(repo, box.url, "s", EVENTS)
        number = scene.issue(repo)
        for turn in range(8):
            scene.say(repo, number, f"{scene.mention} fix {turn}")
        letters = box.wait(*["issue_comment created"] * 8)

    def look(_: int) -> None:
        with connected():
            scene.round()

    def told(letter: Letter) -> None:
        with connected():
            hand(letter, known)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(look, 0) for _ in range(3)] + [pool.submit(told, one) for one in letters]
        for future in futures:
            future.result()
    keys = fetch("select trigger_key, count(*) as n from runner_jobs group by 1")
    assert len(keys) == 8 and {row["n"] for row in keys} == {1}
    assert len(stored("dedup_key is not null")) == 8


def test_a_signed_delivery_that_comes_later_states_the_person_s_rights(scene: Scene) -> None:
    repo, known = scene.repo(), Known(scene.bot.id, scene.bot.login)
    scene.round()
    with Mailbox() as box:
        scene.forge.hook(repo, box.url, "s", EVENTS)
        scene.say(repo, scene.issue(repo), f"{scene.mention} fix this")
        [letter] = [one for one in box.wait("issues opened", "issue_comment created") if "comment" in one.payload]
    scene.round()
    [before] = fetch("select trigger, metadata from runner_jobs")
    assert before["trigger"]["permission"] is None
    assert hand(replace_actor(letter, scene.bob), known) is None  # somebody else's rights are not this person's
    assert fetch("select trigger, metadata from runner_jobs") == [before]
    assert hand(letter, known) is None
    [after] = fetch("select trigger, metadata from runner_jobs")
    assert after["trigger"] == {**before["trigger"], "permission": "admin"} and after["metadata"] == {}
    execute("update runner_jobs set status='failed', reason='refused', finished_at=clock_timestamp()")
    hand(replace_permission(letter), known)
    assert fetch("select trigger, metadata from runner_jobs") == [after]


def replace_actor(letter: Letter, who: Account) -> Letter:
    payload = {**letter.payload, "sender": {"id": who.id, "login": who.login}}
    return replace(letter, body=json.dumps(payload).encode())


def replace_permission(letter: Letter) -> Letter:
    repository = {**letter.payload["repository"], "permissions": {"pull": True}}
    return replace(letter, body=json.dumps({**letter.payload, "repository": repository}).encode())


# ---------------------------------------------------------------- what does not count


def test_what_is_older_than_the_first_look_is_left_alone(scene: Scene) -> None:
    repo = scene.repo()
    number = scene.issue(repo, f"{scene.mention} look")
    old = scene.say(repo, number, f"{scene.mention} fix this")
    scene.forge.assign(scene.alice.token, repo, number, scene.bot.login)
    scene.forge.label(scene.alice.token, repo, number, "mosaic")
    scene.age(100, repo)
    scene.round()
    assert made() == [] and stored() == []
    scene.edit(repo, old, f"{scene.mention} fix this, please")  # a typo mended today asks for nothing
    scene.say(repo, number, "just talk")
    scene.round()
    assert made() == []
    scene.say(repo, number, f"{scene.mention} fix that")
    scene.round()
    assert made() == [(number, "comment")]


def test_own_words_and_those_of_nobody_are_dropped(scene: Scene) -> None:
    repo = scene.repo()
    scene.round()
    number = scene.issue(repo, f"{scene.mention} look", by=scene.bot)
    scene.say(repo, number, f"{scene.mention} fix this", by=scene.bot)
    gone = scene.say(repo, number, f"{scene.mention} fix this", by=scene.bob)
    scene.gitea.world.state.comments[gone].user_id = -1
    scene.say(repo, number, f"`{scene.mention} fix this`\n\n> {scene.mention} fix that")
    scene.say(repo, number, f"{scene.mention}-dev fix that")
    scene.round()
    assert made() == [] and stored() == []


def test_deleted_unserved_and_invisible(scene: Scene) -> None:
    repo, closed = scene.repo(), scene.repo(private=True)
    other = scene.forge.make_repo(scene.alice.login, f"other-{next(_numbers)}", {})
    scene.forge.collaborator(other, scene.bot.login, "write")
    scene.round()
    gone = scene.say(repo, scene.issue(repo), f"{scene.mention} fix this")
    scene.forge.delete_comment(scene.alice.token, repo, gone)
    scene.say(other, scene.issue(other), f"{scene.mention} fix this")
    scene.say(closed, scene.issue(closed), f"{scene.mention} fix this")
    scene.forge.call("DELETE", f"/repos/{closed}/collaborators/{scene.bot.login}")
    looker = scene.round()
    assert made() == [] and len(looker.tally.refused) == 1
    [row] = fetch("select failures, error from reconcile_cursors where failures > 0 and source = 'comments'")
    assert row["failures"] == 1 and "404" in row["error"]
    scene.round()  # not asked again so soon
    assert scene.round().tally.refused == []
    scene.forge.collaborator(closed, scene.bot.login, "write")
    execute("update reconcile_cursors set retry_at = null")
    scene.round(inbox=False)
    assert made() == [(1, "comment")]  # nothing that was asked meanwhile is lost


# ---------------------------------------------------------------- edits


def test_an_edit_counts_for_what_it_adds(scene: Scene) -> None:
    repo = scene.repo()
    scene.round()
    number = scene.issue(repo)
    said = scene.say(repo, number, f"{scene.mention} fix this")
    scene.round()
    scene.edit(repo, said, f"{scene.mention} fix this (typo mended)\n")
    scene.edit(repo, said, f"Hello.\n\n{scene.mention} fix this\n\nMore words.")
    looker = scene.round()
    assert looker.tally.found == 0, stored()
    scene.edit(repo, said, f"{scene.mention} fix this\n\n{scene.mention} status")
    assert scene.round().tally.found == 1
    assert scene.round().tally.found == 0
    [row] = stored("state = 'command'")
    assert [one["verb"] for one in row["commands"]] == ["status"] and len(made()) == 1


def test_an_edited_text_that_nobody_told_is_nobody_s_request(scene: Scene) -> None:
    """Whoever may write can edit a comment of an administrator: Gitea does not say that it was so."""
    repo = scene.repo()
    scene.forge.collaborator(repo, scene.bob.login, "write")
    scene.round()
    number = scene.issue(repo)
    said = scene.say(repo, number, "a thought")
    scene.edit(repo, said, f"{scene.mention} fix this", by=scene.bob)
    scene.round()
    [job] = queries.jobs()
    assert job.trigger.actor == scene.alice.login
    why = verify(scene.client, repo, job.trigger, scene.bot.id, polled=True)
    assert why == "The comment was edited, and its webhook never came: Gitea does not tell who wrote this text."
    assert verify(scene.client, repo, job.trigger, scene.bot.id) == ""  # a signed delivery tells


def test_an_issue_whose_text_may_have_changed_is_nobody_s_request(scene: Scene) -> None:
    repo = scene.repo()
    scene.forge.collaborator(repo, scene.bob.login, "write")
    scene.round()
    plain, body, title = (scene.issue(repo, f"{scene.mention} look at {turn}", f"T{turn}") for turn in range(3))
    for number in (plain, body, title):
        scene.say(repo, number, "some talk")
    scene.forge.edit_issue(scene.bob.token, repo, body, body=f"{scene.mention} look at 7")
    scene.forge.edit_issue(scene.bob.token, repo, title, title="Another")
    for issue in (scene.gitea.world.state.repos[scene.client.repository(repo).id]).issues.values():  # type: ignore[union-attr]
        issue.updated += 1
    scene.round()
    by_number = {job.number: job for job in queries.jobs()}
    assert set(by_number) == {plain, body, title}
    why = {n: verify(scene.client, repo, job.trigger, scene.bot.id, polled=True) for n, job in by_number.items()}
    assert why[plain] == ""
    assert why[body] == why[title] != "" and "Gitea does not tell who wrote this text." in why[body]


# ---------------------------------------------------------------- assignments and labels


def test_an_assignment_ends_and_begins_again(scene: Scene) -> None:
    repo = scene.repo()
    scene.round()
    number = scene.issue(repo)
    scene.forge.assign(scene.bob_writes(repo), repo, number, scene.bot.login)
    scene.round()
    [job] = queries.jobs()
    assert (job.trigger.kind, job.trigger.actor) == ("assigned", scene.bob.login)
    execute("update runner_jobs set status='failed', reason='refused', finished_at=clock_timestamp()")
    scene.round()
    assert len(made()) == 1
    scene.forge.assign(scene.alice.token, repo, number)
    scene.round()
    assert stored("dedup_key = 'assigned:' || (trigger ->> 'object_id')") == []
    scene.forge.assign(scene.alice.token, repo, number, scene.bot.login)
    later(scene, repo, 10)
    scene.round()
    scene.round()
    assert made() == [(number, "assigned"), (number, "assigned")]
    assert queries.jobs()[0].trigger.actor == scene.alice.login


def later(scene: Scene, repo: str, seconds: int) -> None:
    """The newest line of the timeline happened a while after what was before."""
    world = scene.gitea.world
    with world.state.lock:
        [found] = [r for r in world.state.repos.values() if world.state.full_name(r) == repo]
        newest = max((c for c in world.state.comments.values() if c.repo_id == found.id), key=lambda c: c.id)
        newest.created, newest.updated = newest.created + seconds, newest.updated + seconds
        for issue in found.issues.values():
            issue.updated += seconds


def test_a_label_is_the_request_of_who_put_it_on(scene: Scene) -> None:
    repo = scene.repo()
    scene.round()
    number = scene.issue(repo)
    scene.forge.label(scene.bob_writes(repo), repo, number, "bug", "Mosaic")
    scene.say(repo, number, "some talk")
    scene.round()
    [job] = queries.jobs()
    assert (job.trigger.kind, job.trigger.actor) == ("labeled", scene.bob.login)
    scene.round()
    scene.say(repo, number, "more talk")
    scene.round()
    assert len(made()) == 1
    scene.forge.call("DELETE", f"/repos/{repo}/issues/{number}/labels", scene.alice.token)
    scene.round()
    assert len(made()) == 1


def test_opened_assigned_and_labelled_in_one_click_is_one_job(scene: Scene) -> None:
    repo = scene.repo()
    label = scene.forge.make_label(repo, "mosaic")
    scene.round()
    scene.issue(repo, f"{scene.mention} look", assignees=[scene.bot.login], labels=[label])
    scene.round()
    scene.round()
    assert made() == [(1, "opened")]
    assert {row["job_id"] for row in stored("dedup_key is not null")} == {1}


# ---------------------------------------------------------------- reviews


def test_reviews_of_our_own_pull_requests_are_read(scene: Scene, tmp_path: Path) -> None:
    repo = scene.repo()
    own, foreign = pull(scene, repo, tmp_path, "one"), pull(scene, repo, tmp_path, "two")
    job = spine.submit(repository_id=scene.client.repository(repo).id, repository=repo)  # type: ignore[union-attr]
    execute("update runner_jobs set pull_request = %s where id = %s", own, job)
    scene.round()
    before = len(made())
    line = {"path": "calc.py", "new_position": 1, "body": f"{scene.mention} fix this line"}
    quiet = {"path": "calc.py", "new_position": 1, "body": "Why?"}
    for number in (own, foreign):
        review(scene, repo, number, scene.alice, f"{scene.mention} fix the name", line)
        review(scene, repo, number, scene.bob, "", quiet)
        review(scene, repo, number, scene.bot, f"{scene.mention} fix me")
        pending = {"event": "", "body": f"{scene.mention} fix a draft"}
        scene.forge.call("POST", f"/repos/{repo}/pulls/{number}/reviews", scene.alice.token, pending)
    assert scene.round().tally.found == 2
    assert sorted(made()[before:]) == [(own, "comment"), (own, "review")]
    for found in queries.jobs()[:2]:
        assert verify(scene.client, repo, found.trigger, scene.bot.id, polled=True) == ""
        changed = replace(found.trigger, text_sha256="0" * 64)
        assert "changed after the request" in verify(scene.client, repo, changed, scene.bot.id, polled=True)
        other = replace(found.trigger, actor_id=scene.bob.id)
        assert "by somebody else" in verify(scene.client, repo, other, scene.bot.id, polled=True)
        gone = replace(found.trigger, object_id=99_999)
        assert verify(scene.client, repo, gone, scene.bot.id, polled=True).endswith(" is gone.")
    assert scene.round().tally.found == 0
    replies = f"/repos/{repo}/pulls/{own}/comments/{thread_of(scene, repo, own)}/replies"
    scene.forge.call("POST", replies, scene.alice.token, {"body": f"{scene.mention} status"})
    looker = scene.round()
    assert looker.tally.found == 1 and [row["event"] for row in stored("state = 'command'")] == ["pull_request_comment"]
    spent = looker.tally.requests
    scene.round(looker)
    assert looker.tally.requests - spent <= 5, "what has not changed is not read again"


def pull(scene: Scene, repo: str, place: Path, branch: str) -> int:
    checkout = scene.forge.clone(scene.alice.token, repo, place / branch)
    checkout.git("checkout", "-q", "-b", branch)
    checkout.commit({f"{branch}.py": "2\n"}, "Change")
    checkout.push(branch)
    return int(scene.forge.open_pull(scene.alice.token, repo, branch, "main", "A change")["number"])


def review(scene: Scene, repo: str, number: int, by: Account, body: str, *lines: dict[str, Any]) -> int:
    fields = {"event": "COMMENT", "body": body, "comments": list(lines)}
    return int(scene.forge.call("POST", f"/repos/{repo}/pulls/{number}/reviews", by.token, fields)["id"])


def thread_of(scene: Scene, repo: str, number: int) -> int:
    """The line comment of bob's review."""
    reviews = scene.forge.call("GET", f"/repos/{repo}/pulls/{number}/reviews")
    [one] = [row["id"] for row in reviews if row["user"]["login"] == scene.bob.login]
    return int(scene.forge.call("GET", f"/repos/{repo}/pulls/{number}/reviews/{one}/comments")[0]["id"])


# ---------------------------------------------------------------- many, at once, while they change


def test_more_than_a_page_and_all_within_one_second(scene: Scene) -> None:
    repo = scene.repo()
    scene.round()
    number = scene.issue(repo)
    said = [scene.say(repo, number, f"{scene.mention} fix {turn}") for turn in range(70)]
    for turn in range(55):
        scene.issue(repo, f"{scene.mention} look", f"Issue {turn}")
    world = scene.gitea.world
    with world.state.lock:
        moment = world.state.comments[said[-1]].created
        for comment in said:
            world.state.comments[comment].created = world.state.comments[comment].updated = moment
    looker = scene.round(inbox=False)
    assert looker.tally.found == 125
    assert sorted(made()) == sorted([(number, "comment")] * 70 + [(n, "opened") for n in range(2, 57)])
    assert scene.round().tally.found == 0


def test_what_was_asked_first_is_taken_first(scene: Scene) -> None:
    repo = scene.repo()
    scene.round()
    first = scene.issue(repo, f"{scene.mention} look")
    cancel = scene.say(repo, first, f"{scene.mention} cancel")
    second = scene.issue(repo, "quiet")
    task = scene.say(repo, second, f"{scene.mention} fix this")
    world, back = scene.gitea.world, "interval '1000 seconds'"
    execute(f"update reconcile_cursors set not_before = not_before - {back}, read_to = read_to - {back}")
    with world.state.lock:
        [found] = [r for r in world.state.repos.values() if world.state.full_name(r) == repo]
        found.issues[first].created -= 600
        for comment, ago in ((cancel, 100), (task, 500)):
            world.state.comments[comment].created -= ago
            world.state.comments[comment].updated = world.state.comments[comment].created
    scene.round(inbox=False)
    rows = stored("dedup_key is not null")
    assert [(row["state"], row["trigger"]["number"]) for row in rows] == [
        ("job", first),
        ("job", second),
        ("command", first),
    ]


@dataclass
class Line:
    id: int
    updated_at: datetime


def pages_of(lines: Callable[[], list[Line]], clock: datetime | None, size: int = 50, total: bool = True) -> Any:
    """A list as Gitea serves it."""

    def read(since: datetime, before: datetime | None, page: int) -> Page[Line]:
        found = [one for one in lines() if one.updated_at >= since and (before is None or one.updated_at <= before)]
        shown = tuple(replace(one) for one in found[size * (page - 1) : size * page])
        return Page(shown, len(found) if total else None, clock)

    return read


START = datetime(2026, 11, 22, 10, tzinfo=UTC)


@pytest.mark.parametrize("seed", range(12))
def test_a_list_that_changes_while_it_is_read_loses_nothing(seed: int) -> None:
    """Lines are deleted and changed between any two requests; whatever stays is found, however long the list."""
    lines = {n: Line(n, START + timedelta(seconds=n * 7 // (1 + seed % 5))) for n in range(400)}
    clock = max(line.updated_at for line in lines.values())
    turns = itertools.count(seed)

    def meddled() -> list[Line]:
        turn = next(turns)
        if turn % 2:  # under our hands
            lines.pop(turn * 13 % 400, None)
            lines.pop(turn * 29 % 400, None)
        if changed := lines.get(turn * 17 % 400):
            changed.updated_at = clock + timedelta(seconds=turn)
        return list(lines.values())

    window = read_window(pages_of(meddled, clock), START, most=10_000)
    assert set(lines) <= {line.id for line in window.items}
    assert window.end is None


def test_a_long_list_is_read_in_parts_oldest_first() -> None:
    lines = [Line(n, START + timedelta(seconds=3 * n)) for n in range(500)]
    seen: set[int] = set()
    since, turns = START, 0
    while (window := read_window(pages_of(lambda: lines, lines[-1].updated_at), since, most=100)).end is not None:
        fresh = {line.id for line in window.items}
        assert fresh == {line.id for line in lines if since <= line.updated_at <= window.end}
        assert len(fresh) < 200
        seen, since, turns = seen | fresh, window.end, turns + 1
    assert seen | {line.id for line in window.items} == set(range(500)) and turns >= 3


def test_a_forge_that_says_no_totals_is_read_page_by_page() -> None:
    lines = [Line(n, START + timedelta(seconds=n)) for n in range(130)]
    read = pages_of(lambda: lines, None, size=20, total=False)
    assert {line.id for line in read_window(read, START).items} == set(range(130))


# ---------------------------------------------------------------- names


def visit_all(looker: Reconciler, since: datetime | None = None) -> None:
    for place in looker.places():
        looker.visit(place, since)


def test_a_repository_that_was_renamed_is_found_by_its_id(scene: Scene) -> None:
    repo = scene.repo()
    looker = scene.round()
    number = scene.issue(repo)
    renamed, away = f"{scene.alice.login}/{scene.stem}renamed", f"elsewhere-{next(_numbers)}"
    scene.forge.call("PATCH", f"/repos/{repo}", body={"name": renamed.split("/")[1]})
    scene.say(renamed, number, f"{scene.mention} fix this")
    visit_all(looker)  # before the list of repositories is read again
    [job] = queries.jobs()
    assert job.repository == renamed and [place.full_name for place in looker.places()] == [renamed]
    scene.forge.call("PATCH", f"/repos/{renamed}", body={"name": away})
    scene.say(f"{scene.alice.login}/{away}", number, f"{scene.mention} fix that")
    visit_all(looker)
    assert looker.places() == [] and len(made()) == 1
    assert fetch("select 1 as yes from reconcile_cursors where repository_id <> 0") == []


def test_a_repository_that_is_served_again_starts_from_there(scene: Scene) -> None:
    repo = scene.repo()
    scene.round()
    nobody = Reconciler(scene.client, scene.server().model_copy(update={"repositories": ("nobody/none",)}))
    nobody.discover()
    assert nobody.places() == []
    number = scene.issue(repo)
    scene.say(repo, number, f"{scene.mention} fix this")
    scene.age(6000, repo)
    execute(
        "update reconcile_cursors set not_before = not_before - interval '2 hours', read_to = read_to - "
        "interval '2 hours' where repository_id <> 0"
    )
    scene.round()
    assert made() == []
    scene.say(repo, number, f"{scene.mention} fix that")
    scene.round()
    assert len(made()) == 1


def test_a_repository_made_since_counts_from_its_beginning(scene: Scene) -> None:
    scene.repo()
    scene.round()
    execute("update reconcile_cursors set read_to = read_to - interval '1 hour' where source = 'repositories'")
    born, grown = scene.repo(), scene.repo()
    scene.issue(born, f"{scene.mention} look", "Born")
    scene.issue(grown, f"{scene.mention} look", "Grown")
    scene.age(600, born)
    scene.age(6000, grown)
    scene.round()
    assert [job.repository for job in queries.jobs()] == [born]


def test_a_notification_names_a_repository_before_the_list_does(scene: Scene) -> None:
    scene.repo()
    looker = scene.round()
    execute("update reconcile_cursors set read_to = read_to - interval '1 minute' where repository_id = 0")
    repo = scene.repo()
    number = scene.issue(repo)
    scene.say(repo, number, f"{scene.mention} fix this")
    looker.notifications()
    assert made() == [(number, "comment")]
    spent = looker.tally.requests
    looker.notifications()
    assert looker.tally.requests == spent + 1, "a thread that has not changed is not read again"
    rows = scene.forge.call("GET", "/notifications", scene.bot.token)
    assert [row["unread"] for row in rows if row["repository"]["full_name"] == repo] == [True]


# ---------------------------------------------------------------- patience, budget, trouble


def test_a_young_mention_is_left_to_its_webhook(scene: Scene) -> None:
    repo = scene.repo()
    scene.round()
    scene.say(repo, scene.issue(repo), f"{scene.mention} fix this")
    looker = scene.round(grace=60)
    assert made() == [] and looker.tally.waiting >= 1
    scene.age(61, repo)
    execute("update reconcile_cursors set not_before = not_before - interval '70 seconds'")
    scene.round(looker)
    assert made() == [(1, "comment")]


def test_a_clock_that_lags_what_it_shows_does_not_hide_it(scene: Scene) -> None:
    """A proxy in front may have a clock of its own."""
    looker = scene.looker(grace=20)
    said = START + timedelta(hours=1)
    looker.heard(START, said)
    assert not looker.old_enough(said)
    looker.heard(START + timedelta(seconds=20), None)
    assert looker.old_enough(said)


def test_the_budget_is_kept(scene: Scene) -> None:
    """Six requests at once, then one each ten seconds: the seventh waits, and a process that stops does not."""
    stop = threading.Event()
    looker = Reconciler(scene.client, scene.server(requests=6), stop=stop)
    for _ in range(6):
        looker.spend()
    began = time.monotonic()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(Stopped):
        looker.spend()
    assert time.monotonic() - began >= 0.2 and looker.tally.requests == 6


def test_commands_that_were_answered_are_known_when_their_delivery_is_gone(scene: Scene) -> None:
    """Deliveries are kept for a while; the job's key and our own 👀 for ever."""
    repo = scene.repo()
    scene.round()
    number = scene.issue(repo)
    asked = scene.say(repo, number, f"{scene.mention} status")
    scene.say(repo, number, f"{scene.mention} fix this")
    old = scene.issue(repo, f"{scene.mention} help", "Help")
    assert scene.round().tally.found == 3
    scene.client.react_comment(repo, asked, "eyes")
    scene.client.react_issue(repo, old, "eyes")
    execute("delete from effects where delivery_id is not null")
    execute("delete from deliveries")
    looker = scene.looker()
    looker.discover()
    visit_all(looker, datetime.now(UTC) - timedelta(hours=1))
    assert looker.tally.found == 0 and made() == [(number, "comment")]


def test_too_many_requests_of_one_person_are_left(scene: Scene) -> None:
    repo = scene.repo()
    scene.round()
    number = scene.issue(repo)
    for turn in range(8):
        scene.say(repo, number, f"{scene.mention} fix {turn}")
    server = scene.server().model_dump(mode="json")
    server["ceilings"]["limits"]["per_user_hour"] = 3
    scene.round(Reconciler(scene.client, ServerConfig.model_validate_json(json.dumps(server))))
    assert len(made()) == 4


# ---------------------------------------------------------------- the thread of a control worker


@contextmanager
def lookout(scene: Scene, worker_id: int = 1, **more: Any) -> Iterator[Lookout]:
    """The thread as a control worker runs it; `worker_id` need not be alive."""
    worker = SimpleNamespace(id=worker_id, draining=False)
    running = Lookout(SimpleNamespace(forge=scene.client, server=scene.server(**more), worker=worker))  # type: ignore[arg-type]
    running.start()
    try:
        yield running
    finally:
        running.over.set()
        running.thread.join(30)
        assert not running.thread.is_alive()


def until(look: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    end = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.02)
    return found


def test_it_looks_at_once_and_again_and_says_how_late_it_is(scene: Scene) -> None:
    repo = scene.repo()
    assert queries.reconcile_lag() is None
    with lookout(scene, seconds=1, notification_seconds=3600):
        until(lambda: queries.reconcile_lag() is not None, "the first round")
        scene.say(repo, scene.issue(repo), f"{scene.mention} fix this")
        until(made, "what was asked after it")
    assert made() == [(1, "comment")]
    state = queries.reconcile_state()
    assert (state.failures, state.error, state.found, state.confirmed) == (0, "", 1, 0)
    assert state.lag is not None and 0 <= state.lag < 60


def test_one_of_many_looks_and_the_next_one_follows_at_once(database: str) -> None:
    living, other = spine.worker(), spine.worker()
    with psycopg.connect(database, autocommit=True) as alive:  # as the process of a worker holds it
        for worker in (living, other):
            alive.execute("select pg_advisory_lock(%s, %s)", (workers.LOCK_CLASS, worker))
        one_looks(living, other)
    until(lambda: ledger.take_office(other, 30), "the office of a process that is gone")


def one_looks(living: int, other: int) -> None:
    assert ledger.take_office(living, 30) and not ledger.take_office(other, 30)
    assert ledger.take_office(living, 30)
    ledger.leave_office(other)
    assert not ledger.take_office(other, 30)
    ledger.leave_office(living)
    assert ledger.take_office(other, 0) and ledger.take_office(living, 30), "a lease that has lapsed binds nobody"
    execute("update reconciler set worker_id = 987654")
    assert ledger.take_office(other, 30), "nor does that of a process that is gone"


def test_while_the_forge_is_away_it_waits_and_then_catches_up(scene: Scene) -> None:
    repo = scene.repo()
    scene.round()
    scene.gitea.down()
    try:
        with lookout(scene, seconds=1):
            until(lambda: queries.reconcile_state().failures >= 1, "the first failure")
            [row] = fetch("select retry_at > clock_timestamp() as later, error from reconciler")
            assert row["later"] and "no connection to Gitea" in row["error"]
            scene.gitea.up()
            number = scene.issue(repo)
            for turn in range(3):
                scene.say(repo, number, f"{scene.mention} fix {turn}")
            execute("update reconciler set retry_at = null")
            until(lambda: len(made()) == 3 and queries.reconcile_state().failures == 0, "what was asked meanwhile", 60)
    finally:
        scene.gitea.up()
    assert [job.instructions for job in reversed(queries.jobs())] == ["0", "1", "2"]


def test_how_long_it_waits_is_what_the_forge_says_or_twice_as_long_each_time(scene: Scene) -> None:
    def waits() -> float:
        [row] = fetch("select extract(epoch from retry_at - clock_timestamp())::float8 as s from reconciler")
        return float(row["s"])

    found = []
    for after in (None, None, None, None, None, None, 123.0, None):
        ledger.back_off("away", after)
        found.append(round(waits() + 0.4))
    assert found == [5, 10, 20, 40, 60, 60, 123, 60]
    assert not ledger.take_office(spine.worker(), 30)
    ledger.begin_round()
    ledger.complete_round()
    assert queries.reconcile_state().failures == 0


def test_too_busy_is_heeded(scene: Scene) -> None:
    scene.repo()
    scene.forge.knob("rate_limit", method="GET", path="/user/repos", times=1, retry_after=77)
    with lookout(scene):
        until(lambda: queries.reconcile_state().failures, "the refusal")
    [row] = fetch("select extract(epoch from retry_at - clock_timestamp())::float8 as s, error from reconciler")
    assert 60 < row["s"] <= 77 and "429" in row["error"]


def test_one_repository_that_always_fails_does_not_hold_up_the_others(scene: Scene) -> None:
    bad, good = scene.repo("bad"), scene.repo("good")
    scene.round()
    scene.forge.knob("fault", method="GET", path=f"{bad}/issues", kind="status", times=100_000, status=500)
    scene.say(good, scene.issue(good), f"{scene.mention} fix this")
    scene.gitea.world.state.notifications.clear()
    with lookout(scene, seconds=1, notification_seconds=3600):
        for _ in range(3):
            seen = queries.reconcile_state().failures
            until(lambda seen=seen: queries.reconcile_state().failures != seen or made(), "a failure")
            execute("update reconciler set retry_at = null")
        until(made, "the other repository", 60)
    assert [job.repository for job in queries.jobs()] == [good]


@pytest.mark.parametrize("broken", ["issues", "notifications", "/user/repos"])
def test_what_always_fails_is_waited_for_and_the_others_are_looked_at(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Nobody shortens the pause after a failure here: it is longer than a turn, and the round goes on after it."""
    monkeypatch.setattr(ledger, "BACKOFF", 1.5)
    monkeypatch.setattr(ledger, "MOST_BACKOFF", 1.5)
    monkeypatch.setattr(look_out_module, "IDLE_SECONDS", 0.2)
    bad, good = scene.repo("bad"), scene.repo("good")
    scene.round()
    path = {"issues": f"{bad}/issues", "notifications": "/notifications"}.get(broken, broken)
    scene.forge.knob("fault", method="GET", path=path, kind="status", times=100_000, status=500)
    scene.say(good, scene.issue(good), f"{scene.mention} fix this")
    scene.gitea.world.state.notifications.clear()
    execute(
        "update reconcile_cursors set looked_at = null where repository_id in (select id from repositories "
        "where full_name = %s)",
        bad,
    )  # its turn comes first
    with lookout(scene, seconds=2, notification_seconds=1):
        until(made, "the other repository", 40)
    assert [job.repository for job in queries.jobs()] == [good]


# ---------------------------------------------------------------- the command


def command(scene: Scene, database: str, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "server.toml").write_text(f'repositories = ["*/{scene.stem}*"]\n[reconcile]\ngrace_seconds = 0\n')
    environment = {
        "PATH": os.environ["PATH"],
        "MOSAIC_DATA_DIR": str(tmp_path / "var"),
        "MOSAIC_DATABASE_URL": database,
        "MOSAIC_CONFIG": str(tmp_path / "server.toml"),
        "MOSAIC_GITEA_URL": scene.gitea.url,
        "MOSAIC_GITEA_TOKEN": scene.bot.token,
    }
    line = [sys.executable, "-m", "app", "reconcile", *words]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_an_operator_looks_now_and_further_back(scene: Scene, database: str, tmp_path: Path) -> None:
    repo, other = scene.repo(), scene.repo()
    number = scene.issue(repo)
    scene.say(repo, number, f"{scene.mention} fix this")
    scene.age(7200, repo)
    ran = command(scene, database, tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(
        r"Looked at 2 repositories with \d+ requests: 0 texts, 0 requests found that no webhook had told.\n", ran.stdout
    )
    assert queries.reconcile_lag() is not None
    ran = command(scene, database, tmp_path, "--repository", other.upper(), "--since", "3h")
    assert ran.returncode == 0 and ran.stdout.startswith("Looked at 1 repositories") and made() == []
    ran = command(scene, database, tmp_path, "--repository", repo, "--since", "3h")
    assert ran.returncode == 0 and made() == [(number, "comment")]
    told = f"{repo}#{number}: found a request of {scene.alice.login} that no webhook had told (job 1)\n"
    assert ran.stdout.startswith(told)
    [row] = fetch("select count(*) as n from reconcile_cursors where read_to < clock_timestamp() - interval '1 hour'")
    assert row["n"] == 0, "a cursor does not go back"
    ran = command(scene, database, tmp_path, "--repository", "nobody/none")
    assert ran.returncode == 1 and "nobody/none is not served" in ran.stderr and "(not_served)" in ran.stderr
    ran = command(scene, database, tmp_path, "--since", "yesterday")
    assert ran.returncode == 2 and "'yesterday' is neither like 6h" in ran.stderr


def test_what_came_while_the_forge_was_asked_is_not_taken_for_ended(scene: Scene) -> None:
    """The bot was not assigned when the issue was read; the webhook of its assignment came just after."""
    repo = scene.repo()
    scene.round()
    scene.forge.assign(scene.alice.token, repo, scene.issue(repo), scene.bot.login)
    before = queries.now()
    scene.round()
    [row] = stored("dedup_key like 'assigned:%%'")
    inbox.release("gitea", row["dedup_key"], before=before)
    assert stored("dedup_key like 'assigned:%%'")[0]["dedup_key"] == row["dedup_key"]
    inbox.release("gitea", row["dedup_key"], before=queries.now())
    assert queries.known_requests([row["dedup_key"]]) == frozenset()
