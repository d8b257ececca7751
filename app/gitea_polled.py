"""From what Gitea's API shows to the delivery that Gitea would have sent about it. Pure: no network, no database.

One rule: it goes through the receiver's own reader, so that what is found by looking becomes the same request under
the same key. Two things only a delivery can say are left out: the sender's rights, and who edited a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.clients.gitea_activity import Review
from app.clients.gitea_types import Comment, Issue, User
from app.commands import new_commands, parse
from app.gitea_events import Ignored, Known, Malformed, Request, interpret, interpret_review, text_hash
from app.strict_json import BadJson, parse_object

REVIEW = "pull_request_review"  # no event of Gitea's: what its reviews become here


@dataclass(frozen=True, slots=True)
class Place:
    """The repository in which something was found."""

    repository_id: int
    full_name: str


@dataclass(frozen=True, slots=True)
class Found:
    """A request that was found, with the delivery it stands for."""

    request: Request
    event: str
    delivery_id: str  # the same however often it is found
    body: bytes
    moment: datetime  # the forge's: what came first is taken first


def words_of(issue: Issue) -> str:
    """The text of an issue in which a request may stand, as the receiver reads it."""
    return clean(f"{issue.title}\n\n{issue.body}")


def clean(text: str) -> str:
    """A text as it is stored: NUL cannot be."""
    return text.replace("\0", "")


def comment_key(comment: Comment) -> str:
    return f"comment:{comment.id}:{text_hash(clean(comment.body))}"


def review_key(review: Review) -> str:
    return f"review:{review.id}:{text_hash(clean(review.body))}"


def opened_key(issue: Issue) -> str:
    return f"opened:{issue.id}"


def assigned_key(issue: Issue) -> str:
    return f"assigned:{issue.id}"


def labeled_key(issue: Issue, at: datetime) -> str:
    return f"labeled:{issue.id}:{stamp(at)}"


def asks(text: str, known: Known) -> bool:
    """Whether there is anything for Mosaic in a text."""
    return bool(text) and storable(text) and bool(parse(clean(text), known.self_login))


def asks_anew(text: str, before: str, known: Known) -> bool:
    """Whether an edit added something to what was asked before."""
    return bool(new_commands(clean(text), before, known.self_login))


def storable(text: str) -> bool:
    """Whether the receiver would read it: a lone surrogate is no text."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


# ---------------------------------------------------------------- as deliveries


def comment(place: Place, issue: Issue, said: Comment, known: Known, before: str | None = None) -> Found | None:
    """A comment as its delivery; `before` = the text in which it was a request already, and only what is new counts."""
    edited = before is not None
    payload = {
        "action": "edited" if edited else "created",
        "comment": {
            "id": said.id,
            "body": said.body,
            "user": _user(said.user),
            "html_url": said.html_url,
            "created_at": stamp(said.created_at),
            "updated_at": stamp(said.updated_at),
        },
        **({"changes": {"body": {"from": before}}} if edited else {}),
        **_around(place, issue, said.user),
        "is_pull": said.is_pull or issue.is_pull,
    }
    event = "pull_request_comment" if payload["is_pull"] else "issue_comment"
    return _read(event, payload, known, said.updated_at if edited else said.created_at)


def opened(place: Place, issue: Issue, known: Known) -> Found | None:
    return _read("issues", {"action": "opened", **_around(place, issue, issue.user)}, known, issue.created_at)


def assigned(place: Place, issue: Issue, by: User, at: datetime, known: Known) -> Found | None:
    payload = {"action": "assigned", **_around(place, issue, by, at)}
    return _read("issue_assign", payload, known, at)


def labeled(place: Place, issue: Issue, by: User, at: datetime, known: Known) -> Found | None:
    payload = {"action": "label_updated", **_around(place, issue, by, at)}
    return _read("issue_label", payload, known, at)


def review(place: Place, issue: Issue, given: Review, known: Known) -> Found | None:
    payload = {
        "action": "reviewed",
        "review": {
            "id": given.id,
            "body": given.body,
            "html_url": given.html_url,
            "submitted_at": stamp(given.submitted_at),
        },
        **_around(place, issue, given.user),
    }
    return _read(REVIEW, payload, known, given.submitted_at)


def stamp(at: datetime) -> str:
    """RFC 3339 as Gitea writes it: in its own zone, `Z` for UTC."""
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _read(event: str, payload: Mapping[str, Any], known: Known, moment: datetime) -> Found | None:
    """What the receiver makes of it; None when it asks for nothing or cannot be read."""
    body = json.dumps(payload).encode()
    try:
        data = parse_object(body)
        request = interpret_review(data, known) if event == REVIEW else interpret(event, data, known)
    except (BadJson, Malformed):
        return None
    if isinstance(request, Ignored):
        return None
    return Found(request, event, f"poll-{text_hash(request.dedup_key + '@' + stamp(moment))[:40]}", body, moment)


def _around(place: Place, issue: Issue, sender: User, at: datetime | None = None) -> dict[str, Any]:
    return {
        "issue": {
            "id": issue.id,
            "number": issue.number,
            "title": issue.title,
            "body": issue.body,
            "user": _user(issue.user),
            "html_url": issue.html_url,
            "labels": [{"id": label.id, "name": label.name} for label in issue.labels],
            "assignees": [_user(user) for user in issue.assignees],
            "pull_request": {} if not issue.is_pull else {"html_url": issue.html_url},
            "created_at": stamp(issue.created_at),
            "updated_at": stamp(at or issue.updated_at),
        },
        "repository": {"id": place.repository_id, "full_name": place.full_name},
        "sender": _user(sender),
    }


def _user(user: User) -> dict[str, Any]:
    return {"id": user.id, "login": user.login}
