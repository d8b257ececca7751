"""The practice Gitea keeps the habits of the real one: one test for each of the 25 that a naive double gets wrong,
then git over HTTP, permissions, scopes and knobs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import pytest
import requests

from tests.worlds.checkout import Checkout
from tests.worlds.forge import Account, Forge, ForgeError
from tests.worlds.gitea import PracticeGitea

SECRET = "hook-secret"
ADMIN = "token-of-the-admin"
EVENTS = ["issues", "issue_comment", "pull_request", "push", "create", "delete", "status", "repository"]


class Got(NamedTuple):
    """One request that the receiver got."""

    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def kind(self) -> str:
        return self.headers["X-Gitea-Event-Type"]

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def what(self) -> tuple[str, str | None]:
        return self.kind, self.json.get("action")


class Receiver:
    """A webhook receiver: answers every POST with `status` after `wait` seconds."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.status = 202
        self.gate = threading.Event()
        self.gate.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(Got(dict(self.headers.items()), body, time.time()))
                receiver.gate.wait(10)
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Scene(NamedTuple):
    """One repository of alice's, in which bot may write, and one hook."""

    gitea: PracticeGitea
    forge: Forge
    alice: Account
    bot: Account
    carol: Account  # no collaborator
    repo: str
    hook: int
    receiver: Receiver

    def deliveries(self) -> list[Got]:
        """What has arrived, once nothing is under way any more; then forgotten."""
        assert self.gitea.world.idle(10)
        got = list(self.receiver.got)
        self.receiver.got.clear()
        return got

    def kinds(self) -> list[tuple[str, str | None]]:
        return sorted((got.what for got in self.deliveries()), key=str)

    def issue(self, body: str = "text") -> int:
        return int(self.forge.open_issue(self.alice.token, self.repo, "An issue", body)["number"])

    def branch(self, name: str, content: str = "new\n") -> str:
        """A branch with one commit, made through the API; its sha."""
        body = {"content": _b64(content), "new_branch": name, "message": "Add"}
        path = f"/repos/{self.repo}/contents/{name.replace('/', '-')}.txt"
        return str(self.forge.call("POST", path, self.bot.token, body)["commit"]["sha"])

    def pull(self, head: str = "topic", title: str = "A change") -> dict[str, Any]:
        self.branch(head)
        return self.forge.open_pull(self.bot.token, self.repo, head, "main", title)


def _b64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def gitea(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PracticeGitea]:
    server = PracticeGitea(tmp_path_factory.mktemp("forge"), ADMIN).start()
    yield server
    server.stop()
    assert server.world.errors == []


@pytest.fixture(scope="module")
def people(gitea: PracticeGitea) -> Iterator[tuple[Forge, Account, Account, Account]]:
    forge = Forge(gitea.url, ADMIN, control=True)
    yield forge, forge.make_user("alice"), forge.make_user("bot"), forge.make_user("carol")
    forge.cleanup()


@pytest.fixture
def scene(
    gitea: PracticeGitea, people: tuple[Forge, Account, Account, Account], request: pytest.FixtureRequest
) -> Iterator[Scene]:
    forge, alice, bot, carol = people
    receiver = Receiver()
    name = request.node.name.replace("[", "-").replace("]", "")[:60]
    repo = forge.make_repo(alice.login, name, {})
    forge.call("POST", f"/repos/{repo}/contents/README.md", body={"content": _b64("# hello\n")})
    forge.collaborator(repo, bot.login, "write")
    hook = forge.hook(repo, receiver.url, SECRET, EVENTS)
    yield Scene(gitea, forge, alice, bot, carol, repo, hook, receiver)
    receiver.gate.set()
    gitea.world.idle(10)
    receiver.stop()


# ---------------------------------------------------------------- the 25


def test_01_the_bots_own_actions_are_delivered(scene: Scene) -> None:
    number = scene.issue()
    scene.deliveries()
    comment = scene.forge.comment(scene.bot.token, scene.repo, number, "working")
    scene.forge.edit_comment(scene.bot.token, scene.repo, comment["id"], "done")
    got = scene.deliveries()
    assert sorted(g.what for g in got) == [("issue_comment", "created"), ("issue_comment", "edited")]
    assert {g.json["sender"]["login"] for g in got} == {scene.bot.login}


def test_02_a_failed_delivery_is_never_tried_again(scene: Scene) -> None:
    scene.receiver.status = 500
    scene.issue()
    assert len(scene.deliveries()) == 1
    row = scene.gitea.world.deliveries.log[-1]
    assert (row.sent, row.status, row.error) == (True, 500, "")


def test_03_a_replay_has_a_new_uuid_and_the_same_body(scene: Scene) -> None:
    scene.issue("replay me")
    (first,) = scene.deliveries()
    new = scene.forge.knob("replay", uuid=first.headers["X-Gitea-Delivery"])["uuid"]
    (second,) = scene.deliveries()
    assert second.headers["X-Gitea-Delivery"] == new != first.headers["X-Gitea-Delivery"]
    assert second.body == first.body
    assert second.headers["X-Gitea-Signature"] == first.headers["X-Gitea-Signature"]


def test_04_one_click_is_several_deliveries(scene: Scene) -> None:
    label = scene.forge.make_label(scene.repo, "mosaic")
    milestone = scene.forge.call("POST", f"/repos/{scene.repo}/milestones", body={"title": "one"})["id"]
    more = {"labels": [label], "milestone": milestone, "assignees": [scene.alice.login, scene.bot.login]}
    scene.forge.open_issue(scene.alice.token, scene.repo, "Everything at once", **more)
    assert scene.kinds() == [
        ("issue_assign", "assigned"),
        ("issue_assign", "assigned"),
        ("issue_label", "label_updated"),
        ("issue_milestone", "milestoned"),
        ("issues", "opened"),
    ]


def test_05_repository_organisation_and_system_hooks_each_deliver(scene: Scene) -> None:
    org = scene.forge.make_org("org", scene.alice)
    repo = scene.forge.make_repo(org, "shared", {"a": "b"})
    for target in (repo, org, ""):
        scene.forge.hook(target, scene.receiver.url, SECRET, ["issues"])
    scene.forge.open_issue(scene.alice.token, repo, "Three hooks")
    got = scene.deliveries()
    levels = {g.headers["X-Gitea-Hook-Installation-Target-Type"] for g in got}
    assert levels == {"repository", "organization", "system"}
    assert len({g.headers["X-Gitea-Delivery"] for g in got}) == 3
    assert len({g.body for g in got}) == 1
    hooks = scene.forge.call("GET", "/admin/hooks")
    scene.forge.call("DELETE", f"/admin/hooks/{hooks[-1]['id']}")


def test_06_order_is_not_guaranteed_and_synchronized_trails_push(scene: Scene) -> None:
    scene.pull()
    scene.deliveries()
    path = f"/repos/{scene.repo}/contents/second.txt"
    scene.forge.call("POST", path, scene.bot.token, {"content": _b64("2"), "branch": "topic"})
    got = scene.deliveries()
    assert [row.event_type for row in list(scene.gitea.world.deliveries.log)[-2:]] == ["push", "pull_request_sync"]
    assert {g.kind for g in got} == {"push", "pull_request_sync"}
    assert {g.json["after"] for g in got} == {scene.forge.branches(scene.repo)["topic"]}
    number = scene.issue()
    scene.deliveries()
    scene.forge.knob("reorder", count=3)
    for text in ("one", "two", "three"):
        scene.forge.comment(scene.alice.token, scene.repo, number, text)
    assert [g.json["comment"]["body"] for g in scene.deliveries()] == ["three", "two", "one"]


def test_07_a_hook_without_secret_sends_empty_signatures(scene: Scene) -> None:
    scene.forge.call("DELETE", f"/repos/{scene.repo}/hooks/{scene.hook}")
    scene.forge.hook(scene.repo, scene.receiver.url, "", ["issues"])
    scene.issue()
    (got,) = scene.deliveries()
    assert got.headers["X-Gitea-Signature"] == "" == got.headers["X-Gogs-Signature"]
    assert (got.headers["X-Hub-Signature-256"], got.headers["X-Hub-Signature"]) == ("sha256=", "sha1=")


def _hmac(payload: bytes) -> str:
    return hmac.new(SECRET.encode(), payload, hashlib.sha256).hexdigest()


def test_08_the_signature_is_over_the_json_text_also_of_a_form(scene: Scene) -> None:
    scene.forge.hook(scene.repo, scene.receiver.url, SECRET, ["issues"], content_type="form")
    scene.issue("ümläut & <b>")
    by_type = {g.headers["Content-Type"]: g for g in scene.deliveries()}
    plain, form = by_type["application/json"], by_type["application/x-www-form-urlencoded"]
    payload = parse_qs(form.body.decode())["payload"][0].encode()
    assert payload == plain.body
    for got, signed in ((plain, plain.body), (form, payload)):
        assert got.headers["X-Gitea-Signature"] == _hmac(signed)
        assert got.headers["X-Hub-Signature-256"] == f"sha256={_hmac(signed)}"
    assert _hmac(form.body) != form.headers["X-Gitea-Signature"]
    assert plain.body.startswith(b'{\n  "action": "opened",\n')
    assert "ümläut \\u0026 \\u003cb\\u003e".encode() in plain.body


def test_09_a_comment_on_a_pull_request_is_issue_comment_and_a_review_is_not(scene: Scene) -> None:
    number = scene.pull()["number"]
    scene.deliveries()
    scene.forge.comment(scene.alice.token, scene.repo, number, "a comment")
    (comment,) = scene.deliveries()
    assert comment.headers["X-Gitea-Event"] == "issue_comment"
    assert comment.headers["X-GitHub-Event-Type"] == "pull_request_comment"
    assert comment.json["is_pull"] is True and comment.json["pull_request"]["number"] == number
    body = {"event": "COMMENT", "body": "a review"}
    scene.forge.call("POST", f"/repos/{scene.repo}/pulls/{number}/reviews", scene.alice.token, body)
    (review,) = scene.deliveries()
    assert review.headers["X-Gitea-Event"] == "pull_request_comment"
    assert review.what == ("pull_request_review_comment", "reviewed")
    assert review.json["review"] == {"type": "pull_request_review_comment", "content": "a review"}


def _line_review(scene: Scene, number: int, event: str = "COMMENT") -> dict[str, Any]:
    lines = [{"path": "topic.txt", "body": "@mosaic rename this", "new_position": 1}]
    body = {"event": event, "comments": lines}
    return dict(scene.forge.call("POST", f"/repos/{scene.repo}/pulls/{number}/reviews", scene.alice.token, body))


def test_10_the_text_of_a_line_comment_is_in_no_webhook(scene: Scene) -> None:
    number = scene.pull()["number"]
    scene.deliveries()
    review = _line_review(scene, number)
    (got,) = scene.deliveries()
    assert got.json["review"]["content"] == ""
    assert b"rename this" not in got.body
    path = f"/repos/{scene.repo}/pulls/{number}/reviews/{review['id']}/comments"
    (line,) = scene.forge.call("GET", path, scene.bot.token)
    assert (line["body"], line["path"], line["position"]) == ("@mosaic rename this", "topic.txt", 1)
    assert _line_review(scene, number, "")["state"] == "PENDING"
    assert scene.deliveries() == []
    assert len(scene.forge.call("GET", f"/repos/{scene.repo}/pulls/{number}/reviews", scene.bot.token)) == 1


def test_11_a_reply_in_a_thread_is_an_issue_comment_that_cannot_be_read_as_one(scene: Scene) -> None:
    number = scene.pull()["number"]
    review = _line_review(scene, number)
    pulls = f"/repos/{scene.repo}/pulls/{number}"
    (line,) = scene.forge.call("GET", f"{pulls}/reviews/{review['id']}/comments")
    scene.deliveries()
    reply = scene.forge.call(
        "POST", f"{pulls}/comments/{line['id']}/replies", scene.alice.token, {"body": "@mosaic go"}
    )
    (got,) = scene.deliveries()
    assert got.what == ("pull_request_comment", "created")
    assert got.json["comment"]["body"] == "@mosaic go"
    assert got.json["comment"]["html_url"].endswith(f"#issuecomment-{reply['id']}")
    answer = scene.forge.send("GET", f"/repos/{scene.repo}/issues/comments/{reply['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert scene.forge.comments(scene.repo, number) == []


def test_12_assignees_are_null_on_issues_and_a_list_on_pull_requests(scene: Scene) -> None:
    scene.issue()
    scene.pull()
    by_kind = {g.kind: g.json for g in scene.deliveries() if g.json.get("action") == "opened"}
    issue, pull = by_kind["issues"]["issue"], by_kind["pull_request"]["pull_request"]
    assert (issue["assignees"], issue["labels"], issue["pull_request"]) == (None, [], None)
    assert (pull["assignees"], pull["labels"], pull["requested_reviewers"]) == ([], [], [])


def test_13_the_owner_in_an_issue_is_a_string(scene: Scene) -> None:
    scene.issue()
    (got,) = scene.deliveries()
    assert got.json["issue"]["repository"]["owner"] == scene.alice.login
    assert got.json["repository"]["owner"]["login"] == scene.alice.login


def test_14_the_addresses_in_a_comment_are_pages(scene: Scene) -> None:
    number, pull = scene.issue(), scene.pull()["number"]
    on_issue = scene.forge.comment(scene.bot.token, scene.repo, number, "x")
    on_pull = scene.forge.comment(scene.bot.token, scene.repo, pull, "x")
    assert on_issue["issue_url"] == f"{scene.gitea.url}/{scene.repo}/issues/{number}"
    assert on_issue["pull_request_url"] == "" == on_pull["issue_url"]
    assert on_pull["pull_request_url"] == f"{scene.gitea.url}/{scene.repo}/pulls/{pull}"
    assert scene.forge.pull(scene.repo, pull)["url"] == on_pull["pull_request_url"]
    assert scene.forge.issue(scene.repo, number)["url"].startswith(f"{scene.gitea.url}/api/v1/")


def test_15_assign_and_label_events_name_neither(scene: Scene) -> None:
    number = scene.issue()
    scene.deliveries()
    scene.forge.label(scene.alice.token, scene.repo, number, "mosaic")
    scene.forge.assign(scene.alice.token, scene.repo, number, scene.bot.login)
    scene.forge.assign(scene.alice.token, scene.repo, number)
    got = {g.what: g.json for g in scene.deliveries()}
    assert set(got) == {("issue_label", "label_updated"), ("issue_assign", "assigned"), ("issue_assign", "unassigned")}
    assert all(not {"label", "assignee", "changes"} & set(payload) for payload in got.values())
    assert [u["login"] for u in got["issue_assign", "assigned"]["issue"]["assignees"]] == [scene.bot.login]
    assert got["issue_assign", "unassigned"]["issue"]["assignees"] is None


def test_16_an_edit_has_the_editor_as_sender_and_the_author_in_the_comment(scene: Scene) -> None:
    number = scene.issue()
    comment = scene.forge.comment(scene.bot.token, scene.repo, number, "status")
    scene.deliveries()
    scene.forge.edit_comment(scene.alice.token, scene.repo, comment["id"], "status, edited")
    (got,) = scene.deliveries()
    assert got.json["sender"]["login"] == scene.alice.login
    assert got.json["comment"]["user"]["login"] == scene.bot.login
    assert got.json["changes"] == {"body": {"from": "status"}}


def test_17_whose_permissions_are_stated_depends_on_the_event(scene: Scene) -> None:
    read, write = {"admin": False, "push": False, "pull": True}, {"admin": False, "push": True, "pull": True}
    number = scene.forge.open_issue(scene.carol.token, scene.repo, "From outside")["number"]
    scene.forge.comment(scene.bot.token, scene.repo, number, "x")
    scene.forge.edit_issue(scene.alice.token, scene.repo, number, title="Changed by the owner")
    scene.forge.call("POST", f"/repos/{scene.repo}/branches", scene.bot.token, {"new_branch_name": "b"})
    stated = {g.what: g.json["repository"]["permissions"] for g in scene.deliveries()}
    assert stated["issues", "opened"] == read  # the author, who is the sender
    assert stated["issue_comment", "created"] == write  # the sender
    assert stated["issues", "edited"] == read  # the author, not the sender
    assert stated["push", None] == {"admin": True, "push": True, "pull": True}  # always the owner
    assert stated["create", None] == {"admin": False, "push": False, "pull": False}  # nobody


def test_18_an_unknown_issue_or_sha_is_500(scene: Scene) -> None:
    missing = f"/repos/{scene.repo}/issues/999/comments"
    answer = scene.forge.send("POST", missing, scene.bot.token, json={"body": "x"})
    assert (answer.status_code, answer.json()["message"]) == (500, "")
    assert scene.forge.send("GET", missing).status_code == 500
    path = f"/repos/{scene.repo}/statuses/{'1' * 40}"
    assert scene.forge.send("POST", path, scene.bot.token, json={"state": "success"}).status_code == 500
    assert scene.forge.send("GET", f"/repos/{scene.repo}/commits/{'1' * 40}/status").status_code == 404


def test_19_unusual_success_codes(scene: Scene) -> None:
    pull = scene.pull()["number"]
    repo, token = f"/repos/{scene.repo}", scene.bot.token
    for path in (f"{repo}/issues/{pull}", f"{repo}/pulls/{pull}"):
        assert scene.forge.send("PATCH", path, token, json={"title": "New"}).status_code == 201
    comment = scene.forge.comment(token, scene.repo, pull, "x")["id"]
    for path in (f"{repo}/issues/{pull}/reactions", f"{repo}/issues/comments/{comment}/reactions"):
        codes = [scene.forge.send("POST", path, token, json={"content": "eyes"}).status_code for _ in range(2)]
        assert codes == [201, 200]
        refused = scene.forge.send("POST", path, token, json={"content": "banana"})
        assert (refused.status_code, refused.json()["message"]) == (403, "'banana' is not an allowed reaction")
    assert scene.forge.reactions(scene.repo, pull, comment) == [(scene.bot.login, "eyes")]
    review = scene.forge.send("POST", f"{repo}/pulls/{pull}/reviews", token, json={"event": "COMMENT", "body": "x"})
    assert review.status_code == 200
    own = scene.forge.send("POST", f"{repo}/pulls/{pull}/reviews", token, json={"event": "APPROVED"})
    assert own.status_code == 422


def test_20_the_comments_of_an_issue_ignore_paging_and_other_lists_stop_at_50(scene: Scene) -> None:
    number = scene.issue()
    for n in range(53):
        scene.forge.comment(scene.bot.token, scene.repo, number, f"comment {n}")
    paged = {"page": 2, "limit": 10}
    answer = scene.forge.send("GET", f"/repos/{scene.repo}/issues/{number}/comments", params=paged)
    assert len(answer.json()) == 53
    assert answer.headers["X-Total-Count"] == "53" and "Link" not in answer.headers
    answer = scene.forge.send("GET", f"/repos/{scene.repo}/issues/comments", params={"limit": 1000})
    assert (len(answer.json()), answer.headers["X-Total-Count"]) == (50, "53")
    assert len(scene.forge.call("GET", f"/repos/{scene.repo}/issues/comments", page=2, limit=1000)) == 3
    assert len(scene.forge.call("GET", f"/repos/{scene.repo}/issues/comments")) == 30
    last = answer.json()[-1]["updated_at"]
    assert last[10] == "T" and last.endswith("+01:00")
    assert scene.forge.call("GET", f"/repos/{scene.repo}/issues/comments", since="2999-01-01T00:00:00Z") == []
    assert len(scene.forge.call("GET", f"/repos/{scene.repo}/issues/comments", since=last, limit=50)) >= 1


def test_21_invisible_is_404_archived_423_scope_403_renamed_301(scene: Scene) -> None:
    number, repo = scene.issue(), f"/repos/{scene.repo}"
    secret = scene.forge.make_repo(scene.alice.login, "private-21", {"a": "b"}, private=True)
    assert scene.forge.send("GET", f"/repos/{secret}", scene.bot.token).status_code == 404
    narrow = scene.gitea.world.state.add_token(scene.gitea.world.state.users[scene.carol.id], "n", ("read:issue",))
    comments = f"{repo}/issues/{number}/comments"
    answer = scene.forge.send("POST", comments, narrow.secret, json={"body": "x"})
    assert answer.status_code == 403
    assert answer.json()["message"] == (
        "token does not have at least one of required scope(s), required=[write:issue], token scope=read:issue"
    )
    scene.forge.call("PATCH", repo, body={"archived": True})
    answer = scene.forge.send("POST", comments, scene.bot.token, json={"body": "x"})
    assert (answer.status_code, answer.json()["message"]) == (423, "repo is archived")
    scene.forge.call("PATCH", repo, body={"archived": False, "name": "renamed-21"})
    new = f"/api/v1/repos/{scene.alice.login}/renamed-21/issues/{number}/comments"
    for method, rest in (("GET", ""), ("POST", ""), ("DELETE", "/1"), ("PATCH", "/1")):
        path = comments if not rest else f"{repo}/issues/comments{rest}"
        answer = scene.forge.send(method, f"{path}?page=2", scene.bot.token, json={"body": "x"})
        target = new if not rest else new.replace(f"{number}/comments", f"comments{rest}")
        assert (answer.status_code, answer.headers["Location"]) == (301, f"{target}?page=2")
    followed = requests.post(
        f"{scene.gitea.url}/api/v1{comments}",
        json={"body": "lost"},
        headers={"Authorization": f"token {scene.bot.token}"},
        timeout=5,
    )
    assert (followed.request.method, followed.status_code, followed.json()) == ("GET", 200, [])
    by_id = scene.forge.call(
        "GET", f"/repositories/{scene.forge.call('GET', f'/repos/{scene.alice.login}/renamed-21')['id']}"
    )
    assert by_id["full_name"] == f"{scene.alice.login}/renamed-21"


def test_22_a_second_open_pull_request_is_409_but_not_after_the_first_is_closed(scene: Scene) -> None:
    first = scene.pull()
    body = {"head": "topic", "base": "main", "title": "Again"}
    path = f"/repos/{scene.repo}/pulls"
    answer = scene.forge.send("POST", path, scene.bot.token, json=body)
    assert answer.status_code == 409
    assert "pull request already exists for these targets" in answer.json()["message"]
    assert f"issue_id: {first['number']}," in answer.json()["message"]
    scene.forge.call("PATCH", f"{path}/{first['number']}", scene.bot.token, {"state": "closed"})
    second = scene.forge.call("POST", path, scene.bot.token, body)
    assert second["number"] != first["number"] and second["id"] != second["number"]
    assert scene.forge.call("GET", f"{path}/main/topic")["number"] == first["number"]  # the oldest, not the open one
    assert scene.forge.send("POST", path, scene.bot.token, json=body | {"base": "topic"}).status_code == 422
    assert scene.forge.send("POST", path, scene.bot.token, json=body | {"head": "none"}).status_code == 404


def test_23_statuses_append_and_a_warning_counts_as_failure(scene: Scene) -> None:
    sha = scene.forge.branches(scene.repo)["main"]
    path = f"/repos/{scene.repo}/commits/{sha}/status"
    assert scene.forge.call("GET", path)["state"] == "pending"
    scene.deliveries()

    def set_status(context: str, state: str) -> dict[str, Any]:
        body = {"state": state, "context": context, "description": "d", "target_url": "http://x.test/"}
        return dict(scene.forge.call("POST", f"/repos/{scene.repo}/statuses/{sha}", scene.bot.token, body))

    first = set_status("mosaic/lint", "pending")
    assert first["status"] == "pending" and "state" not in first
    set_status("mosaic/lint", "success")
    combined = scene.forge.call("GET", path)
    assert (combined["state"], combined["total_count"]) == ("success", 1)
    set_status("mosaic/test", "warning")
    assert scene.forge.call("GET", path)["state"] == "failure"
    assert len(scene.forge.call("GET", f"/repos/{scene.repo}/commits/main/statuses")) == 3
    assert scene.forge.statuses(scene.repo, sha) == {"mosaic/lint": "success", "mosaic/test": "warning"}
    (payload,) = [g.json for g in scene.deliveries() if g.json["state"] == "pending"]
    assert "action" not in payload and payload["id"] != first["id"]
    body = {"state": "made-up"}
    assert (
        scene.forge.send("POST", f"/repos/{scene.repo}/statuses/{sha}", scene.bot.token, json=body).status_code == 201
    )


def test_24_a_hook_is_born_inactive_and_an_edit_resets_its_events(scene: Scene) -> None:
    hooks = f"/repos/{scene.repo}/hooks"
    config = {"url": scene.receiver.url, "content_type": "json", "secret": SECRET}
    new = scene.forge.call("POST", hooks, body={"type": "gitea", "config": config, "events": ["issues"]})
    assert new["active"] is False and "secret" not in new["config"]
    assert set(new["events"]) == {"issues", "issue_assign", "issue_label", "issue_milestone", "issue_comment"}
    scene.issue()
    assert len(scene.deliveries()) == 1  # of the other hook
    body = {"active": True, "config": {"secret": "changed"}}
    edited = scene.forge.call("PATCH", f"{hooks}/{new['id']}", body=body)
    assert (edited["active"], edited["events"]) == (True, ["push"])
    scene.branch("pushed")
    signed = [g.headers["X-Gitea-Signature"] == _hmac(g.body) for g in scene.deliveries() if g.kind == "push"]
    assert signed == [True, True]  # an edit does not change the secret
    missing = {"type": "gitea", "config": {"url": "http://x.test"}}
    assert scene.forge.send("POST", hooks, json=missing).status_code == 422
    only = scene.forge.call("POST", hooks, body={"type": "gitea", "config": config, "events": ["issues_only"]})
    assert only["events"] == ["issues"]


def test_25_only_admins_may_ask_about_the_permission_of_others(scene: Scene) -> None:
    path = f"/repos/{scene.repo}/collaborators"
    refused = scene.forge.send("GET", f"{path}/{scene.alice.login}/permission", scene.bot.token)
    assert refused.status_code == 403
    own = scene.forge.call("GET", f"{path}/{scene.bot.login}/permission", scene.bot.token)
    assert (own["permission"], own["user"]["login"]) == ("write", scene.bot.login)
    assert scene.forge.call("GET", f"{path}/{scene.carol.login}/permission", scene.alice.token)["permission"] == "read"
    assert scene.forge.permission(scene.repo, scene.alice.login) == "owner"
    codes = [
        scene.forge.send("GET", f"{path}/{name}", scene.bot.token).status_code
        for name in (scene.bot.login, scene.alice.login, "nobody-at-all")
    ]
    assert codes == [204, 404, 422]


# ---------------------------------------------------------------- the extras of the same list


def test_identical_edits_and_reactions_and_locks_tell_nobody(scene: Scene) -> None:
    number = scene.issue("same")
    comment = scene.forge.comment(scene.bot.token, scene.repo, number, "same")["id"]
    scene.deliveries()
    scene.forge.edit_comment(scene.bot.token, scene.repo, comment, "same")
    scene.forge.edit_issue(scene.alice.token, scene.repo, number, title="An issue", body="same")
    reaction = {"content": "eyes"}
    scene.forge.call("POST", f"/repos/{scene.repo}/issues/{number}/reactions", scene.bot.token, reaction)
    lock = f"/repos/{scene.repo}/issues/{number}"
    scene.forge.call("PUT", f"{lock}/lock", body={})
    assert scene.deliveries() == []
    answer = scene.forge.send("POST", f"{lock}/comments", scene.carol.token, json={"body": "x"})
    assert answer.status_code == 403
    assert scene.forge.comment(scene.bot.token, scene.repo, number, "a writer may")["id"]
    scene.forge.edit_issue(scene.alice.token, scene.repo, number, title="T2", body="b2")
    changes = [g.json["changes"] for g in scene.deliveries() if g.what == ("issues", "edited")]
    assert sorted(changes, key=str) == [{"body": {"from": "same"}}, {"title": {"from": "An issue"}}]


def test_comments_are_counted_deleted_and_guarded(scene: Scene) -> None:
    number = scene.issue()
    comment = scene.forge.comment(scene.bot.token, scene.repo, number, "x")["id"]
    path = f"/repos/{scene.repo}/issues/comments/{comment}"
    refused = scene.forge.send("PATCH", path, scene.carol.token, json={"body": "y"})
    assert (refused.status_code, refused.content) == (403, b"")
    assert scene.forge.send("PATCH", path, scene.bot.token, json={"body": " "}).status_code == 422
    assert scene.forge.issue(scene.repo, number)["comments"] == 1
    scene.forge.delete_comment(scene.bot.token, scene.repo, comment)
    assert scene.forge.issue(scene.repo, number)["comments"] == 0
    assert scene.forge.send("GET", path).status_code == 404
    assert [g.json["comment"]["id"] for g in scene.deliveries() if g.json["action"] == "deleted"] == [comment]


def test_a_title_is_cut_and_a_draft_is_a_matter_of_the_title(scene: Scene) -> None:
    pull = scene.pull(title="WIP: change")
    number = pull["number"]
    assert (pull["draft"], pull["mergeable"]) == (True, False)
    scene.forge.call("PATCH", f"/repos/{scene.repo}/pulls/{number}", scene.bot.token, {"title": "t" * 300})
    assert scene.gitea.world.idle(5)
    after = scene.forge.pull(scene.repo, number)
    assert (after["draft"], after["mergeable"], len(after["title"])) == (False, True, 255)


def test_mergeable_is_found_out_after_the_answer(scene: Scene) -> None:
    assert scene.pull()["mergeable"] is False
    assert scene.gitea.world.idle(5)
    assert scene.forge.pulls(scene.repo)[0]["mergeable"] is True


def test_a_merge_pushes_closes_and_follows_the_keyword(scene: Scene) -> None:
    issue = scene.issue()
    scene.branch("topic")
    pull = scene.forge.open_pull(scene.bot.token, scene.repo, "topic", "main", "Change", f"Closes #{issue}")["number"]
    scene.deliveries()
    scene.forge.merge(scene.alice.token, scene.repo, pull)
    got = {g.what: g.json for g in scene.deliveries()}
    assert set(got) == {("push", None), ("pull_request", "closed"), ("issues", "closed")}
    assert got["pull_request", "closed"]["pull_request"]["merged"] is True
    head = got["push", None]["head_commit"]
    assert (head["added"], head["modified"], head["removed"]) == (["topic.txt"], None, None)
    assert scene.forge.issue(scene.repo, issue)["state"] == "closed"
    assert scene.forge.file(scene.repo, "topic.txt", "main") == b"new\n"
    again = scene.forge.send("PATCH", f"/repos/{scene.repo}/pulls/{pull}", scene.bot.token, json={"state": "open"})
    assert again.status_code == 412


def test_deleting_the_branch_closes_the_pull_request_and_changes_its_head(scene: Scene) -> None:
    pull = scene.pull("mosaic/issue-1")
    scene.deliveries()
    scene.forge.call("DELETE", f"/repos/{scene.repo}/branches/mosaic/issue-1", scene.bot.token)
    got = {g.what: g.json for g in scene.deliveries()}
    assert got["delete", None]["ref"] == "mosaic/issue-1"
    after = scene.forge.pull(scene.repo, pull["number"])
    assert (after["state"], after["head"]["ref"]) == ("closed", f"refs/pull/{pull['number']}/head")
    assert (after["head"]["repo"], after["head"]["repo_id"], after["head"]["sha"]) == (None, -1, pull["head"]["sha"])


def test_a_mention_makes_a_notification_but_not_in_code(scene: Scene) -> None:
    bot = scene.bot.login
    scene.forge.call("PUT", "/notifications", scene.bot.token)
    scene.issue(f"no: `@{bot}` foo@{bot} @{bot}-dev\n\n```\n@{bot}\n```\n")
    assert scene.forge.call("GET", "/notifications/new", scene.bot.token)["new"] == 0
    yes = scene.issue(f"> @{bot.upper()}: please")
    (note,) = scene.forge.call("GET", "/notifications", scene.bot.token)
    assert note["subject"]["html_url"].endswith(f"/issues/{yes}") and note["subject"]["type"] == "Issue"
    scene.forge.call("PUT", "/notifications", scene.bot.token)
    assert scene.forge.call("GET", "/notifications", scene.bot.token) == []


def test_e_mails_are_placeholders_and_no_field_says_bot(scene: Scene) -> None:
    scene.issue()
    (got,) = scene.deliveries()
    sender = got.json["sender"]
    assert sender["email"] == f"{scene.alice.id}+{scene.alice.login}@noreply.127.0.0.1"
    assert (sender["is_admin"], sender["active"], sender["username"]) == (False, False, sender["login"])


def test_a_deleted_user_becomes_a_ghost_and_a_purged_repository_is_gone(scene: Scene) -> None:
    dora = scene.forge.make_user("dora")
    own = scene.forge.make_repo(dora.login, "own", {})
    number = scene.issue()
    scene.forge.comment(dora.token, scene.repo, number, "bye")
    path = f"/admin/users/{dora.login}"
    assert scene.forge.send("DELETE", path).status_code == 422
    assert scene.forge.send("DELETE", path, params={"purge": "true"}).status_code == 204
    (comment,) = scene.forge.comments(scene.repo, number)
    assert (comment["user"]["id"], comment["user"]["login"]) == (-1, "Ghost")
    assert scene.forge.send("GET", f"/repos/{own}").status_code == 404
    assert scene.forge.send("GET", "/user", dora.token).status_code == 401


# ---------------------------------------------------------------- git


def test_a_push_creates_pushes_and_caps_its_commits(scene: Scene, tmp_path: Path) -> None:
    checkout = scene.forge.clone(scene.bot.token, scene.repo, tmp_path / "work")
    before = checkout.git("rev-parse", "HEAD")
    shas = [checkout.commit({f"f{n}.txt": f"{n}"}, f"Commit {n}") for n in range(7)]
    checkout.push("mosaic/issue-7")
    got = {g.kind: g.json for g in scene.deliveries()}
    assert (got["create"]["ref"], got["create"]["ref_type"]) == ("mosaic/issue-7", "branch")
    push = got["push"]
    assert (push["ref"], push["before"], push["after"]) == ("refs/heads/mosaic/issue-7", "0" * 40, shas[-1])
    assert [c["id"] for c in push["commits"]] == shas[:1:-1] and push["total_commits"] == 7
    assert push["commits"][0]["added"] == ["f6.txt"] and push["sender"]["login"] == scene.bot.login
    assert before not in {c["id"] for c in push["commits"]}
    checkout.commit({"f0.txt": None}, "Remove")
    checkout.push("mosaic/issue-7")
    (got_push,) = scene.deliveries()
    assert got_push.json["before"] == shas[-1] and got_push.json["head_commit"]["removed"] == ["f0.txt"]


def test_a_push_of_more_than_a_mebibyte_goes_in_chunks(scene: Scene, tmp_path: Path) -> None:
    checkout = scene.forge.clone(scene.bot.token, scene.repo, tmp_path / "work")
    data = os.urandom(3 << 20)
    checkout.commit({"big.bin": data}, "Big")
    checkout.push("big")
    assert scene.forge.file(scene.repo, "big.bin", "big") == data
    fresh = scene.forge.clone(scene.alice.token, scene.repo, tmp_path / "again", "big")
    assert (fresh.path / "big.bin").read_bytes() == data


def test_a_push_that_may_not_be_is_refused_and_changes_nothing(scene: Scene, tmp_path: Path) -> None:
    reader = scene.forge.clone(scene.carol.token, scene.repo, tmp_path / "reader")
    reader.commit({"x": "y"}, "No")
    with pytest.raises(AssertionError, match="User permission denied for writing"):
        reader.push("mine")
    rule = {"rule_name": "release/*", "enable_push": False}
    scene.forge.call("POST", f"/repos/{scene.repo}/branch_protections", body=rule)
    writer = Checkout(scene.gitea.url, scene.repo, scene.bot.token, reader.path)
    with pytest.raises(AssertionError, match="Not allowed to push to protected branch release/1"):
        writer.push("release/1")
    anonymous = Checkout(scene.gitea.url, scene.repo, "wrong", reader.path)
    with pytest.raises(AssertionError, match=r"Authentication failed|could not read Username"):
        anonymous.push("mine")
    scene.forge.call("PATCH", f"/repos/{scene.repo}", body={"archived": True})
    with pytest.raises(AssertionError, match="403"):
        writer.push("mine")
    assert scene.forge.branches(scene.repo).keys() == {"main"}
    assert scene.deliveries() == []


def test_git_over_http_asks_who_it_is_and_follows_a_rename(scene: Scene, tmp_path: Path) -> None:
    secret = scene.forge.make_repo(scene.alice.login, "private-git", {"a": "b"}, private=True)
    refs = f"{scene.gitea.url}/{secret}.git/info/refs?service=git-upload-pack"
    anonymous = requests.get(refs, timeout=5)
    assert anonymous.status_code == 401
    assert anonymous.headers["WWW-Authenticate"] == 'Basic realm="Gitea"'
    other = requests.get(refs, headers={"Authorization": f"token {scene.bot.token}"}, timeout=5)
    assert (other.status_code, other.text.strip()) == (404, "Repository not found")
    assert requests.get(refs, auth=("anyone", scene.alice.token), timeout=5).status_code == 200
    users = scene.gitea.world.state
    narrow = users.add_token(users.users[scene.alice.id], "issues-only", ("write:issue",)).secret
    assert requests.get(refs, headers={"Authorization": f"token {narrow}"}, timeout=5).status_code == 403
    scene.forge.call("PATCH", f"/repos/{secret}", body={"name": "renamed-git"})
    assert scene.forge.clone(scene.alice.token, secret, tmp_path / "old").git("show", "HEAD:a") == "b"


def test_a_shallow_fetch_and_the_ref_of_a_pull_request(scene: Scene, tmp_path: Path) -> None:
    pull = scene.pull()
    checkout = scene.forge.clone(scene.bot.token, scene.repo, tmp_path / "work")
    checkout.git("fetch", "-q", "--depth=1", "origin", f"refs/pull/{pull['number']}/head")
    assert checkout.git("rev-parse", "FETCH_HEAD") == pull["head"]["sha"]
    checkout.git("fetch", "-q", "origin", pull["base"]["sha"])


# ---------------------------------------------------------------- who may do what


def test_tokens_are_made_with_a_password_and_bad_ones_are_401(scene: Scene) -> None:
    path = f"/users/{scene.bot.login}/tokens"
    answer = scene.forge.send("POST", path, scene.bot.token, json={"name": "x", "scopes": ["all"]})
    assert (answer.status_code, answer.json()["message"]) == (401, "auth required")
    answer = scene.forge.send("GET", "/user", "wrong")
    assert (answer.status_code, answer.json()["message"]) == (401, "invalid username, password or token")
    answer = scene.forge.send("POST", f"/repos/{scene.repo}/issues", "", json={"title": "x"})
    assert (answer.status_code, answer.json()["message"]) == (401, "token is required")
    assert scene.forge.send("GET", "/user?sudo=alice", scene.bot.token).status_code == 403
    assert scene.forge.send("GET", f"/users/search?uid={scene.bot.id}").json()["data"][0]["login"] == scene.bot.login


def test_writing_needs_write_and_administering_needs_admin(scene: Scene) -> None:
    sha = scene.forge.branches(scene.repo)["main"]
    status = scene.forge.send("POST", f"/repos/{scene.repo}/statuses/{sha}", scene.carol.token, json={"state": "x"})
    hooks = scene.forge.send("GET", f"/repos/{scene.repo}/hooks", scene.bot.token)
    users = scene.forge.send("POST", "/admin/users", scene.bot.token, json={})
    assert [a.status_code for a in (status, hooks, users)] == [403, 403, 403]
    label = scene.forge.make_label(scene.repo, "urgent")
    more: dict[str, Any] = {"labels": [label], "assignees": [scene.bot.login]}
    issue = scene.forge.open_issue(scene.carol.token, scene.repo, "From outside", **more)
    assert (issue["labels"], issue["assignees"]) == ([], None)


def test_files_are_written_as_gitea_answers(scene: Scene) -> None:
    path, token = f"/repos/{scene.repo}/contents/dir/a%20b.txt", scene.bot.token
    assert scene.forge.send("PUT", path, token, json={"content": _b64("1")}).status_code == 201
    file = scene.forge.call("GET", path)
    assert (file["path"], file["encoding"], file["content"]) == ("dir/a b.txt", "base64", _b64("1"))
    assert scene.forge.send("POST", path, token, json={"content": _b64("2")}).status_code == 422
    wrong = {"content": _b64("2"), "sha": "0" * 40}
    assert scene.forge.send("PUT", path, token, json=wrong).status_code == 422
    right = {"content": _b64("2"), "sha": file["sha"]}
    assert scene.forge.send("PUT", path, token, json=right).status_code == 200
    raw = scene.forge.send("GET", f"/repos/{scene.repo}/raw/dir/a%20b.txt")
    assert raw.content == b"2"
    headers = {"If-None-Match": raw.headers["ETag"], "Authorization": f"token {token}"}
    again = requests.get(f"{scene.gitea.url}/api/v1/repos/{scene.repo}/raw/dir/a%20b.txt", headers=headers, timeout=5)
    assert again.status_code == 304
    assert [row["path"] for row in scene.forge.call("GET", f"/repos/{scene.repo}/contents/dir")] == ["dir/a b.txt"]
    bad = {"new_branch_name": "b", "old_ref_name": "nowhere"}
    assert scene.forge.send("POST", f"/repos/{scene.repo}/branches", token, json=bad).status_code == 500
    assert (
        scene.forge.send("POST", f"/repos/{scene.repo}/branches", token, json={"new_branch_name": "main"}).status_code
        == 409
    )


# ---------------------------------------------------------------- knobs


def test_deliveries_can_be_lost_and_delayed(scene: Scene) -> None:
    scene.gitea.knob("lose", count=1)
    scene.issue()
    assert scene.deliveries() == []
    lost = scene.forge.knob("deliveries")[-1]
    assert (lost["lost"], lost["sent"], lost["event_type"]) == (True, False, "issues")
    scene.forge.knob("delay", seconds=0.3)
    scene.issue()
    scene.forge.knob("delay", seconds=0)
    assert len(scene.deliveries()) == 1
    late = scene.forge.knob("deliveries")[-1]
    assert late["answered"] - late["created"] >= 0.3


def test_a_receiver_that_hangs_is_left_after_the_time_limit(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.worlds.gitea.deliveries.TIMEOUT", 0.3)
    scene.receiver.gate.clear()
    scene.issue()
    assert len(scene.deliveries()) == 1
    row = scene.gitea.world.deliveries.log[-1]
    assert row.status is None and "timed out" in row.error


def test_private_addresses_can_be_forbidden_as_by_default(scene: Scene) -> None:
    scene.forge.knob("allowed_hosts", value="external")
    scene.issue()
    assert scene.deliveries() == []
    assert "webhook can only call allowed HTTP servers" in scene.gitea.world.deliveries.log[-1].error
    scene.forge.knob("allowed_hosts", value="loopback")


def test_answers_can_fail_stall_and_be_cut_before_or_after_the_effect(scene: Scene) -> None:
    number = scene.issue()
    path = f"/repos/{scene.repo}/issues/{number}/comments"
    for kind, bodies in (("cut_before", []), ("cut_after", ["cut_after"])):
        scene.forge.knob("fault", method="POST", path="/comments$", kind=kind)
        with pytest.raises(requests.ConnectionError):
            scene.forge.send("POST", path, scene.bot.token, json={"body": kind})
        assert [c["body"] for c in scene.forge.comments(scene.repo, number)] == bodies
    scene.forge.knob("rate_limit", method="GET", path=path, times=2, retry_after=7)
    answers = [scene.forge.send("GET", path) for _ in range(3)]
    assert [a.status_code for a in answers] == [429, 429, 200]
    assert answers[0].headers["Retry-After"] == "7"
    scene.forge.knob("fault", method="GET", path=path, kind="stall", seconds=0.2)
    assert scene.forge.send("GET", path).status_code == 200
    assert scene.forge.knob("requests")[-1]["ms"] >= 200
    assert scene.forge.knob("requests")[-1]["user"] == "root-admin"


def test_a_push_can_take_effect_and_still_be_cut(scene: Scene, tmp_path: Path) -> None:
    checkout = scene.forge.clone(scene.bot.token, scene.repo, tmp_path / "work")
    sha = checkout.commit({"x": "y"}, "Cut")
    scene.forge.knob("fault", method="POST", path="git-receive-pack", kind="cut_after")
    with pytest.raises(AssertionError, match="git push"):
        checkout.push("cut")
    assert scene.forge.branches(scene.repo)["cut"] == sha


def test_down_refuses_connections_and_up_knows_everything(scene: Scene) -> None:
    number = scene.issue("still here")
    scene.forge.knob("down")
    with pytest.raises(requests.ConnectionError):
        scene.forge.issue(scene.repo, number)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{scene.gitea.url}/api/v1/version", timeout=5)
    scene.forge.knob("up")
    assert scene.forge.issue(scene.repo, number)["body"] == "still here"


def test_the_version_decides_what_exists(scene: Scene) -> None:
    path, body = f"/repos/{scene.repo}/issues/{scene.issue()}/assignees", {"assignees": [scene.bot.login]}
    scene.forge.knob("version", value="1.26.2")
    assert scene.forge.call("GET", "/version") == {"version": "1.26.2"}
    assert scene.forge.send("POST", path, scene.alice.token, json=body).status_code == 404
    scene.forge.knob("version", value="1.27.0")
    assert scene.forge.send("POST", path, scene.alice.token, json=body).status_code == 201


def test_pages_show_what_happened_and_escape_it(scene: Scene) -> None:
    number = scene.issue("<script>alert(1)</script>")
    scene.forge.comment(scene.bot.token, scene.repo, number, "a & b <!-- hidden -->")
    pull = scene.pull()
    set_status = f"/repos/{scene.repo}/statuses/{pull['head']['sha']}"
    scene.forge.call("POST", set_status, scene.bot.token, {"state": "success", "context": "mosaic/lint"})
    pages = [f"{scene.gitea.url}/{scene.repo}", scene.forge.issue(scene.repo, number)["html_url"], pull["html_url"]]
    texts = [requests.get(url, timeout=5).text for url in pages]
    assert "README.md" in texts[0] and f"#{number} An issue" in texts[0]
    assert "&lt;script&gt;" in texts[1] and "<script>" not in texts[1]
    assert "a &amp; b" in texts[1] and "hidden" not in texts[1]
    assert "mosaic/lint" in texts[2] and "+new" in texts[2]
    assert requests.get(f"{pages[0]}/issues/999", timeout=5).status_code == 404


def test_it_runs_as_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.worlds.gitea", "--data", str(tmp_path), "--admin-token", ADMIN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        word, url = process.stdout.readline().split()
        assert word == "READY"
        forge = Forge(url, ADMIN, control=True)
        dora = forge.make_user("dora")
        repo = forge.make_repo(dora.login, "alone", {"a.txt": "b"})
        assert forge.file(repo, "a.txt", "main") == b"b"
        forge.cleanup()
        with pytest.raises(ForgeError, match="404"):
            forge.call("GET", f"/users/{dora.login}")
        process.terminate()
    assert process.returncode == 0
