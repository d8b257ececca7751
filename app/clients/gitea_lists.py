"""Gitea's lists, one page a call, for whoever looks around within a budget of requests. It reads and never writes.

Errors are those of `GiteaClient`. `repo` is always `owner/name`; moments in answers are the forge's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from app.clients.gitea_activity import Happening, Review
from app.clients.gitea_http import PAGE, Reply, Transport
from app.clients.gitea_types import Comment, Issue, Notification, Repository
from app.clients.names import repo_name_ok
from app.types import Permanent

_T = TypeVar("_T")
Params = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Page(Generic[_T]):
    """`total` = how many there are on all pages, where Gitea says so; `at` = the forge's clock when it answered."""

    items: tuple[_T, ...]
    total: int | None
    at: datetime | None

    @property
    def whole(self) -> bool:
        """Whether this page surely holds everything: one answer, read at one moment."""
        return self.total is not None and len(self.items) >= self.total


class GiteaLists:
    def __init__(self, transport: Transport) -> None:
        self._http = transport

    def repositories(self, page: int = 1) -> Page[Repository]:
        """What the bot owns, works on as a collaborator, or reaches through a team."""
        return self._page(Repository.read, "/user/repos", {"page": page, "limit": PAGE})

    def notifications(self, since: datetime | None, page: int = 1) -> Page[Notification]:
        """The bot's inbox, newest first, read ones too; `since` includes its own second."""
        return self._page(Notification.read, "/notifications", {"all": "true", **_window(since, None, page)})

    def comments(self, repo: str, since: datetime, before: datetime | None = None, page: int = 1) -> Page[Comment]:
        """Plain comments of a whole repository that were changed in this time, both ends included, oldest first."""
        return self._page(Comment.read, f"{_repo(repo)}/issues/comments", _window(since, before, page))

    def issues(self, repo: str, since: datetime, before: datetime | None = None, page: int = 1) -> Page[Issue]:
        """Issues and pull requests that were changed in this time, both ends included, newest first."""
        return self._page(Issue.read, f"{_repo(repo)}/issues", {"state": "all", **_window(since, before, page)})

    def issue_comments(self, repo: str, number: int, since: datetime) -> Page[Comment]:
        """Plain comments of one issue or pull request that were changed since, all of them, oldest first."""
        return self._page(Comment.read, f"{_repo(repo)}/issues/{number}/comments", _window(since, None, 0))

    def timeline(self, repo: str, number: int, since: datetime) -> Page[Happening]:
        """What was done to an issue since, oldest first."""
        return self._page(Happening.read, f"{_repo(repo)}/issues/{number}/timeline", _window(since, None, 0))

    def reviews(self, repo: str, number: int, page: int = 1) -> Page[Review]:
        return self._page(Review.read, f"{_repo(repo)}/pulls/{number}/reviews", {"page": page, "limit": PAGE})

    def review_lines(self, repo: str, number: int, review: int) -> Page[Comment]:
        """Line comments of a review and the replies below them, all of them."""
        return self._page(Comment.read, f"{_repo(repo)}/pulls/{number}/reviews/{review}/comments", {})

    def reacted(self, repo: str, number: int, comment: int | None, user_id: int) -> bool:
        """Whether this account has put 👀 on a comment, or (None) on the issue itself."""
        where = f"comments/{comment}" if comment else str(number)
        page = self._page(_reaction, f"{_repo(repo)}/issues/{where}/reactions", {})
        return (user_id, "eyes") in page.items

    def _page(self, build: Callable[[Any], _T], path: str, params: Params) -> Page[_T]:
        reply: Reply = self._http.call("GET", path, params=params)
        items = self._http.shape(lambda data: tuple(map(build, data or ())), reply, path)
        return Page(items, reply.total, reply.at)


def _reaction(data: Any) -> tuple[int, str]:
    return int((data.get("user") or {"id": -1})["id"]), str(data["content"])


def _repo(repo: str) -> str:
    if not repo_name_ok(repo):
        raise Permanent(f"{repo!r} is not a repository name (owner/name).", code="invalid_name")
    return f"/repos/{repo}"


def _window(since: datetime | None, before: datetime | None, page: int) -> Params:
    """Gitea compares whole seconds."""
    params: Params = {"page": page, "limit": PAGE} if page else {}
    for name, moment in (("since", since), ("before", before)):
        if moment is not None:
            params[name] = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return params
