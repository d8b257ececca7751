"""What people do on Gitea beside issues and comments, as frozen values: reviews, and the lines of a timeline."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from app.clients.gitea_types import Json, User, author, moment


@dataclass(frozen=True, slots=True)
class Review:
    """A submitted review. `body` may be empty; its line comments are a list of their own."""

    id: int
    state: str  # APPROVED | REQUEST_CHANGES | COMMENT | PENDING | REQUEST_REVIEW
    body: str
    user: User
    submitted_at: datetime
    html_url: str
    lines: int  # how many line comments it has

    @classmethod
    def read(cls, data: Json) -> Self:
        return cls(
            id=int(data["id"]),
            state=str(data["state"]),
            body=str(data.get("body") or ""),
            user=author(data.get("user")),
            submitted_at=moment(data["submitted_at"]),
            html_url=str(data.get("html_url") or ""),
            lines=int(data.get("comments_count") or 0),
        )


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of an issue's timeline. Who did what: webhooks do not say it of labels and assignments."""

    kind: str  # comment | label | assignees | change_title | …
    user: User
    at: datetime
    label: str = ""  # that was put on or taken off
    assignee: int = 0  # id of who was assigned or unassigned
    removed: bool = False

    @classmethod
    def read(cls, data: Json) -> Self:
        kind, label, assignee = str(data["type"]), data.get("label") or {}, data.get("assignee") or {}
        # Gitea writes body "1" when a label is put on, "" when it is taken off.
        gone = not data.get("body") if kind == "label" else bool(data.get("removed_assignee"))
        return cls(
            kind=kind,
            user=author(data.get("user")),
            at=moment(data["created_at"]),
            label=str(label.get("name") or ""),
            assignee=int(assignee.get("id") or 0),
            removed=gone,
        )
