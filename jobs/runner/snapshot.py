"""runner.snapshot: freeze what the agent will see, and list what it will not see and why."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from functools import cache
from typing import Any

from app import authority, queries
from app.clients.gitea_types import Comment
from app.context import Context
from app.gitea_events import text_hash
from app.guard_rails import allowed_actor
from app.ledger import jobs
from app.types import Done, Result
from jobs.runner.mirror import with_base

MAX_COMMENTS = 50
MAX_PEOPLE = 100  # of whom the forge is asked
_MAX_TEXT = 64 * 1024


def snapshot(context: Context) -> Result:
    """The issue as it was when the request was made, and the comments up to it by people who may ask themselves."""
    job, trigger = context.job, context.job.trigger
    body: dict[str, Any] = {
        "issue_title": trigger.issue_title,
        "issue_body": trigger.issue_body[:_MAX_TEXT],
        "issue_author": trigger.issue_author,
        "comments": [],
        "excluded": [],
        "hashes": {},
        "agents_md": _rules_text(context),
    }
    if job.number is not None:
        _issue(context, body)
        _comments(context, body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    jobs.store_snapshot(job.id, digest, body)
    return Done(output={"sha256": digest, "comments": len(body["comments"]), "excluded": len(body["excluded"])})


def _issue(context: Context, body: dict[str, Any]) -> None:
    job, trigger = context.job, context.job.trigger
    assert job.number is not None
    issue = context.forge.issue(job.repository, job.number)
    if issue is None:
        return
    if not trigger.issue_title:  # asked from the command line: the issue as it is now
        body.update(issue_title=issue.title, issue_body=issue.body[:_MAX_TEXT], issue_author=issue.user.login)
    elif (issue.title, issue.body) != (trigger.issue_title, trigger.issue_body):
        body["excluded"].append(
            {
                "what": "a later edit of the issue",
                "why": "it was changed after the request",
                "sha256": text_hash(issue.title + "\n\n" + issue.body),
            }
        )
    body["hashes"]["issue"] = text_hash(body["issue_title"] + "\n\n" + body["issue_body"])


def _comments(context: Context, body: dict[str, Any]) -> None:
    """Sort the comments into seen and excluded; nothing that came or changed after the request is seen."""
    job, trigger = context.job, context.job.trigger
    assert job.number is not None
    asked = _moment(trigger.at)
    may, self_id = _trusted(context), queries.self_id()
    last = job.metadata.get("until_comment")  # of a retry: what was written up to it counts
    if last is None and job.retry_of is None and trigger.kind == "comment":
        last = trigger.object_id
    for comment in context.forge.comments(job.repository, job.number):
        if trigger.kind == "comment" and comment.id == trigger.object_id:
            continue  # the request itself: the agent gets it as the task
        if comment.user.id == self_id:
            continue  # what Mosaic said may quote what a gate printed: it instructs nobody
        if comment.id == last:
            continue  # the command that repeats the job
        why = _why_not(comment, asked, last)
        if not why and len(body["comments"]) >= MAX_COMMENTS:
            why = f"more than {MAX_COMMENTS} comments"
        if not why and not may(comment.user.id, comment.user.login):
            why = "its author may not give Mosaic work"
        digest = text_hash(comment.body)
        body["hashes"][f"comment-{comment.id}"] = digest
        if why:
            body["excluded"].append(
                {"what": f"comment {comment.id} by {comment.user.login}", "why": why, "sha256": digest}
            )
        else:
            body["comments"].append(
                {"author": comment.user.login, "body": comment.body[:_MAX_TEXT], "at": comment.created_at.isoformat()}
            )


def _why_not(comment: Comment, asked: datetime | None, trigger_id: int | None) -> str:
    if (trigger_id is not None and comment.id > trigger_id) or (asked and comment.created_at > asked):
        return "it was written after the request"
    if asked and comment.updated_at > asked and comment.updated_at != comment.created_at:
        return "it was changed after the request"
    return ""


def _trusted(context: Context) -> Any:
    """Whether a commenter may ask for work: asked once per person, and of a crowd only about the first ones."""
    job, rules = context.job, context.rules

    asked: set[int] = set()

    @cache
    def may(user_id: int, login: str) -> bool:
        if user_id == job.requester_id:
            return True
        asked.add(user_id)
        if len(asked) > MAX_PEOPLE:
            return False
        known = authority.ask(context.clients, job.repository, user_id, login, None)
        return allowed_actor(rules.who, known.login, known.permission).allowed

    return may


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _rules_text(context: Context) -> str:
    """The repository's own instructions for agents, from the default branch."""
    job = context.job
    raw = with_base(context).read(job.base_sha or "", context.rules.agent.instructions, _MAX_TEXT)
    return raw.decode("utf-8", "replace") if raw else ""
