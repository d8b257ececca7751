"""What a careless reader of Gitea's deliveries and answers gets wrong: for each, the test that fails without its guard.

 n  Gitea's behaviour                                          where it is held
--  ---------------------------------------------------------  ---------------------------------------------------------
 1  the bot's own actions come back as deliveries              here: own_actions; story: asks_for_nothing
 2  a delivery is never repeated                               here: all_or_nothing; receiver: commit_that_fails
 3  a replay has a new id                                      here: same_meaning; story: three_hooks_and_a_replay
 4  one click gives up to four deliveries                      here: one_click; story: one_click_…_in_any_order
 5  every hook that fits delivers it                           here: same_meaning; story: three_hooks_and_a_replay
 6  deliveries overtake each other                             here: one_click, edit_overtakes; story: any_order
 7  without a secret the signature headers are there, empty    here: empty_signature
 8  a form hook signs the payload, not the body                here: form
 9  X-Gitea-Event is coarse, X-Gitea-Event-Type fine           here: fine_event
10  the text of a line comment is in no delivery               here: reviews
11  a thread reply looks like a comment and reads as 204       here: thread_reply; story: review_thread
12  `assignees` of an issue is null, not []                    here: assignees_null
13  issue.repository.owner is a string                         here: names_and_numbers (it is not read)
14  comment.issue_url is a web page                            here: names_and_numbers (it is not read)
15  who was assigned, which label: not said                    here: assigned_once, label; story: assigning_others
16  `sender` is the editor, `comment.user` the author          here: editor; story: in_the_name_of_its_editor
17  `permissions` are the sender's, the author's, a constant   here: stated_rights; story: nobody_can_tell
18  a comment on a missing issue is 500                        client: comments_of_an_unknown_issue; story: deleted
19  PATCH answers 201, a reaction 200 or 201                   client: reactions, pull_request_writes
20  lists of comments ignore paging                            client: comments_are_read_in_one_request, ignores_paging
21  404 invisible, 423 archived, 301 renamed                   client: redirect_is_not_followed; story: renamed
22  a second open pull request is 409                          client: pull_request_writes; story: lost_after_the_write
23  statuses append, the newest of a context counts            client: statuses, unclear_status_write; story: lost
24  a hook's `active` is false by default                      client: hooks
25  the bot may not ask for a permission                       here: permission; client: permission; story: asked_anew
"""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote_plus

import psycopg
import pytest
from werkzeug.test import Client, TestResponse

from app import authority, edge
from app.clients.gitea import GiteaClient
from app.gitea_events import Ignored, Known, Request, interpret, text_hash
from app.ledger import jobs
from app.models import fetch
from app.postgres import Cluster
from app.types import Command, Trigger, Verb
from jobs.runner.evidence import verify
from tests.worlds.forge import Forge
from tests.worlds.gitea import PracticeGitea
from tests.worlds.gitea.events import COARSE

FIXTURES = Path(__file__).parent / "fixtures" / "gitea"
SECRET = "the secret of this hook"
ONE_CLICK = ("issues__one_click", "issue_label__one_click", "issue_assign__one_click")
FIX = (Command(Verb.FIX, "this"),)


def raw(name: str) -> bytes:
    return (FIXTURES / f"{name}.json").read_bytes()


def payload(name: str) -> dict[str, Any]:
    return dict(json.loads(raw(name)))


BOT = payload("issue_comment__by_the_bot")["sender"]["id"]
KNOWN = Known(BOT, "mosaic")


def read(name: str, known: Known = KNOWN) -> Request | Ignored:
    return interpret(name.split("__")[0], payload(name), known)


def request_of(name: str) -> Request:
    found = read(name)
    assert isinstance(found, Request), found
    return found


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("issue_comment__by_the_bot", "own action"),
        ("issue_comment__of_the_bot_by_maintainer", "own comment"),
        ("issue_comment__deleted", "comment deleted"),
        ("issue_comment__no_mention", "no command"),
        ("issue_comment__no_new_mention", "no new command in the edit"),
        ("issues__no_mention", "no mention in the new issue"),
        ("issues__edited_body", "nothing to do for issues edited"),
        ("issue_milestone__one_click", "nothing to do for issue_milestone milestoned"),
        ("issue_label__another_label", "another label"),
        ("issue_assign__somebody_else", "somebody else was unassigned"),
        ("issue_assign__the_bot", "somebody else was unassigned"),
        ("pull_request__mention", "nothing to do for pull_request opened"),
        ("push__branch", "nothing to do for push"),
        ("create__branch", "nothing to do for create"),
    ],
)
def test_what_asks_for_nothing(name: str, why: str) -> None:
    found = read(name)
    assert isinstance(found, Ignored) and found.reason == why


def test_own_actions_are_known_by_id_whatever_the_name() -> None:
    assert read("issue_comment__by_the_bot", Known(BOT, "renamed-bot")) == Ignored("own action")
    by_name = read("issue_comment__by_the_bot", Known(None, "Mosaic"))  # before the forge has said who we are
    assert by_name == Ignored("own action")
    assert isinstance(read("issue_comment__mention", Known(BOT + 1000, "mosaic")), Request)


@pytest.mark.parametrize("name", ["pull_request_review_comment__line_comment", "pull_request_review_approved__mention"])
def test_reviews_are_not_taken_for_comments(name: str) -> None:
    """The coarse event of a review is `pull_request_comment`, the fine one of a comment on a pull request."""
    assert payload(name)["review"]["content"] in ("", "@mosaic fix this")
    found = read(name)
    assert isinstance(found, Ignored) and found.reason == f"nothing to do for {name.split('__')[0]} reviewed"
    assert isinstance(interpret(COARSE[name.split("__")[0]], payload(name), KNOWN), Ignored)


def test_a_comment_on_a_pull_request_says_so() -> None:
    found = request_of("pull_request_comment__mention")
    assert found.trigger.is_pull and found.trigger.kind == "comment" and found.commands == FIX
    assert not request_of("issue_comment__mention").trigger.is_pull


def test_names_and_numbers_come_from_where_they_are_true() -> None:
    """`issue.repository.owner` is a string, `comment.issue_url` a web page, `issue.number` counts per repository."""
    body = payload("issue_comment__mention")
    trigger = request_of("issue_comment__mention").trigger
    assert isinstance(body["issue"]["repository"]["owner"], str)
    assert (trigger.repository, trigger.repository_id) == ("alice/calc", body["repository"]["id"])
    assert (trigger.number, trigger.object_id) == (body["issue"]["number"], body["comment"]["id"])
    assert trigger.url == body["comment"]["html_url"] != body["issue"]["url"]
    opened = payload("issues__one_click")
    assert request_of("issues__one_click").trigger.object_id == opened["issue"]["id"]


def test_assignees_may_be_null() -> None:
    body = payload("issue_assign__the_bot")
    assert body["issue"]["assignees"] is None
    assert interpret("issue_assign", {**body, "action": "assigned"}, KNOWN) == Ignored(
        "somebody else was assigned", frees=f"assigned:{body['issue']['id']}"
    )


def test_an_edit_is_the_editor_s_request() -> None:
    body = payload("issue_comment__mention_added_by_maintainer")
    found = request_of("issue_comment__mention_added_by_maintainer")
    assert (body["comment"]["user"]["login"], body["sender"]["login"]) == ("bob", "alice")
    assert (found.trigger.actor, found.trigger.actor_id) == ("alice", body["sender"]["id"])
    assert found.trigger.at == body["comment"]["updated_at"] and found.trigger.permission == "admin"


@pytest.mark.parametrize(
    ("name", "actor", "permission"),
    [
        ("issues__one_click", "alice", "admin"),
        ("issue_comment__mention", "alice", "admin"),
        ("issue_comment__by_reader", "bob", "read"),
        ("issue_assign__one_click", "alice", "admin"),
        ("issue_label__one_click", "alice", "admin"),  # by the author of the issue, whose rights they are
        ("issue_label__by_somebody_else", "carol", None),  # these are alice's, not carol's
        ("pull_request_comment__mention", "alice", "admin"),
    ],
)
def test_stated_rights_count_only_where_they_are_the_actor_s(name: str, actor: str, permission: str | None) -> None:
    assert payload("issue_label__by_somebody_else")["repository"]["permissions"]["admin"] is True
    trigger = request_of(name).trigger
    assert (trigger.actor, trigger.permission) == (actor, permission)


def test_the_label_counts_whatever_was_put_on_and_only_where_it_is() -> None:
    assert read("issue_label__one_click", Known(BOT, "mosaic", "agent")) == Ignored("another label")
    assert isinstance(read("issue_label__another_label", Known(BOT, "mosaic", "BUG")), Request)


# ---------------------------------------------------------------- receiving


@pytest.fixture
def web(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of the application in this process."""
    from app.web import create_app

    for name, value in {
        "DATABASE_URL": database,
        "DATA_DIR": str(tmp_path),
        "GITEA_URL": "https://git.example.org",
        "GITEA_WEBHOOK_SECRET": SECRET,
    }.items():
        monkeypatch.setenv(f"MOSAIC_{name}", value)
    edge.settings.cache_clear()
    monkeypatch.setattr(edge, "_started", True)
    jobs.remember_self(BOT, "mosaic")
    yield create_app().test_client()
    edge.settings.cache_clear()


def send(web: Client, name: str, body: bytes | None = None, **headers: str) -> TestResponse:
    """Deliver a recorded payload as Gitea would: both event headers, signed, under a new id."""
    fine, body = name.split("__")[0], raw(name) if body is None else body
    told = {
        "Content-Type": "application/json",
        "X-Gitea-Delivery": str(uuid.uuid4()),
        "X-Gitea-Event": COARSE.get(fine, fine),
        "X-Gitea-Event-Type": fine,
        "X-Gitea-Signature": hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
    }
    return web.post(
        "/webhooks/gitea", data=body, headers=told | {key.replace("_", "-"): headers[key] for key in headers}
    )


def answer(web: Client, name: str, **more: Any) -> dict[str, Any]:
    """What is answered to a delivery that is accepted."""
    told = send(web, name, **more)
    assert told.status_code == 202, told.text
    assert isinstance(told.json, dict)
    return told.json


def count(table: str) -> int:
    [row] = fetch(f"select count(*) as n from {table}")
    return int(row["n"])


@pytest.mark.parametrize(
    "order", list(permutations(ONE_CLICK)), ids=lambda order: ", ".join(n.split("__")[0] for n in order)
)
def test_one_click_is_one_job(web: Client, order: tuple[str, ...]) -> None:
    assert {answer(web, name)["job"] for name in order} == {1}
    assert {answer(web, name).get("duplicate") for name in order} == {True}  # through another hook
    assert count("runner_jobs") == 1


@pytest.mark.parametrize("name", ["issue_comment__mention", *ONE_CLICK, "pull_request_comment__mention"])
def test_the_same_meaning_under_another_id_is_the_same_request(web: Client, name: str) -> None:
    """The hooks of repository, organisation and forge, and a click on "replay", each bring an id of their own."""
    first = answer(web, name)
    assert [answer(web, name) for _ in range(3)] == [{"duplicate": True}] * 3
    assert first["job"] == 1 and count("runner_jobs") == 1 and count("deliveries") == 4


def test_the_bot_is_assigned_once_until_it_is_unassigned(web: Client) -> None:
    assert answer(web, "issue_assign__one_click")["job"] == 1
    assert answer(web, "issue_assign__somebody_else_too") == {"duplicate": True}
    assert answer(web, "issue_assign__somebody_else") == {"ignored": "somebody else was unassigned"}
    assert answer(web, "issue_assign__somebody_else_too") == {"duplicate": True}
    assert answer(web, "issue_assign__the_bot") == {"ignored": "somebody else was unassigned"}
    later = json.dumps(
        {**payload("issue_assign__one_click"), "issue": moved(payload("issue_assign__one_click")["issue"])}
    )
    assert answer(web, "issue_assign__one_click", body=later.encode())["job"] == 1  # the job is still open: it joins it
    fetch("update runner_jobs set status = 'failed', reason = 'refused', finished_at = clock_timestamp() returning id")
    assert answer(web, "issue_assign__the_bot") == {"ignored": "somebody else was unassigned"}
    assert answer(web, "issue_assign__one_click", body=later.encode())["job"] == 2


def moved(issue: dict[str, Any]) -> dict[str, Any]:
    """The same issue, changed an hour later."""
    return {**issue, "updated_at": "2099-01-01T13:00:00+01:00"}


def test_an_edit_that_overtakes_its_comment_asks_for_nothing_twice(web: Client) -> None:
    assert answer(web, "issue_comment__no_new_mention") == {"ignored": "no new command in the edit"}
    assert answer(web, "issue_comment__mention")["job"] == 1
    assert answer(web, "issue_comment__no_new_mention") == {"ignored": "no new command in the edit"}
    assert answer(web, "issue_comment__deleted") == {"ignored": "comment deleted"}
    assert count("runner_jobs") == 1


def test_all_or_nothing_for_a_delivery_is_never_repeated(web: Client, database: str, cluster: Cluster) -> None:
    """When its job cannot be stored, the delivery is not either: no 202, and the same one counts if it comes again."""
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    with psycopg.connect(cluster.url("postgres", str(name)), autocommit=True) as owner:
        owner.execute("alter table runner_jobs add constraint broken check (false) not valid")
        assert send(web, "issue_comment__mention").status_code >= 500
        assert count("deliveries") == 0
        owner.execute("alter table runner_jobs drop constraint broken")
    assert answer(web, "issue_comment__mention")["job"] is not None


def test_a_hook_without_a_secret_sends_an_empty_signature(web: Client) -> None:
    told = send(web, "issue_comment__mention", X_Gitea_Signature="")
    assert (told.status_code, count("deliveries")) == (401, 0)


def test_a_form_hook_is_refused_as_what_it_is(web: Client) -> None:
    """It signs the decoded payload, so its signature never fits the body: the answer names the content type."""
    text = raw("issue_comment__mention")
    signature = hmac.new(SECRET.encode(), text, hashlib.sha256).hexdigest()
    body = f"payload={quote_plus(text)}".encode()
    form = {"Content_Type": "application/x-www-form-urlencoded", "X_Gitea_Signature": signature}
    told = send(web, "issue_comment__mention", body=body, **form)
    assert told.status_code == 415 and "application/json" in told.text


def test_the_fine_event_decides_and_the_coarse_one_stands_in(web: Client) -> None:
    assert (
        answer(web, "issue_assign__one_click")["job"] == 1
    )  # coarse: `issues`, which does not start jobs by `assigned`
    line = answer(web, "pull_request_review_comment__line_comment")
    assert line == {"ignored": "nothing to do for pull_request_review_comment reviewed"}
    assert answer(web, "pull_request_comment__mention", X_Gitea_Event_Type="")["job"] == 2


# ---------------------------------------------------------------- asking back


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A practice forge with a review thread in it, and the bot's client."""
    gitea = PracticeGitea(tmp_path_factory.mktemp("gitea"), "a" * 40).start()
    forge = Forge(gitea.url, "a" * 40, control=True, prefix="")
    people = {name: forge.make_user(name) for name in ("mosaic", "alice", "bob")}
    repo = forge.make_repo("alice", "calc", {"calc.py": "1\n"})
    forge.collaborator(repo, "mosaic", "write")
    client = GiteaClient(gitea.url, people["mosaic"].token)
    yield SimpleNamespace(forge=forge, repo=repo, client=client, **people)
    gitea.stop()


def test_a_thread_reply_is_read_with_its_review(place: SimpleNamespace, tmp_path: Path) -> None:
    forge, repo, alice = place.forge, place.repo, place.alice
    checkout = forge.clone(alice.token, repo, tmp_path)
    checkout.commit({"calc.py": "2\n"}, "Two")
    checkout.push("two")
    number = forge.open_pull(alice.token, repo, "two", "main", "Two")["number"]
    pull = f"/repos/{repo}/pulls/{number}"
    line = {"path": "calc.py", "new_position": 1, "body": "Why?"}
    review = forge.call("POST", f"{pull}/reviews", alice.token, {"event": "COMMENT", "comments": [line]})["id"]
    [thread] = forge.call("GET", f"{pull}/reviews/{review}/comments", alice.token)
    reply = forge.call("POST", f"{pull}/comments/{thread['id']}/replies", alice.token, {"body": "@mosaic fix this"})
    assert forge.send("GET", f"/repos/{repo}/issues/comments/{reply['id']}").status_code == 204
    text = "@mosaic fix this"
    trigger = Trigger("comment", 1, repo, number, True, reply["id"], alice.id, "alice", text, text_hash(text))
    assert verify(place.client, repo, trigger, place.mosaic.id) == ""
    changed = replace(trigger, text_sha256="0" * 64)
    assert "only the text as it was asked counts" in verify(place.client, repo, changed, place.mosaic.id)
    assert verify(place.client, repo, replace(trigger, object_id=99_999), place.mosaic.id) == "The comment is gone."


def test_a_permission_that_the_bot_may_not_ask_for_is_taken_from_the_signed_delivery(place: SimpleNamespace) -> None:
    def known(stated: str | None) -> tuple[str, str | None]:
        found = authority.ask(clients, place.repo, place.bob.id, "bob", stated)
        return found.source, found.permission

    clients: Any = SimpleNamespace(forge=place.client, authz=None)
    assert known("write") == ("payload", "write")
    assert known(None) == ("unknown", None)  # not `none`: nobody can tell
    place.forge.collaborator(place.repo, "mosaic", "admin")
    assert known("write") == ("forge", "read")
    place.forge.collaborator(place.repo, "mosaic", "write")
    clients.authz = GiteaClient(place.forge.url, place.forge.admin_token)
    assert known("admin") == ("forge", "read")
