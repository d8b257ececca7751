"""What Gitea's API says, as frozen values: each class reads itself from the JSON object of the same name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

Json = Mapping[str, Any]
GHOST = -1  # the id Gitea gives to the author of a text whose account was deleted


def moment(text: str) -> datetime:
    """RFC 3339 in the server's own zone -> aware datetime."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"time without a zone: {text!r}")
    return at


def last_number(address: str) -> int:
    """The number at the end of an address such as `…/issues/12`; 0 when there is none."""
    tail = address.rstrip("/").rpartition("/")[2]
    return int(tail) if tail.isascii() and tail.isdigit() and len(tail) < 11 else 0


@dataclass(frozen=True, slots=True)
class User:
    id: int
    login: str

    @classmethod
    def read(cls, data: Json) -> Self:
        return cls(int(data["id"]), str(data["login"]))


def author(data: Json | None) -> User:
    return User(GHOST, "Ghost") if data is None else User.read(data)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository and what the caller (the bot) may do in it."""

    id: int
    full_name: str
    default_branch: str
    clone_url: str
    html_url: str
    private: bool
    archived: bool
    empty: bool
    can_push: bool
    can_admin: bool
    created_at: datetime | None = None

    @classmethod
    def read(cls, data: Json) -> Self:
        created = str(data.get("created_at") or "")
        rights = data.get("permissions") or {}
        return cls(
            id=int(data["id"]),
            full_name=str(data["full_name"]),
            default_branch=str(data.get("default_branch") or ""),
            clone_url=str(data.get("clone_url") or ""),
            html_url=str(data.get("html_url") or ""),
            private=bool(data["private"]),
            archived=bool(data.get("archived")),
            empty=bool(data.get("empty")),
            can_push=rights.get("push") is True,
            can_admin=rights.get("admin") is True,
            created_at=moment(created) if created else None,
        )


@dataclass(frozen=True, slots=True)
class Label:
    id: int
    name: str

    @classmethod
    def read(cls, data: Json) -> Self:
        return cls(int(data["id"]), str(data["name"]))


@dataclass(frozen=True, slots=True)
class Issue:
    """An issue or (`is_pull`) the issue side of a pull request; both share `number`."""

    id: int
    number: int
    title: str
    body: str
    user: User
    state: str  # open | closed
    labels: tuple[Label, ...]
    assignees: tuple[User, ...]
    is_pull: bool
    is_locked: bool
    html_url: str
    created_at: datetime
    updated_at: datetime
    text_edits: int | None = None  # how often its text was changed, where this Gitea tells (`content_version`)

    @classmethod
    def read(cls, data: Json) -> Self:
        edits = data.get("content_version")
        return cls(
            id=int(data["id"]),
            number=int(data["number"]),
            title=str(data["title"]),
            body=str(data.get("body") or ""),
            user=author(data.get("user")),
            state=str(data["state"]),
            labels=tuple(map(Label.read, data.get("labels") or ())),
            assignees=tuple(map(User.read, data.get("assignees") or ())),  # null, not [], when nobody is assigned
            is_pull=data.get("pull_request") is not None,
            is_locked=bool(data.get("is_locked")),
            html_url=str(data.get("html_url") or ""),
            created_at=moment(data["created_at"]),
            updated_at=moment(data["updated_at"]),
            text_edits=None if edits is None else int(edits),
        )


@dataclass(frozen=True, slots=True)
class Comment:
    id: int
    body: str
    user: User  # who wrote it, whoever edited it since
    created_at: datetime
    updated_at: datetime
    html_url: str
    number: int = 0  # of its issue or pull request, from the address of that page; 0 where there is none
    is_pull: bool = False

    @classmethod
    def read(cls, data: Json) -> Self:
        pull = str(data.get("pull_request_url") or "")
        return cls(
            id=int(data["id"]),
            body=str(data.get("body") or ""),
            user=author(data.get("user")),
            created_at=moment(data["created_at"]),
            updated_at=moment(data["updated_at"]),
            html_url=str(data.get("html_url") or ""),
            number=last_number(pull or str(data.get("issue_url") or "")),
            is_pull=bool(pull),
        )


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A pull request. `head_ref` is `refs/pull/N/head` and `head_repo_id` -1 once its branch or fork is gone."""

    number: int
    title: str
    body: str
    state: str  # open | closed
    merged: bool
    head_ref: str
    head_sha: str
    head_repo_id: int
    base_ref: str
    base_repo_id: int
    user: User
    html_url: str
    draft: bool

    @classmethod
    def read(cls, data: Json) -> Self:
        head, base = data["head"], data["base"]
        return cls(
            number=int(data["number"]),
            title=str(data["title"]),
            body=str(data.get("body") or ""),
            state=str(data["state"]),
            merged=bool(data.get("merged")),
            head_ref=str(head["ref"]),
            head_sha=str(head["sha"]),
            head_repo_id=int(head["repo_id"]),
            base_ref=str(base["ref"]),
            base_repo_id=int(base["repo_id"]),
            user=author(data.get("user")),
            html_url=str(data.get("html_url") or ""),
            draft=bool(data.get("draft")),
        )

    def goes(self, head: str, base: str) -> bool:
        """True if it goes from `head` to `base` of the same repository (a fork may own a branch of that name too)."""
        return self.head_ref == head and self.base_ref == base and self.head_repo_id == self.base_repo_id


@dataclass(frozen=True, slots=True)
class Status:
    """The latest commit status of one context. Gitea reads the state from `state` but writes it as `status`."""

    context: str
    state: str  # pending | success | error | failure | warning | skipped
    description: str
    target_url: str

    @classmethod
    def read(cls, data: Json) -> Self:
        return cls(
            str(data["context"]),
            str(data["status"]),
            str(data.get("description") or ""),
            str(data.get("target_url") or ""),
        )


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook of a repository; Gitea never returns its secret."""

    id: int
    url: str
    active: bool
    events: tuple[str, ...]

    @classmethod
    def read(cls, data: Json) -> Self:
        url = (data.get("config") or {}).get("url") or ""
        return cls(int(data["id"]), str(url), bool(data.get("active")), tuple(map(str, data.get("events") or ())))


@dataclass(frozen=True, slots=True)
class Notification:
    """One thread of the bot's inbox: a mention made one even if its webhook was lost."""

    id: int
    repository_id: int
    repository: str  # owner/name
    subject_type: str  # Issue | Pull | Commit | Repository
    subject_url: str  # API URL of the issue or pull request
    latest_comment_url: str
    unread: bool
    updated_at: datetime

    @classmethod
    def read(cls, data: Json) -> Self:
        subject, repository = data["subject"], data["repository"]
        return cls(
            id=int(data["id"]),
            repository_id=int(repository["id"]),
            repository=str(repository["full_name"]),
            subject_type=str(subject["type"]),
            subject_url=str(subject.get("url") or ""),
            latest_comment_url=str(subject.get("latest_comment_url") or ""),
            unread=bool(data.get("unread")),
            updated_at=moment(data["updated_at"]),
        )
