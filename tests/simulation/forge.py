"""A Gitea in memory behind the real client: it answers requests on the wire, and loses, refuses or doubts them as told.

One rule: every request is a checkpoint before it arrives and another before its answer does.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import requests
import urllib3
from requests.adapters import BaseAdapter

from app import breaker
from app.types import Ambiguous, Transient
from tests.simulation.stage import checkpoint

URL = "http://forge.test"
BOT, ALICE = {"id": 2, "login": "mosaic"}, {"id": 7, "login": "alice"}
MOMENT = "2026-03-01T12:00:00Z"
REPOSITORIES = {1: "acme/calc", 2: "acme/tool"}
FATES = ("500", "503", "429", "lost")  # 500 and lost: done, but the answer does not say so

Json = Any
Answer = tuple[int, Json]


@dataclass
class Forge:
    """What is on the forge, and what happens to the next writes."""

    comments: dict[int, dict[str, Any]] = field(default_factory=dict)
    pulls: dict[int, dict[str, Any]] = field(default_factory=dict)
    branches: dict[tuple[int, str], str] = field(default_factory=dict)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    reactions: dict[tuple[str, str], int] = field(default_factory=dict)  # (where, content) → times asked
    fates: list[str] = field(default_factory=list)
    away: bool = False
    writes: int = 0
    last_id: int = 100

    def new_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def said(self, repository_id: int, number: int) -> list[dict[str, Any]]:
        where = (repository_id, number)
        return [one for one in self.comments.values() if one["where"] == where]

    # ------------------------------------------------------------ the wire

    def fate(self, method: str) -> str:
        """What becomes of a request: gone, a status, lost, or nothing out of the ordinary."""
        if self.away:
            return "gone"
        if method == "GET":
            return ""
        return self.fates.pop(0) if self.fates else ""

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Json) -> Answer:
        for verb, pattern, handle in _ROUTES:
            found = re.fullmatch(pattern, path)
            if verb == method and found:
                if method != "GET":
                    self.writes += 1
                return handle(self, *found.groups(), query=query, body=body)
        raise AssertionError(f"the forge of the simulation does not know {method} {path}")


class Wire(BaseAdapter):
    """Carries the requests of one session to the forge."""

    def __init__(self, forge: Callable[[], Forge]) -> None:
        super().__init__()
        self._forge = forge

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        method, parts = str(request.method), urlsplit(str(request.url))
        path = parts.path.removeprefix("/api/v1")
        checkpoint(f"forge: {method} {path}")
        forge = self._forge()
        fate = forge.fate(method)
        if fate == "gone":
            raise requests.ConnectionError(urllib3.exceptions.NewConnectionError(None, "refused"))  # type: ignore[arg-type]
        if fate == "429":
            return _response(request, 429, {"message": "slow down"}, {"Retry-After": "7"})
        if fate == "503":
            return _response(request, 503, {"message": "busy"})
        body = json.loads(request.body) if request.body else None
        status, data = forge.answer(method, path, parse_qs(parts.query), body)
        checkpoint(f"forge answers: {method} {path}")
        if fate == "lost":
            raise requests.ConnectionError(urllib3.exceptions.ProtocolError("cut off"))
        return _response(request, 500, {"message": "oops"}) if fate == "500" else _response(request, status, data)

    def close(self) -> None:
        pass


def _response(request: requests.PreparedRequest, status: int, data: Json, headers: Json = None) -> requests.Response:
    raw = urllib3.HTTPResponse(io.BytesIO(b"" if data is None else json.dumps(data).encode()), preload_content=False)
    response = requests.Response()
    response.status_code, response.raw, response.request, response.url = status, raw, request, str(request.url)
    response.headers.update(headers or {})
    return response


# ---------------------------------------------------------------- what Gitea does


def _id_of(name: str) -> int:
    return next(number for number, known in REPOSITORIES.items() if known == name)


def _repository(number: int) -> Json:
    return {
        "id": number, "full_name": REPOSITORIES[number], "default_branch": "main", "private": False, "empty": False,
        "permissions": {"push": True, "admin": True},
    }  # fmt: skip


def _comment(forge: Forge, number: int) -> Json:
    one = forge.comments[number]
    return {"id": number, "body": one["body"], "user": one["user"], "created_at": MOMENT, "updated_at": MOMENT}


def _pull(forge: Forge, number: int) -> Json:
    one = forge.pulls[number]
    side = {"repo_id": one["repository_id"]}
    head = {**side, "ref": one["head"], "sha": forge.branches[(one["repository_id"], one["head"])]}
    return {
        "number": number, "title": one["title"], "body": one["body"], "state": one["state"], "head": head,
        "base": {**side, "ref": one["base"]}, "user": BOT, "html_url": f"{URL}/pulls/{number}",
    }  # fmt: skip


def _user_search(forge: Forge, *, query: Json, body: Json) -> Answer:
    return 200, {"data": [one for one in (BOT, ALICE) if str(one["id"]) in query.get("uid", ())]}


def _user(forge: Forge, login: str, *, query: Json, body: Json) -> Answer:
    found = next((one for one in (BOT, ALICE) if one["login"] == login), None)
    return (200, found) if found else (404, None)


def _issue(forge: Forge, repo: str, number: str, *, query: Json, body: Json) -> Answer:
    return 200, {
        "id": int(number), "number": int(number), "title": "Fix it", "body": "", "user": ALICE, "state": "open",
        "created_at": MOMENT, "updated_at": MOMENT,
    }  # fmt: skip


def _list_comments(forge: Forge, repo: str, number: str, *, query: Json, body: Json) -> Answer:
    where = (_id_of(repo), int(number))
    return 200, [_comment(forge, key) for key, one in forge.comments.items() if one["where"] == where]


def _post_comment(forge: Forge, repo: str, number: str, *, query: Json, body: Json) -> Answer:
    key = forge.new_id()
    forge.comments[key] = {"where": (_id_of(repo), int(number)), "body": body["body"], "user": BOT}
    return 201, _comment(forge, key)


def _get_comment(forge: Forge, repo: str, key: str, *, query: Json, body: Json) -> Answer:
    return (200, _comment(forge, int(key))) if int(key) in forge.comments else (404, None)


def _patch_comment(forge: Forge, repo: str, key: str, *, query: Json, body: Json) -> Answer:
    if int(key) not in forge.comments:
        return 404, None
    forge.comments[int(key)]["body"] = body["body"]
    return 200, _comment(forge, int(key))


def _delete_comment(forge: Forge, repo: str, key: str, *, query: Json, body: Json) -> Answer:
    return (204, None) if forge.comments.pop(int(key), None) else (404, None)


def _react(forge: Forge, repo: str, where: str, *, query: Json, body: Json) -> Answer:
    key = (where, body["content"])
    forge.reactions[key] = forge.reactions.get(key, 0) + 1
    return (201 if forge.reactions[key] == 1 else 200), {"content": body["content"], "user": BOT}


def _list_pulls(forge: Forge, repo: str, *, query: Json, body: Json) -> Answer:
    if query.get("page", ["1"]) != ["1"]:
        return 200, []
    state, repository_id = query.get("state", ["open"])[0], _id_of(repo)
    mine = [key for key, one in forge.pulls.items() if one["repository_id"] == repository_id]
    return 200, [_pull(forge, key) for key in mine if state in ("all", forge.pulls[key]["state"])]


def _post_pull(forge: Forge, repo: str, *, query: Json, body: Json) -> Answer:
    repository_id = _id_of(repo)
    wanted = (repository_id, body["head"], body["base"], "open")
    if any((o["repository_id"], o["head"], o["base"], o["state"]) == wanted for o in forge.pulls.values()):
        return 409, {"message": "pull request already exists"}
    if (repository_id, body["head"]) not in forge.branches:
        return 404, None
    key = forge.new_id()
    forge.pulls[key] = {"repository_id": repository_id, "state": "open", **body}
    return 201, _pull(forge, key)


def _get_pull(forge: Forge, repo: str, key: str, *, query: Json, body: Json) -> Answer:
    return (200, _pull(forge, int(key))) if int(key) in forge.pulls else (404, None)


def _patch_pull(forge: Forge, repo: str, key: str, *, query: Json, body: Json) -> Answer:
    forge.pulls[int(key)].update(body)
    return 201, _pull(forge, int(key))


def _post_status(forge: Forge, repo: str, sha: str, *, query: Json, body: Json) -> Answer:
    forge.statuses.append({"sha": sha, "status": body["state"], **body})
    return 201, body


def _get_status(forge: Forge, repo: str, sha: str, *, query: Json, body: Json) -> Answer:
    if query.get("page", ["1"]) != ["1"]:
        return 200, {"statuses": []}
    latest = {one["context"]: one for one in forge.statuses if one["sha"] == sha}
    return 200, {"statuses": list(latest.values())}


_REPO = r"/repos/([^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", "/user", lambda forge, query, body: (200, BOT)),
    ("GET", "/users/search", _user_search),
    ("GET", "/users/([^/]+)", _user),
    ("GET", r"/repositories/(\d+)", lambda forge, key, query, body: (200, _repository(int(key)))),
    ("GET", _REPO, lambda forge, repo, query, body: (200, _repository(_id_of(repo)))),
    ("GET", _REPO + "/collaborators/[^/]+/permission", lambda forge, repo, query, body: (200, {"permission": "write"})),
    ("GET", _REPO + r"/issues/(\d+)", _issue),
    ("GET", _REPO + r"/issues/(\d+)/comments", _list_comments),
    ("POST", _REPO + r"/issues/(\d+)/comments", _post_comment),
    ("GET", _REPO + r"/issues/comments/(\d+)", _get_comment),
    ("PATCH", _REPO + r"/issues/comments/(\d+)", _patch_comment),
    ("DELETE", _REPO + r"/issues/comments/(\d+)", _delete_comment),
    ("POST", _REPO + r"/issues/(.*)/reactions", _react),
    ("GET", _REPO + "/pulls", _list_pulls),
    ("POST", _REPO + "/pulls", _post_pull),
    ("GET", _REPO + r"/pulls/(\d+)", _get_pull),
    ("PATCH", _REPO + r"/pulls/(\d+)", _patch_pull),
    ("POST", _REPO + "/statuses/([0-9a-f]{40})", _post_status),
    ("GET", _REPO + "/commits/([0-9a-f]{40})/status", _get_status),
)


class Mirror:
    """The forge's git as `Git` speaks to it: heads are read, and moved where they stand as expected."""

    def __init__(self, forge: Forge, repository_id: int) -> None:
        self._forge, self._repository = forge, repository_id

    def remote_head(self, branch: str) -> str | None:
        with breaker.forge():
            return self._remote_head(branch)

    def _remote_head(self, branch: str) -> str | None:
        checkpoint("git: ls-remote")
        if self._forge.away:
            raise Transient("git ls-remote: the forge could not be reached")
        return self._forge.branches.get((self._repository, branch))

    def push(self, sha: str, branch: str, expected: str | None, **_: Any) -> Literal["pushed", "same", "conflict"]:
        with breaker.forge():
            return self._push(sha, branch, expected)

    def _push(self, sha: str, branch: str, expected: str | None) -> Literal["pushed", "same", "conflict"]:
        checkpoint("git: push")
        fate, key = self._forge.fate("PUSH"), (self._repository, branch)
        if fate in ("gone", "503", "429"):
            raise Transient("git push: the forge could not be reached")
        there = self._forge.branches.get(key)
        if there == expected:
            self._forge.branches[key] = sha
            self._forge.writes += 1
        checkpoint("git answers: push")
        if fate:
            raise Ambiguous("git push broke off")
        if there == expected:
            return "pushed"
        return "same" if there == sha else "conflict"

    def changes(self, start: str, commit: str) -> tuple[Any, ...]:
        return ()
