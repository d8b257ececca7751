"""The Gitea client against a small, strict server over real HTTP: what it sends, and what each answer means."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from app.clients import gitea_http
from app.clients.gitea import GiteaClient
from app.clients.gitea_types import GHOST, Label, Status, User
from app.types import Ambiguous, Misconfigured, MosaicError, Permanent, Transient

TOKEN = "0123456789abcdef0123456789abcdef01234567"
SHA = "a" * 40
REPO = "acme/app"
Answer = tuple[int, object, dict[str, str]]


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, list[str]]
    body: Any


@dataclass
class Forge:
    """Answers `(method, path)` from `routes`; a list is used up one by one, its last entry stays."""

    url: str = ""
    routes: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # requests that a real Gitea would not have understood
    release: threading.Event = field(default_factory=threading.Event)

    def on(self, method: str, path: str, *answers: Any) -> None:
        self.routes[(method, f"/api/v1{path}")] = list(answers)

    def next(self, ask: Asked) -> Any:
        answers = self.routes.get((ask.method, ask.path))
        if answers is None:
            return 404, {"message": "no such route"}
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer(ask) if callable(answer) else answer

    def count(self, method: str) -> int:
        return sum(ask.method == method for ask in self.asked)


DROP, HANG, HUGE, DRIP, CUT = "drop", "hang", "huge", "drip", "cut"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    forge: Forge

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one(self) -> None:
        parts = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        ask = Asked(self.command, parts.path, parse_qs(parts.query), json.loads(raw) if raw else None)
        self._check(raw)
        self.forge.asked.append(ask)
        if self.headers.get("Authorization") != f"token {TOKEN}":
            return self._say(401, {"message": "invalid username, password or token"}, {})
        answer = self.forge.next(ask)
        if isinstance(answer, str):
            return self._misbehave(answer)
        status, data, *more = answer
        self._say(status, data, more[0] if more else {})

    do_GET = do_POST = do_PATCH = do_DELETE = handle_one

    def _check(self, raw: bytes) -> None:
        if raw and not self.headers.get("Content-Type", "").startswith("application/json"):
            self.forge.wrong.append(f"{self.path}: body without JSON type")
        if "token" in self.path or TOKEN in self.path:
            self.forge.wrong.append(f"{self.path}: token in the URL")
        if self.headers.get("Cookie"):
            self.forge.wrong.append(f"{self.path}: cookie sent")

    def _misbehave(self, how: str) -> None:
        self.close_connection = True
        if how == HANG:
            self.forge.release.wait(30)
        if how in (HUGE, DRIP, CUT):
            self.send_response(200)
            self.send_header("Content-Length", str(64 * 1024 * 1024))
            self.end_headers()
        if how == HUGE:
            for _ in range(64):
                self.wfile.write(b" " * 1024 * 1024)
        if how == DRIP:
            while not self.forge.release.wait(0.05):
                self.wfile.write(b" ")
        if how == CUT:
            self.wfile.write(b'{"version"')

    def _say(self, status: int, data: object, headers: dict[str, str]) -> None:
        content = data if isinstance(data, bytes) else b"" if data is None else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Set-Cookie": "i_like_gitea=x", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        pass  # a client that went away is what some of these tests are about


def serve(state: Forge) -> _Server:
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"forge": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@pytest.fixture
def forge() -> Iterator[Forge]:
    state = Forge()
    server = serve(state)
    yield state
    state.release.set()
    server.shutdown()
    server.server_close()
    assert state.wrong == []


@pytest.fixture
def client(forge: Forge) -> GiteaClient:
    return GiteaClient(forge.url, TOKEN, timeout=(3.05, 5.0))


@pytest.fixture
def impatient(forge: Forge) -> GiteaClient:
    return GiteaClient(forge.url, TOKEN, timeout=(3.05, 0.3))


# ---------------------------------------------------------------- answers as Gitea gives them

ALICE = {"id": 3, "login": "alice", "username": "alice", "email": "3+alice@noreply.example.org"}
T1, T2 = "2026-01-02T03:04:05+01:00", "2026-01-02T04:04:05Z"


def comment_json(**more: Any) -> dict[str, Any]:
    return {"id": 9, "body": "hi", "user": ALICE, "created_at": T1, "updated_at": T2, "html_url": "http://f/9"} | more


def issue_json(**more: Any) -> dict[str, Any]:
    base = {"id": 70, "number": 7, "title": "t", "body": "b", "user": ALICE, "state": "open", "labels": []}
    base |= {"assignees": None, "pull_request": None, "is_locked": False, "html_url": "http://f/i/7"}
    return base | {"created_at": T1, "updated_at": T2, "repository": {"owner": "acme"}} | more


def pull_json(number: int, head: str = "mosaic/issue-7", base: str = "main", head_repo: int = 1) -> dict[str, Any]:
    ends = {"head": {"ref": head, "sha": SHA, "repo_id": head_repo}, "base": {"ref": base, "sha": SHA, "repo_id": 1}}
    text = {"title": "WIP: t", "body": "", "state": "open", "merged": False, "draft": True, "html_url": "http://f/p"}
    return {"id": 500 + number, "number": number, "user": ALICE, **text, **ends}


def repo_json(**more: Any) -> dict[str, Any]:
    base = {"id": 1, "full_name": REPO, "default_branch": "main", "clone_url": "http://f/acme/app.git", "private": True}
    return base | {"html_url": "http://f/acme/app", "archived": False, "empty": False} | more


def status_json(context: str, state: str) -> dict[str, Any]:
    return {"id": 1, "context": context, "status": state, "description": "d", "target_url": "http://m/1"}


def caught(kind: type[MosaicError], act: Callable[[], object]) -> Any:
    """The error of `act`, which must be exactly `kind`, and must not show the token anywhere."""
    with pytest.raises(kind) as info:
        act()
    assert type(info.value) is kind
    seen: BaseException | None = info.value
    while seen:
        assert TOKEN not in str(seen) + repr(seen) + repr(seen.args)
        seen = seen.__cause__ or seen.__context__
    return info.value


# ---------------------------------------------------------------- reading


def test_people_and_server(forge: Forge, client: GiteaClient) -> None:
    forge.on("GET", "/user", (200, {"id": 2, "login": "mosaic"}))
    forge.on("GET", "/version", (200, {"version": "1.27.0"}))
    forge.on("GET", "/users/alice", (200, ALICE))
    forge.on("GET", "/users/a%2F..%2Fb", (200, ALICE))
    forge.on("GET", "/users/search", (200, {"data": [{"id": 4, "login": "other"}, ALICE], "ok": True}))
    assert client.me() == User(2, "mosaic")
    assert client.version() == "1.27.0"
    assert client.user("alice") == client.user("a/../b") == User(3, "alice")
    assert client.user("nobody") is None
    assert client.user_by_id(3) == User(3, "alice")
    assert client.user_by_id(5) is None
    assert forge.asked[-1].query == {"uid": ["5"]}


def test_repositories(forge: Forge, client: GiteaClient) -> None:
    rights = {"permissions": {"admin": False, "push": True, "pull": True}}
    forge.on("GET", "/repos/acme/app", (200, repo_json(**rights)))
    forge.on("GET", "/repositories/1", (200, repo_json(full_name="acme/new", permissions=None)))
    forge.on("GET", "/repos/acme/app/branches/feat/x", (200, {"name": "feat/x", "commit": {"id": SHA}}))
    found = client.repository(REPO)
    assert found and (found.id, found.full_name, found.default_branch) == (1, REPO, "main")
    assert (found.can_push, found.can_admin, found.private, found.archived) == (True, False, True, False)
    renamed = client.repository_by_id(1)
    assert renamed and renamed.full_name == "acme/new" and not renamed.can_push
    assert client.repository("acme/none") is None and client.repository_by_id(2) is None
    assert client.branch(REPO, "feat/x") == SHA and client.branch(REPO, "none") is None


def test_a_name_that_is_no_repository_is_never_sent(forge: Forge, client: GiteaClient) -> None:
    for name in ("acme", "acme/../x", "acme/a?b", "a/b/c", ""):
        assert caught(Permanent, lambda name=name: client.repository(name)).code == "invalid_name"
    assert caught(Permanent, lambda: client.statuses(REPO, "main")).code == "invalid_name"
    assert forge.asked == []


def test_issue(forge: Forge, client: GiteaClient) -> None:
    labels = [{"id": 1, "name": "bug", "color": "00aabb"}]
    forge.on("GET", "/repos/acme/app/issues/7", (200, issue_json(labels=labels)))
    forge.on("GET", "/repos/acme/app/issues/8", (200, issue_json(assignees=[ALICE], pull_request={}, user=None)))
    plain = client.issue(REPO, 7)
    assert plain and plain.labels == (Label(1, "bug"),) and plain.assignees == () and not plain.is_pull
    assert plain.created_at == datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)
    pull = client.issue(REPO, 8)
    assert pull and pull.is_pull and pull.assignees == (User(3, "alice"),) and pull.user.id == GHOST
    assert client.issue(REPO, 9) is None


def test_comment_is_absent_for_404_and_for_the_204_of_a_review_reply(forge: Forge, client: GiteaClient) -> None:
    forge.on("GET", "/repos/acme/app/issues/comments/9", (200, comment_json()))
    forge.on("GET", "/repos/acme/app/issues/comments/10", (204, None))
    found = client.comment(REPO, 9)
    assert found and (found.id, found.body, found.user.login) == (9, "hi", "alice")
    assert client.comment(REPO, 10) is None and client.comment(REPO, 11) is None


def test_comments_are_read_in_one_request(forge: Forge, client: GiteaClient) -> None:
    """The endpoint ignores paging: whoever pages it reads the same list for ever."""
    many = [comment_json(id=number) for number in range(120)]
    forge.on("GET", "/repos/acme/app/issues/7/comments", (200, many, {"X-Total-Count": "120"}))
    assert [comment.id for comment in client.comments(REPO, 7)] == list(range(120))
    assert len(forge.asked) == 1 and not {"page", "limit"} & set(forge.asked[0].query)
    since = datetime(2026, 1, 1, tzinfo=UTC)
    client.comments(REPO, 7, since)
    assert forge.asked[-1].query == {"since": ["2026-01-01T00:00:00+00:00"]}


def test_comments_of_an_unknown_issue(forge: Forge, client: GiteaClient) -> None:
    forge.on("GET", "/repos/acme/app/issues/7/comments", (500, {"message": ""}))
    assert caught(Permanent, lambda: client.comments(REPO, 7)).status == 404
    forge.on("GET", "/repos/acme/app/issues/7", (200, issue_json()))
    assert caught(Transient, lambda: client.comments(REPO, 7)).status == 500  # it exists: the server is unwell


def test_permission(forge: Forge, client: GiteaClient) -> None:
    path = "/repos/acme/app/collaborators/%s/permission"
    for word in ("none", "read", "write", "admin", "owner"):
        forge.on("GET", path % "alice", (200, {"permission": word, "role_name": word}))
        assert client.permission(REPO, "alice") == word
    forge.on("GET", path % "alice", (403, None))
    assert client.permission(REPO, "alice") is None
    forge.on("GET", path % "alice", (200, {"permission": "superuser"}))
    assert client.permission(REPO, "alice") == "none"
    error = caught(Permanent, lambda: client.permission(REPO, "nobody"))  # nor is the repository to be seen
    assert (error.status, error.code) == (404, "forge_forbidden")
    forge.on("GET", "/repos/acme/app", (200, repo_json()))
    assert client.permission(REPO, "nobody") == "none"


def pages(items: list[Any], total: bool, ceiling: int, field: str = "") -> Callable[[Asked], Answer]:
    """A paginated endpoint that silently clamps `limit`, as Gitea does."""

    def answer(ask: Asked) -> Answer:
        size = min(int(ask.query["limit"][0]), ceiling)
        start = (int(ask.query["page"][0]) - 1) * size
        part = items[start : start + size]
        headers = {"X-Total-Count": str(len(items))} if total else {}
        return 200, {field: part or None} if field else part, headers

    return answer


@pytest.mark.parametrize(("total", "ceiling"), [(True, 50), (True, 7), (False, 50), (False, 7)])
def test_pulls_reads_every_page(forge: Forge, client: GiteaClient, total: bool, ceiling: int) -> None:
    forge.on("GET", "/repos/acme/app/pulls", pages([pull_json(n) for n in range(1, 121)], total, ceiling))
    assert [pull.number for pull in client.pulls(REPO)] == list(range(1, 121))
    assert forge.asked[0].query["state"] == ["open"]
    assert len(forge.asked) == -(-120 // ceiling) + (0 if total else 1)


def test_a_list_that_ignores_paging_ends(forge: Forge, client: GiteaClient) -> None:
    forge.on("GET", "/repos/acme/app/hooks", (200, [{"id": 1, "config": {"url": "http://m"}, "active": True}]))
    assert [hook.id for hook in client.hooks(REPO)] == [1]
    assert len(forge.asked) == 2


def test_a_list_without_end_is_cut(forge: Forge, client: GiteaClient) -> None:
    def endless(ask: Asked) -> Answer:
        page = int(ask.query["page"][0])
        return 200, [pull_json(page * 50 + n) for n in range(50)], {}

    forge.on("GET", "/repos/acme/app/pulls", endless)
    assert len(client.pulls(REPO)) == 2000


def test_a_list_of_another_shape_is_an_error(forge: Forge, client: GiteaClient) -> None:
    for answer in ({"message": "x"}, "text", 7, [7], [{"number": 1}]):
        forge.on("GET", "/repos/acme/app/pulls", (200, answer))
        assert caught(Permanent, lambda: client.pulls(REPO)).code == "bad_answer"
    forge.on("GET", f"/repos/acme/app/commits/{SHA}/status", (200, []))
    assert caught(Permanent, lambda: client.statuses(REPO, SHA)).code == "bad_answer"


def test_find_pull_never_takes_one_from_a_fork(forge: Forge, client: GiteaClient) -> None:
    others = [pull_json(1, head_repo=66), pull_json(2, head="mosaic/issue-70"), pull_json(3, base="dev")]
    forge.on("GET", "/repos/acme/app/pulls", pages(others, True, 50))
    assert client.find_pull(REPO, "mosaic/issue-7", "main") is None
    forge.on("GET", "/repos/acme/app/pulls", pages([*others, pull_json(4)], True, 50))
    found = client.find_pull(REPO, "mosaic/issue-7", "main")
    assert found and found.number == 4 and found.draft and found.head_sha == SHA and found.head_repo_id == 1


def test_notifications(forge: Forge, client: GiteaClient) -> None:
    subject = {"type": "Issue", "url": "http://f/api/v1/repos/acme/app/issues/7", "latest_comment_url": ""}
    thread = {"id": 5, "subject": subject, "repository": repo_json(), "unread": True, "updated_at": T2}
    forge.on("GET", "/notifications", pages([thread], True, 50))
    (found,) = client.notifications(datetime(2026, 1, 1, tzinfo=UTC))
    assert (found.repository_id, found.subject_type, found.unread) == (1, "Issue", True)


# ---------------------------------------------------------------- writing


def test_comment_writes(forge: Forge, client: GiteaClient) -> None:
    forge.on("POST", "/repos/acme/app/issues/7/comments", (201, comment_json()))
    forge.on("PATCH", "/repos/acme/app/issues/comments/9", (200, comment_json(body="new")))
    forge.on("PATCH", "/repos/acme/app/issues/comments/10", (204, None))
    forge.on("DELETE", "/repos/acme/app/issues/comments/9", (204, None))
    assert client.create_comment(REPO, 7, "hé \U0001f440").id == 9
    assert forge.asked[-1].body == {"body": "hé \U0001f440"}
    edited = client.edit_comment(REPO, 9, "new")
    assert edited and edited.body == "new"
    assert client.edit_comment(REPO, 10, "x") is None and client.edit_comment(REPO, 11, "x") is None
    assert client.delete_comment(REPO, 9) is True and client.delete_comment(REPO, 11) is False


def test_reactions(forge: Forge, client: GiteaClient) -> None:
    forge.on("POST", "/repos/acme/app/issues/7/reactions", (201, {}), (200, {}), (403, {"message": "not allowed"}))
    forge.on("POST", "/repos/acme/app/issues/comments/9/reactions", (201, {}))
    assert [client.react_issue(REPO, 7, "eyes") for _ in range(3)] == [True, True, False]
    assert client.react_comment(REPO, 9, "eyes") is True
    assert forge.asked[-1].body == {"content": "eyes"}
    assert caught(Permanent, lambda: client.react_issue(REPO, 8, "eyes")).status == 404


def test_remove_label(forge: Forge, client: GiteaClient) -> None:
    forge.on("DELETE", "/repos/acme/app/issues/7/labels/1", (204, None), (422, {"message": "label not found"}))
    assert [client.remove_label(REPO, 7, 1) for _ in range(2)] == [True, False]


def test_pull_request_writes(forge: Forge, client: GiteaClient) -> None:
    exists = (409, {"message": "pull request already exists for these targets [id: 1, issue_id: 12]"})
    forge.on("POST", "/repos/acme/app/pulls", (201, pull_json(12)), exists, (422, {"message": "no"}))
    forge.on("PATCH", "/repos/acme/app/pulls/12", (201, pull_json(12)))

    def create() -> object:
        return client.create_pull(REPO, "mosaic/issue-7", "main", "WIP: t", "b")

    assert create() and forge.asked[-1].body == {
        "head": "mosaic/issue-7",
        "base": "main",
        "title": "WIP: t",
        "body": "b",
    }
    error = caught(Permanent, create)
    assert (error.code, error.status) == ("exists", 409) and "issue_id: 12" in str(error)
    assert caught(Permanent, create).code == "permanent"
    client.edit_pull(REPO, 12, body="new")
    assert forge.asked[-1].body == {"body": "new"}
    client.edit_pull(REPO, 12, title="t")
    assert forge.asked[-1].body == {"title": "t"}


def test_statuses(forge: Forge, client: GiteaClient) -> None:
    items = [status_json("mosaic/lint", "success"), status_json("mosaic/job", "pending")]
    forge.on("GET", f"/repos/acme/app/commits/{SHA}/status", pages(items, False, 50, "statuses"))
    forge.on("POST", f"/repos/acme/app/statuses/{SHA}", (201, {}))
    wanted = (Status("mosaic/lint", "success", "d", "http://m/1"), Status("mosaic/job", "pending", "d", "http://m/1"))
    assert client.statuses(REPO, SHA) == wanted
    client.set_status(REPO, SHA, "mosaic/lint", "failure", "2 failed", "http://m/1")
    sent = {"context": "mosaic/lint", "state": "failure", "description": "2 failed", "target_url": "http://m/1"}
    assert forge.asked[-1].body == sent
    with pytest.raises(ValueError, match="unknown commit status"):
        client.set_status(REPO, SHA, "c", "done", "", "")


@pytest.mark.parametrize("failure", [(500, {"message": ""}), DROP])
def test_an_unclear_status_write_is_settled_by_looking(forge: Forge, client: GiteaClient, failure: Any) -> None:
    def write() -> None:
        client.set_status(REPO, SHA, "mosaic/lint", "success", "d", "http://m/1")

    forge.on("POST", f"/repos/acme/app/statuses/{SHA}", failure)
    for there in ([], [status_json("mosaic/lint", "pending")], None):
        answer = (404, {"message": "x"}) if there is None else pages(there, False, 50, "statuses")
        forge.on("GET", f"/repos/acme/app/commits/{SHA}/status", answer)
        caught(Ambiguous, write)
    forge.on(
        "GET",
        f"/repos/acme/app/commits/{SHA}/status",
        pages([status_json("mosaic/lint", "success")], False, 50, "statuses"),
    )
    write()


def test_hooks(forge: Forge, client: GiteaClient) -> None:
    made = {"id": 2, "type": "gitea", "config": {"url": "http://m/w", "content_type": "json"}, "active": True}
    forge.on(
        "POST", "/repos/acme/app/hooks", (201, made | {"events": ["issues"]}), (422, {"message": "bad hook-secret-77"})
    )
    hook = client.create_hook(REPO, "http://m/w", "hook-secret-77", ["issues"])
    assert (hook.id, hook.url, hook.active, hook.events) == (2, "http://m/w", True, ("issues",))
    config = {"url": "http://m/w", "content_type": "json", "secret": "hook-secret-77"}
    assert forge.asked[-1].body == {"type": "gitea", "config": config, "events": ["issues"], "active": True}
    error = caught(Permanent, lambda: client.create_hook(REPO, "http://m/w", "hook-secret-77", ["issues"]))
    assert "hook-secret-77" not in str(error) and "bad ***" in str(error)


# ---------------------------------------------------------------- what failures mean


def comment_on(client: GiteaClient) -> Callable[[], object]:
    return lambda: client.create_comment(REPO, 7, "x")


def test_a_redirect_is_not_followed(forge: Forge, client: GiteaClient) -> None:
    """A followed POST would become a GET, answer 200, and nothing would have been posted."""
    other = Forge()
    server = serve(other)
    other.on("GET", "/repos/acme/app/issues/7/comments", (200, []))
    for status in (301, 302, 307, 308):
        to = {"Location": f"{other.url}/api/v1/repos/acme/app/issues/7/comments"}
        forge.on("POST", "/repos/acme/app/issues/7/comments", (status, None, to))
        forge.on("GET", "/repos/acme/app/issues/7/comments", (status, None, to))
        for act in (comment_on(client), lambda: client.comments(REPO, 7)):
            error = caught(Permanent, act)
            assert (error.code, error.status) == ("moved", status)
    server.shutdown()
    server.server_close()
    assert other.asked == []


def test_too_many_requests_says_when_to_come_back(forge: Forge, client: GiteaClient) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    for header, low, high in (("7", 7, 7), (later, 60, 90), ("999999", 3600, 3600)):
        forge.on("GET", "/user", (429, {"message": "slow down"}, {"Retry-After": header}))
        error = caught(Transient, client.me)
        assert error.status == 429 and low <= error.retry_after <= high
    for header in ("soon", "-5", "²", ""):
        forge.on("GET", "/user", (429, None, {"Retry-After": header}))
        assert caught(Transient, client.me).retry_after is None
    forge.on("POST", "/repos/acme/app/issues/7/comments", (429, None, {"Retry-After": "7"}))
    assert caught(Transient, comment_on(client)).retry_after == 7  # refused before it was done: not ambiguous
    assert forge.count("POST") == 1


def test_a_get_is_tried_again_twice(forge: Forge, client: GiteaClient) -> None:
    for failure in ((502, None), (503, None), (504, None), DROP):
        forge.asked.clear()
        forge.on("GET", "/user", failure, failure, (200, ALICE))
        assert client.me().login == "alice"
        assert len(forge.asked) == 3
    forge.asked.clear()
    forge.on("GET", "/user", (503, None))
    assert caught(Transient, client.me).status == 503
    assert len(forge.asked) == 3
    forge.asked.clear()
    forge.on("GET", "/user", (500, {"message": ""}))
    assert caught(Transient, client.me).status == 500
    assert len(forge.asked) == 1


@pytest.mark.parametrize(
    "failure",
    [DROP, HUGE, CUT, *((status, None) for status in (500, 502, 503, 504)), (201, b"<html>"), (201, {"unexpected": 1})],
)
def test_a_write_whose_answer_is_lost_is_ambiguous_and_not_repeated(
    forge: Forge, client: GiteaClient, failure: Any
) -> None:
    forge.on("POST", "/repos/acme/app/issues/7/comments", failure)
    caught(Ambiguous, comment_on(client))
    assert forge.count("POST") == 1


def test_an_idempotent_write_whose_answer_is_lost_is_transient(forge: Forge, client: GiteaClient) -> None:
    forge.on("PATCH", "/repos/acme/app/issues/comments/9", DROP, (503, None))
    for _ in range(2):
        caught(Transient, lambda: client.edit_comment(REPO, 9, "x"))
    assert forge.count("PATCH") == 2


def test_a_hung_server_is_left(forge: Forge, impatient: GiteaClient) -> None:
    forge.on("GET", "/user", HANG)
    forge.on("POST", "/repos/acme/app/issues/7/comments", HANG)
    forge.on("PATCH", "/repos/acme/app/issues/comments/9", HANG)
    assert "did not answer in time" in str(caught(Transient, impatient.me))
    assert forge.count("GET") == 1  # a wait that was used up is not tried again
    caught(Ambiguous, comment_on(impatient))
    caught(Transient, lambda: impatient.edit_comment(REPO, 9, "x"))


def test_an_answer_that_drips_for_ever_is_left(
    forge: Forge, client: GiteaClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gitea_http, "MAX_SECONDS", 0.5)
    forge.on("GET", "/user", DRIP)
    assert "did not answer in time" in str(caught(Transient, client.me))


def test_a_huge_answer_is_capped(forge: Forge, client: GiteaClient) -> None:
    forge.on("GET", "/version", HUGE)
    assert caught(Permanent, client.version).code == "too_large"


def test_a_cut_answer_is_not_taken_for_a_whole_one(forge: Forge, client: GiteaClient) -> None:
    forge.on("GET", "/version", CUT)
    assert "closed the connection" in str(caught(Transient, client.version))


def test_an_unreachable_server_is_transient_even_for_a_write() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    away = GiteaClient(f"http://127.0.0.1:{port}", TOKEN)
    for act in (away.me, comment_on(away)):
        assert "no connection" in str(caught(Transient, act))
    nowhere = GiteaClient("http://gitea.invalid", TOKEN)
    assert "no connection" in str(caught(Transient, comment_on(nowhere)))


@pytest.mark.parametrize(
    ("status", "hint"), [(403, "scopes"), (404, "does not exist"), (422, ""), (423, "archived")]
)
def test_refusals_keep_status_and_gitea_s_words(forge: Forge, client: GiteaClient, status: int, hint: str) -> None:
    forge.on("POST", "/repos/acme/app/issues/7/comments", (status, {"message": "the\nreason"}))
    error = caught(Permanent, comment_on(client))
    assert error.status == status and hint in str(error) and "(the reason)" in str(error) and "\n" not in str(error)
    forge.on("POST", "/repos/acme/app/issues/7/comments", (status, None))
    assert caught(Permanent, comment_on(client)).status == status


def test_what_an_operator_has_to_mend_is_told_apart(forge: Forge, client: GiteaClient) -> None:
    """A refused token, an account that may not sign in, a missing scope: the same request works when it is mended."""
    scope = "token does not have at least one of required scope(s), required=[write:issue], token scope=read:issue"
    for status, message, code in (
        (401, "invalid username, password or token", "token_refused"),
        (401, "", "token_refused"),
        (403, "This account is prohibited from signing in", "token_refused"),
        (403, "You must change your password.", "token_refused"),
        (403, scope, "token_scope"),
    ):
        forge.on("POST", "/repos/acme/app/issues/7/comments", (status, {"message": message}))
        error = caught(Misconfigured, comment_on(client))
        assert (error.status, error.code) == (status, code) and "token" in str(error)
    forge.on("GET", "/user", (403, {"message": scope}), (403, None), (200, ALICE))
    for _ in range(3):
        client.probe()
    stranger = GiteaClient(forge.url, "wrong-token-12345678")
    assert caught(Misconfigured, stranger.probe).code == "token_refused"


def test_a_write_that_comes_back_with_a_time_says_it(forge: Forge, client: GiteaClient) -> None:
    forge.on("POST", "/repos/acme/app/issues/7/comments", (503, None, {"Retry-After": "30"}))
    assert caught(Ambiguous, comment_on(client)).retry_after == 30


def test_answers_of_another_shape(forge: Forge, client: GiteaClient) -> None:
    for answer in ({"message": "hello"}, {}, None, [], "text", 7, {"id": "x", "login": "y"}):
        forge.on("GET", "/user", (200, answer))
        assert caught(Permanent, client.me).code == "bad_answer"
    forge.on("GET", "/user", (200, b"<html>maintenance</html>"))
    assert "not JSON" in str(caught(Transient, client.me))
    forge.on("GET", "/user", (200, b"[" * 100_000))
    caught(Transient, client.me)
    forge.on("GET", "/repos/acme/app/issues/7", (200, issue_json(created_at="2026-01-02T03:04:05")))
    assert caught(Permanent, lambda: client.issue(REPO, 7)).code == "bad_answer"


# ---------------------------------------------------------------- secrets and bounds


def test_the_token_is_in_no_word_and_no_log(forge: Forge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = GiteaClient(forge.url, TOKEN)
    forge.on("GET", "/user", (403, {"message": f"token {TOKEN} does not have the scope"}))
    error = caught(Permanent, client.me)
    assert "token *** does not" in str(error)
    stranger = GiteaClient(forge.url, "wrong-token-12345678")
    assert "wrong-token-12345678" not in str(caught(Misconfigured, stranger.me))
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(client) + str(vars(client))


@pytest.mark.parametrize("token", ["", "brief", f"{TOKEN}\n", f" {TOKEN}", "tökén-0123456789"])
def test_a_token_that_no_header_can_carry_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(ValueError, match="MOSAIC_GITEA_TOKEN") as info:
        GiteaClient("http://127.0.0.1:1", token)
    assert not token.strip() or token.strip() not in str(info.value)


@pytest.mark.parametrize("url", ["", "git.example.org", "ftp://h", "http://u:pw@h", "http://h?x=1", "http://h#x"])
def test_a_url_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="MOSAIC_GITEA") as info:
        GiteaClient(url, TOKEN)
    assert "pw" not in str(info.value)


def test_a_ca_bundle_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="MOSAIC_CA_BUNDLE"):
        GiteaClient("https://git.example.org", TOKEN, ca_bundle="/nonexistent/ca.pem")


def test_a_gitea_below_a_path(forge: Forge) -> None:
    forge.routes[("GET", "/git/api/v1/user")] = [(200, ALICE)]
    assert GiteaClient(f"{forge.url}/git/", TOKEN).me().login == "alice"


def test_the_environment_cannot_replace_the_token_or_the_way(
    forge: Forge, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login eve password evil\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    forge.on("GET", "/user", (200, ALICE))
    assert GiteaClient(forge.url, TOKEN).me().login == "alice"


def test_py_gitea_s_own_calls_are_bounded_too(forge: Forge, impatient: GiteaClient) -> None:
    forge.on("GET", "/version", HANG)
    with pytest.raises(requests.Timeout):
        impatient._http._gitea.get_version()


def test_a_few_threads_may_share_a_client(forge: Forge, client: GiteaClient) -> None:
    forge.on("GET", "/repos/acme/app/issues/comments/9", (200, comment_json()))
    forge.on("GET", "/user", (200, ALICE))
    results: list[object] = []

    def work() -> None:
        for _ in range(20):
            results.extend((client.me().login, client.comment(REPO, 9) is not None))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("alice") == results.count(True) == 120
