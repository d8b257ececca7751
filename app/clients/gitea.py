"""Gitea's API as Mosaic uses it: one method per need, typed answers. A redirect is never followed.

Errors of every method: `Transient` (Gitea is away or too busy), `Ambiguous` (a write whose answer was lost: look
before writing again), `Permanent` (refused; `status` is the HTTP status; code `moved` for a renamed repository:
look it up with `repository_by_id`). `repo` is always `owner/name`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

from app.clients.gitea_activity import Review
from app.clients.gitea_http import Reply, Transport
from app.clients.gitea_lists import GiteaLists
from app.clients.gitea_types import Comment, Hook, Issue, Notification, PullRequest, Repository, Status, User
from app.clients.guard import Guard, unguarded
from app.clients.names import repo_name_ok, sha_ok
from app.types import Ambiguous, Misconfigured, MosaicError, Permanent, Transient

_LIST_CAP = 2000  # items of one paginated list
_PERMISSIONS = frozenset({"none", "read", "write", "admin", "owner"})
_STATES = frozenset({"pending", "success", "error", "failure", "warning"})
_T = TypeVar("_T")


class GiteaClient:
    """The one client of a process. `timeout` is (connect, read) in seconds."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca_bundle: str | None = None,
        timeout: tuple[float, float] = (3.05, 20.0),
        guard: Guard = unguarded,
    ) -> None:
        self._http = Transport(url, token, ca_bundle, timeout, guard)
        self._call = self._http.call
        self.lists = GiteaLists(self._http)

    def __repr__(self) -> str:
        return f"GiteaClient({self._http.url!r})"

    # -------------------------------------------------------- the server and its people

    def me(self) -> User:
        return self._one(User.read, "/user")

    def probe(self) -> None:
        """Returns when Gitea serves this account; a token without the scope to read its own account will do.

        Raises `Transient`, `Misconfigured` with code token_refused or untrusted_certificate included.
        """
        try:
            self._call("GET", "/user", ok=(200, 403))
        except Misconfigured as error:
            if error.code != "token_scope":
                raise

    def version(self) -> str:
        return self._one(lambda data: str(data["version"]), "/version")

    def user(self, login: str) -> User | None:
        return self._maybe(User.read, f"/users/{quote(login, safe='')}")

    def user_by_id(self, user_id: int) -> User | None:
        """The account with this id, under whatever login it has now."""
        found = self._one(
            lambda data: tuple(map(User.read, data["data"] or ())), "/users/search", params={"uid": user_id}
        )
        return next((user for user in found if user.id == user_id), None)

    def notifications(self, since: datetime | None = None) -> tuple[Notification, ...]:
        """The bot's inbox, newest first: a way to find mentions whose webhook was lost."""
        params = {"since": since.isoformat()} if since else {}
        return self._list(Notification.read, "/notifications", params)

    # -------------------------------------------------------- repositories

    def repository(self, repo: str) -> Repository | None:
        """None also for a repository that the bot may not see: Gitea answers 404 to both."""
        return self._maybe(Repository.read, _path(repo))

    def repository_by_id(self, repository_id: int) -> Repository | None:
        return self._maybe(Repository.read, f"/repositories/{repository_id}")

    def branch(self, repo: str, name: str) -> str | None:
        """Commit sha of the branch's head."""
        return self._maybe(lambda data: str(data["commit"]["id"]), _path(repo, "branches", quote(name)))

    def permission(self, repo: str, login: str) -> str | None:
        """none | read | write | admin | owner; None = the caller may not ask (only repository admins may).

        An unknown user, and a word that Gitea does not have today, count as none. A repository that the caller may
        not see is `Permanent`: it says nothing about the person, and Gitea answers 404 to both.
        """
        path = _path(repo, "collaborators", quote(login, safe=""), "permission")
        reply = self._call("GET", path, ok=(200, 403, 404))
        if reply.status == 404 and self.repository(repo) is None:
            raise Permanent(
                f"{repo} does not exist, or Mosaic's account may not see it.", status=404, code="forge_forbidden"
            )
        if reply.status != 200:
            return None if reply.status == 403 else "none"
        word = self._http.shape(lambda data: str(data["permission"]), reply, path)
        return word if word in _PERMISSIONS else "none"

    def hooks(self, repo: str) -> tuple[Hook, ...]:
        return self._list(Hook.read, _path(repo, "hooks"))

    def create_hook(self, repo: str, url: str, secret: str, events: Sequence[str]) -> Hook:
        """A new active JSON webhook. Gitea allows duplicates: compare `hooks()` first."""
        self._http.hide(secret)
        config = {"url": url, "content_type": "json", "secret": secret}
        body = {"type": "gitea", "config": config, "events": list(events), "active": True}  # active defaults to false
        return self._write(Hook.read, "POST", _path(repo, "hooks"), body, ok=(201,))

    # -------------------------------------------------------- issues and comments

    def issue(self, repo: str, number: int) -> Issue | None:
        return self._maybe(Issue.read, _path(repo, "issues", number))

    def remove_label(self, repo: str, number: int, label_id: int) -> bool:
        """False if the issue did not have the label."""
        reply = self._call("DELETE", _path(repo, "issues", number, "labels", label_id), ok=(200, 204, 404, 422))
        return reply.status < 300

    def comment(self, repo: str, comment_id: int) -> Comment | None:
        """None if it is gone or is not a plain comment: Gitea answers 204 for replies in a review thread."""
        return self._maybe(Comment.read, _path(repo, "issues/comments", comment_id), ok=(200, 204, 404))

    def review_line(self, repo: str, number: int, comment_id: int) -> Comment | None:
        """A line comment of a review of a pull request, or a reply below one; None if it is gone."""
        reviews = [one for one in self._list(Review.read, _path(repo, "pulls", number, "reviews")) if one.lines]
        for review in reversed(reviews):
            lines = self.lists.review_lines(repo, number, review.id).items
            if found := next((line for line in lines if line.id == comment_id), None):
                return found
        return None

    def review(self, repo: str, number: int, review_id: int) -> Review | None:
        return self._maybe(Review.read, _path(repo, "pulls", number, "reviews", review_id))

    def comments(self, repo: str, number: int, since: datetime | None = None) -> tuple[Comment, ...]:
        """All plain comments of an issue or pull request, oldest first; `since` compares with `updated_at`.

        One request: this endpoint ignores paging and always sends everything. Gitea answers 500 for an unknown
        issue, which becomes `Permanent` with status 404.
        """
        path = _path(repo, "issues", number, "comments")
        try:
            reply = self._call("GET", path, params={"since": since.isoformat()} if since else None)
        except Transient as error:
            if error.status == 500 and self.issue(repo, number) is None:
                raise Permanent(f"{repo}#{number} does not exist.", status=404, code="not_found") from error
            raise
        return self._http.shape(lambda data: tuple(map(Comment.read, data or ())), reply, path)

    def create_comment(self, repo: str, number: int, body: str) -> Comment:
        """Gitea answers 500 for an unknown issue: that is `Ambiguous` here, and looking settles it."""
        return self._write(Comment.read, "POST", _path(repo, "issues", number, "comments"), {"body": body}, ok=(201,))

    def edit_comment(self, repo: str, comment_id: int, body: str) -> Comment | None:
        """None if the comment is gone."""
        path = _path(repo, "issues/comments", comment_id)
        reply = self._call("PATCH", path, json={"body": body}, ok=(200, 204, 404))
        return self._http.shape(Comment.read, reply, path) if reply.status == 200 else None

    def delete_comment(self, repo: str, comment_id: int) -> bool:
        """False if it was gone already."""
        reply = self._call("DELETE", _path(repo, "issues/comments", comment_id), ok=(200, 204, 404))
        return reply.status != 404

    def react_issue(self, repo: str, number: int, content: str) -> bool:
        """Adds a reaction, e.g. `eyes`; twice is once. False = this reaction is not allowed there."""
        return self._react(_path(repo, "issues", number, "reactions"), content)

    def react_comment(self, repo: str, comment_id: int, content: str) -> bool:
        """As `react_issue`, on a comment."""
        return self._react(_path(repo, "issues/comments", comment_id, "reactions"), content)

    # -------------------------------------------------------- pull requests

    def pulls(self, repo: str, state: str = "open") -> tuple[PullRequest, ...]:
        """Pull requests in `state` (open | closed | all), all pages, at most 2,000."""
        return self._list(PullRequest.read, _path(repo, "pulls"), {"state": state})

    def pull(self, repo: str, number: int) -> PullRequest | None:
        return self._maybe(PullRequest.read, _path(repo, "pulls", number))

    def find_pull(self, repo: str, head: str, base: str) -> PullRequest | None:
        """The open pull request from branch `head` to `base` of this repository (never one from a fork)."""
        return next(iter(self.find_pulls(repo, head, base)), None)

    def find_pulls(self, repo: str, head: str, base: str) -> tuple[PullRequest, ...]:
        """All of them, oldest first: Gitea refuses a second one, but looks before it writes, without a lock."""
        return tuple(sorted((one for one in self.pulls(repo) if one.goes(head, base)), key=lambda one: one.number))

    def close_pull(self, repo: str, number: int) -> None:
        self._call("PATCH", _path(repo, "pulls", number), json={"state": "closed"}, ok=(200, 201))

    def create_pull(self, repo: str, head: str, base: str, title: str, body: str) -> PullRequest:
        """A draft is made by the title's prefix `WIP: `. `Permanent` with code `exists` if an open one goes there."""
        fields = {"head": head, "base": base, "title": title, "body": body}
        try:
            return self._write(PullRequest.read, "POST", _path(repo, "pulls"), fields, ok=(201,))
        except Permanent as error:
            if error.status == 409:
                raise Permanent(str(error), status=409, code="exists") from error
            raise

    def edit_pull(self, repo: str, number: int, title: str | None = None, body: str | None = None) -> PullRequest:
        """Sets what is given; the rest stays."""
        fields = {name: value for name, value in (("title", title), ("body", body)) if value is not None}
        path = _path(repo, "pulls", number)
        return self._http.shape(PullRequest.read, self._call("PATCH", path, json=fields, ok=(200, 201)), path)

    # -------------------------------------------------------- commit statuses

    def set_status(self, repo: str, sha: str, context: str, state: str, description: str, target_url: str) -> None:
        """Sets the status of one context: pending | success | error | failure | warning (Gitea checks none of it).

        Gitea answers 500 for an unknown commit; after any unclear answer the statuses are read back, and only if this
        one is not there `Ambiguous` is raised.
        """
        if state not in _STATES:
            raise ValueError(f"unknown commit status {state!r}")
        wanted = Status(context, state, description, target_url)
        fields = {"context": context, "state": state, "description": description, "target_url": target_url}
        try:
            self._call("POST", _path(repo, "statuses", _sha(sha)), json=fields, ok=(201,), idempotent=False)
        except Ambiguous:
            if not self._is_set(repo, sha, wanted):
                raise

    def statuses(self, repo: str, sha: str) -> tuple[Status, ...]:
        """The latest status of each context of a commit."""
        return self._list(Status.read, _path(repo, "commits", _sha(sha), "status"), field="statuses")

    # -------------------------------------------------------- shared

    def _is_set(self, repo: str, sha: str, wanted: Status) -> bool:
        try:
            return wanted in self.statuses(repo, sha)
        except MosaicError:
            return False  # looking failed too: the caller's Ambiguous says so

    def _react(self, path: str, content: str) -> bool:
        return self._call("POST", path, json={"content": content}, ok=(200, 201, 403)).status != 403

    def _one(self, build: Callable[[Any], _T], path: str, params: dict[str, str | int] | None = None) -> _T:
        return self._http.shape(build, self._call("GET", path, params=params), path)

    def _maybe(self, build: Callable[[Any], _T], path: str, ok: Sequence[int] = (200, 404)) -> _T | None:
        reply = self._call("GET", path, ok=ok)
        return self._http.shape(build, reply, path) if reply.status == 200 else None

    def _list(
        self, build: Callable[[Any], _T], path: str, params: dict[str, str] | None = None, field: str = ""
    ) -> tuple[_T, ...]:
        items = list(self._http.pages(path, {**(params or {})}, _LIST_CAP, field))
        return self._http.shape(lambda data: tuple(map(build, data)), Reply(200, items, None), path)

    def _write(
        self, build: Callable[[Any], _T], method: str, path: str, fields: dict[str, Any], ok: Sequence[int]
    ) -> _T:
        reply = self._call(method, path, json=fields, ok=ok, idempotent=False)
        return self._http.shape(build, reply, path, written=True)


def _path(repo: str, *parts: str | int) -> str:
    if not repo_name_ok(repo):
        raise Permanent(f"{repo!r} is not a repository name (owner/name).", code="invalid_name")
    return "/".join(["/repos", repo, *map(str, parts)])


def _sha(sha: str) -> str:
    if not sha_ok(sha):
        raise Permanent(f"{sha!r} is not a full commit id.", code="invalid_name")
    return sha
