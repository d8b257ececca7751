"""From a Gitea delivery to what somebody asked of Mosaic. Pure: no network, no database.

Gitea repeats, reorders and multiplies its deliveries; what counts here is the meaning (`dedup_key`): the same
comment text, the same opened issue, the same assignment describe one request however often they arrive.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.commands import new_commands, parse
from app.types import Command, DidYouMean, Trigger, Verb

Payload = Mapping[str, Any]
MAX_ID = 2**63 - 1
MAX_NUMBER = 2**31 - 1  # of an issue
MAX_WORD = 64
_SIGNED = re.compile(r"^<!-- mosaic:[a-z]+:[a-z]+-[0-9]+:[0-9a-f]{16} -->[ \t\r]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing for Mosaic in this delivery. `frees` = the key of a request that may be made again after it."""

    reason: str
    frees: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """Something was asked: what, by whom, and the key under which it is asked once only."""

    trigger: Trigger
    commands: tuple[Command | DidYouMean, ...]
    dedup_key: str

    @property
    def job_key(self) -> str:
        """The key of the job: jobs are kept for ever, and the bot may be assigned again."""
        again = f":{self.trigger.at}" if self.trigger.kind == "assigned" else ""
        return f"gitea:{self.dedup_key}{again}"


@dataclass(frozen=True, slots=True)
class Known:
    """What the receiver knows without asking anyone."""

    self_id: int | None
    self_login: str
    trigger_label: str = "mosaic"


class Malformed(ValueError):
    """A field that Gitea always sends is missing or has another type."""


def interpret(event_type: str, payload: Payload, known: Known) -> Request | Ignored:
    """What a delivery asks for.

    `event_type` is X-Gitea-Event-Type, the fine one: X-Gitea-Event says `issue_comment` for comments on pull
    requests too.
    """
    if _is_self(_dict(payload, "sender"), known):
        return Ignored("own action")
    action = _action(payload)
    if event_type in ("issue_comment", "pull_request_comment") and "comment" in payload:
        return _comment(payload, action, known)
    if event_type == "issues" and action == "opened":
        return _opened(payload, known)
    if event_type == "issue_assign" and action in ("assigned", "unassigned"):
        return _assignment(payload, action, known)
    if event_type == "issue_label" and action == "label_updated":
        return _labeled(payload, known)
    return Ignored(f"nothing to do for {event_type} {action or ''}".strip())


def _action(payload: Payload) -> str | None:
    """Some deliveries have none, such as those of pushes."""
    return _word(payload, "action") if payload.get("action") is not None else None


def _is_self(user: Payload, known: Known) -> bool:
    if known.self_id is not None:
        return _int(user, "id") == known.self_id
    return _str(user, "login").lower() == known.self_login.lower()


def _comment(payload: Payload, action: str | None, known: Known) -> Request | Ignored:
    comment, issue = _dict(payload, "comment"), _dict(payload, "issue")
    if action not in ("created", "edited"):
        return Ignored(f"comment {action}")
    if _is_self(_dict(comment, "user"), known):
        return Ignored("own comment")  # a maintainer may edit the bot's text: still not a request
    body = _str(comment, "body")
    if by_a_mosaic(body):
        return Ignored("written by a Mosaic")
    commands = parse(body, known.self_login)
    if action == "edited":
        before = _changed_from(payload, "body")
        if before is None:
            return Ignored("edited without a change of text")
        commands = new_commands(body, before, known.self_login)
    if not commands:
        return Ignored("no command" if action == "created" else "no new command in the edit")
    moment = _word(comment, "created_at" if action == "created" else "updated_at")
    trigger = _trigger(
        payload,
        "comment",
        _int(comment, "id"),
        body,
        issue,
        is_pull=bool(payload.get("is_pull")),
        url=_str(comment, "html_url"),
        at=moment,
        permission=_permission(payload),
    )
    return Request(trigger, commands, f"comment:{_int(comment, 'id')}:{trigger.text_sha256}")


def interpret_review(payload: Payload, known: Known) -> Request | Ignored:
    """What the text of a submitted review asks for. Its webhook names no review: it is found by looking only."""
    review, issue = _dict(payload, "review"), _dict(payload, "issue")
    if _is_self(_dict(payload, "sender"), known):
        return Ignored("own action")
    body = _str(review, "body")
    if by_a_mosaic(body):
        return Ignored("written by a Mosaic")
    commands = parse(body, known.self_login)
    if not commands:
        return Ignored("no command")
    trigger = _trigger(
        payload,
        "review",
        _int(review, "id"),
        body,
        issue,
        is_pull=True,
        url=_str(review, "html_url"),
        at=_word(review, "submitted_at"),
    )
    return Request(trigger, commands, f"review:{_int(review, 'id')}:{trigger.text_sha256}")


def _opened(payload: Payload, known: Known) -> Request | Ignored:
    issue = _dict(payload, "issue")
    text = f"{_str(issue, 'title')}\n\n{_str(issue, 'body')}"
    if by_a_mosaic(text):
        return Ignored("written by a Mosaic")
    commands = parse(text, known.self_login)
    if not commands:
        return Ignored("no mention in the new issue")
    trigger = _trigger(
        payload,
        "opened",
        _int(issue, "id"),
        text,
        issue,
        url=_str(issue, "html_url"),
        at=_word(issue, "created_at"),
        permission=_permission(payload),
    )
    return Request(trigger, commands, f"opened:{_int(issue, 'id')}")


def _assignment(payload: Payload, action: str, known: Known) -> Request | Ignored:
    """The payload does not say who was assigned: only who is among the assignees now.

    So the bot's assignment is one request until it is seen to have ended, however many others are assigned meanwhile.
    """
    issue = _dict(payload, "issue")
    if issue.get("pull_request"):
        return Ignored("assignment of a pull request")
    key = f"assigned:{_int(issue, 'id')}"
    people = _dicts(issue, "assignees")
    if not any(_is_self(user, known) for user in people):
        return Ignored(f"somebody else was {action}", frees=key)
    if action == "unassigned":
        return Ignored("somebody else was unassigned")
    return _silent(payload, "assigned", issue, key, permission=_permission(payload))


def _labeled(payload: Payload, known: Known) -> Request | Ignored:
    """The payload does not say which label was put on: only which are there now."""
    issue = _dict(payload, "issue")
    if issue.get("pull_request"):
        return Ignored("label of a pull request")
    names = {_str(label, "name").lower() for label in _dicts(issue, "labels")}
    if known.trigger_label.lower() not in names:
        return Ignored("another label")
    # The payload states the rights of the issue's author, whoever put the label on.
    own = _int(_dict(payload, "sender"), "id") == _int(_dict(issue, "user"), "id")
    key = f"labeled:{_int(issue, 'id')}:{_word(issue, 'updated_at')}"  # two hooks describe one click with one moment
    return _silent(payload, "labeled", issue, key, permission=_permission(payload) if own else None)


def _silent(payload: Payload, kind: str, issue: Payload, key: str, *, permission: str | None) -> Request:
    """A request without words: the issue itself is the task."""
    text = f"{_str(issue, 'title')}\n\n{_str(issue, 'body')}"
    trigger = _trigger(
        payload,
        kind,
        _int(issue, "id"),
        text,
        issue,
        url=_str(issue, "html_url"),
        at=_word(issue, "updated_at"),
        permission=permission,
    )
    return Request(trigger, (Command(Verb.FIX),), key)


def _trigger(
    payload: Payload,
    kind: str,
    object_id: int,
    text: str,
    issue: Payload,
    *,
    url: str,
    at: str,
    is_pull: bool = False,
    permission: str | None = None,
) -> Trigger:
    repository, sender = _dict(payload, "repository"), _dict(payload, "sender")
    return Trigger(
        kind=kind,
        repository_id=_int(repository, "id"),
        repository=_str(repository, "full_name"),
        number=_int(issue, "number", most=MAX_NUMBER),
        is_pull=is_pull,
        object_id=object_id,
        actor_id=_int(sender, "id"),
        actor=_str(sender, "login"),
        text=text,
        text_sha256=text_hash(text),
        url=url,
        permission=permission,
        at=at,
        issue_title=_str(issue, "title"),
        issue_body=_str(issue, "body"),
        issue_author=_str(_dict(issue, "user"), "login"),
    )


def text_hash(text: str) -> str:
    """How a text is compared with what the forge says later."""
    return hashlib.sha256(text.encode()).hexdigest()


def by_a_mosaic(text: str) -> bool:
    """Whether a text is signed as a Mosaic's, this one's or another's: it never asks, or two would go on for ever.

    A person's quotation of it has `>` before each line.
    """
    return _SIGNED.search(text) is not None


def _permission(payload: Payload) -> str | None:
    """The rights that the payload states: the sender's own for opened issues, comments and assignments only."""
    stated = _dict(payload, "repository").get("permissions")
    if not isinstance(stated, dict):
        return None
    levels = (("admin", "admin"), ("push", "write"), ("pull", "read"))
    return next((level for key, level in levels if stated.get(key) is True), "none")


def _changed_from(payload: Payload, field: str) -> str | None:
    changes = payload.get("changes")
    change = changes.get(field) if isinstance(changes, dict) else None
    before = change.get("from") if isinstance(change, dict) else None
    return before if isinstance(before, str) else None


def _dict(data: Payload, key: str) -> Payload:
    value = data.get(key)
    if not isinstance(value, dict):
        raise Malformed(f"{key} is not an object")
    return value


def _dicts(data: Payload, key: str) -> list[Payload]:
    """A list of objects; Gitea writes null, not [], when there are none."""
    value = data.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Malformed(f"{key} is not a list of objects")
    return value


def _int(data: Payload, key: str, *, most: int = MAX_ID) -> int:
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Malformed(f"{key} is not a number")
    return value


def _str(data: Payload, key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise Malformed(f"{key} is not a text")
    return value


def _word(data: Payload, key: str) -> str:
    """A short text: a moment, an action. It may become part of a key, and PostgreSQL indexes no long ones."""
    value = _str(data, key)
    if len(value) > MAX_WORD:
        raise Malformed(f"{key} is too long")
    return value
