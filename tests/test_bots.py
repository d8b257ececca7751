"""Bots that the rules name may ask, and no two answer each other: real admission, a practice forge over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app import audit, queries, stitcher
from app.gitea_events import Ignored, Known, Request, interpret, interpret_review, text_hash
from app.ledger.chain import transaction
from app.types import Job, Trigger
from app.worker import Worker
from jobs.herald.marker import marker
from tests.test_wip import Desk
from tests.worlds.forge import Account, Forge
from tests.worlds.gitea import PracticeGitea
from tests.worlds.town import CALC

SIGN = marker(b"k" * 32, 1, 7, "closing", "job-42")
KNOWN = Known(1, "mosaic")


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PracticeGitea]:
    server = PracticeGitea(tmp_path_factory.mktemp("gitea"), "a" * 40).start()
    yield server
    server.stop()


class Yard(Desk):
    """A desk whose repository knows two bots, of which the second may only read."""

    def __init__(self, forge: Forge, url: str, place: Path, worker: Worker) -> None:
        super().__init__(forge, url, place, worker, dict(CALC))
        self.ci, self.reader, self.stranger = (forge.make_user(name) for name in ("ci", "reader", "renovate"))
        for account in (self.ci, self.stranger):
            forge.collaborator(self.repo, account.login, "write")
        forge.collaborator(self.repo, self.reader.login, "read")
        who = f'[who]\nusers = ["{self.alice.login}"]\nbots = ["{self.ci.login.upper()}", "{self.reader.login}"]\n'
        (place / "owner").mkdir()
        checkout = forge.clone(self.alice.token, self.repo, place / "owner")
        checkout.commit({".mosaic.toml": f"{CALC['.mosaic.toml']}{who}"}, "Who may ask")
        checkout.push("main")
        self.number = int(forge.open_issue(self.alice.token, self.repo, "add() subtracts", "It should add.")["number"])

    def asked(self, by: Account) -> Job:
        """A comment that asks for work, and what became of it; the agent fails at once."""
        text = f"@{self.bot.login} fix this"
        said = self.forge.comment(by.token, self.repo, self.number, text)
        trigger = Trigger(
            "comment", self.id, self.repo, self.number, False, said["id"], by.id, by.login, text, text_hash(text),
            permission="write", at=said["created_at"], issue_title="add() subtracts",
        )  # fmt: skip
        with transaction():
            job = stitcher.submit(trigger, trigger_key=f"comment:{said['id']}", instructions="this")
        assert job is not None
        self.work(job)
        return self.job(job)

    def closing(self, job: Job) -> str | None:
        """The text of the closing comment; None when there is a sign instead."""
        effect = queries.effect(f"job:{job.id}:closing")
        if effect is None:
            declined = queries.effect(f"job:{job.id}:declined")
            assert declined is not None and declined["state"] == "done"
            return None
        found = {one["id"]: one["body"] for one in self.forge.comments(self.repo, self.number)}
        return str(found[int(effect["external_id"])])


@pytest.fixture
def yard(practice: PracticeGitea, database: str, tmp_path: Path) -> Iterator[Yard]:
    worker = Worker(database, "control", 8)
    worker.start()
    forge = Forge(practice.url, "a" * 40, control=True)
    yield Yard(forge, practice.url, tmp_path, worker)
    worker.stop()
    forge.cleanup()


def test_a_named_bot_asks_once_until_a_person_asks(yard: Yard, database: str) -> None:
    first = yard.asked(yard.ci)
    assert first.reason == "agent_failed" and queries.authority(first.id)["bot"] is True, "whatever `users` says"
    said = yard.closing(first)
    assert said is not None and f"@{yard.ci.login}" not in said, "it might take it for a request"
    second = yard.asked(yard.ci)
    assert (second.reason, yard.closing(second)) == ("refused", None)
    assert second.detail.startswith(f"A bot asked for job {first.id} here as well: a person has to ask")
    third = yard.asked(yard.ci)
    assert third.reason == "refused", "a refused request changes nothing"

    person = yard.asked(yard.alice)
    assert person.reason == "agent_failed" and queries.authority(person.id)["bot"] is False
    assert f"@{yard.alice.login}" in (yard.closing(person) or "")
    assert yard.asked(yard.ci).reason == "agent_failed", "a person has asked since"
    assert [one for one in audit.violations(database) if one.invariant == "last_words"] == []


def test_a_bot_needs_the_permission_and_is_told_by_a_sign(yard: Yard) -> None:
    refused = yard.asked(yard.reader)
    assert refused.reason == "refused" and "`write` permission" in refused.detail
    assert yard.closing(refused) is None


def test_an_account_that_nobody_names_counts_as_a_person(yard: Yard) -> None:
    """Gitea does not tell. `users` keeps it out, and it hears why."""
    refused = yard.asked(yard.stranger)
    assert refused.reason == "refused" and "[who] users" in refused.detail
    assert "Only the people named" in (yard.closing(refused) or "")
    assert queries.asked_by_bot(refused.id) is False


def test_a_bot_that_retries_a_persons_job_is_still_a_bot(yard: Yard) -> None:
    person = yard.asked(yard.alice)
    again = yard.again(person.id, saved=False, by=yard.ci)
    yard.work(again)
    assert queries.authority(again)["bot"] is True
    once_more = yard.again(again, saved=False, by=yard.ci)
    yard.work(once_more)
    assert yard.job(once_more).reason == "refused"


# ---------------------------------------------------------------- two Mosaics


def payload(body: str, **more: object) -> dict[str, object]:
    user = {"id": 9, "login": "other-mosaic"}
    issue = {"id": 70, "number": 7, "title": "t", "body": "b", "html_url": "", "user": user, "created_at": "x"}
    return {
        "action": "created",
        "sender": user,
        "comment": {"id": 5, "body": body, "user": user, "html_url": "", "created_at": "2026-11-22T10:00:00Z"},
        "review": {"id": 5, "body": body, "html_url": "", "submitted_at": "2026-11-22T10:00:00Z"},
        "issue": issue,
        "repository": {"id": 1, "full_name": "acme/calc"},
        **more,
    }


def test_what_another_mosaic_says_is_never_a_request() -> None:
    words = f"@mosaic Done: it is ready for your review.\n\n{SIGN}"
    assert interpret("issue_comment", payload(words), KNOWN) == Ignored("written by a Mosaic")
    assert interpret_review(payload(words), KNOWN) == Ignored("written by a Mosaic")
    opened = payload("", action="opened", issue={**payload("")["issue"], "body": words})  # type: ignore[dict-item]
    assert interpret("issues", opened, KNOWN) == Ignored("written by a Mosaic")


def test_a_person_who_quotes_a_mosaic_is_heard() -> None:
    for words in (f"> Done.\n>\n> {SIGN}\n\n@mosaic fix that too", "@mosaic fix that too"):
        found = interpret("issue_comment", payload(words), KNOWN)
        assert isinstance(found, Request) and found.commands


def test_the_sign_that_is_looked_for_is_the_one_that_is_written(yard: Yard) -> None:
    """What our herald puts on the forge is what another Mosaic does not obey."""
    said = yard.closing(yard.asked(yard.alice))
    assert said is not None
    assert interpret("issue_comment", payload(said.replace(f"@{yard.alice.login}", "@mosaic")), KNOWN) == Ignored(
        "written by a Mosaic"
    )
