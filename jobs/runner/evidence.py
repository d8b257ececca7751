"""Is the request still there? The forge is asked again: a signed delivery may be old, replayed, or withdrawn."""

from __future__ import annotations

from app import queries
from app.clients.gitea import GiteaClient
from app.clients.gitea_types import Comment, Issue
from app.gitea_events import text_hash
from app.types import Trigger

_NOBODY = "Gitea does not tell who wrote this text."


def verify(
    forge: GiteaClient,
    repository: str,
    trigger: Trigger,
    self_id: int | None,
    *,
    again: bool = False,
    polled: bool = False,
) -> str:
    """ "" when the forge confirms the request; otherwise one sentence that says what does not fit.

    `again` = the job repeats one that was accepted before: its label is off by now, and the bot may be unassigned.
    `polled` = it was found by looking, and no delivery tells who wrote the text: one that was edited is nobody's.
    """
    if trigger.actor_id == self_id:
        return "Mosaic does not take requests from itself."
    if polled and not again and (edited := _edited(forge, repository, trigger)):
        return edited
    if trigger.kind == "comment":
        return _comment(forge, repository, trigger, self_id, again)
    if trigger.kind == "review":
        return _review(forge, repository, trigger)
    if trigger.number is not None and trigger.kind in ("opened", "assigned", "labeled"):
        return _issue(forge, repository, trigger, self_id, again)
    return ""


def _comment(forge: GiteaClient, repository: str, trigger: Trigger, self_id: int | None, again: bool) -> str:
    comment = _read(forge, repository, trigger)
    if comment is None:
        return "The comment is gone."
    if comment.user.id == self_id:
        return "Mosaic does not take requests from itself."
    if not again and comment.user.id != trigger.actor_id and comment.updated_at == comment.created_at:
        return "The comment is by somebody else than the delivery says, and nobody has edited it."
    if text_hash(comment.body.replace("\0", "")) != trigger.text_sha256:
        return "The comment was changed after the request; only the text as it was asked counts."
    return ""


def _read(forge: GiteaClient, repository: str, trigger: Trigger) -> Comment | None:
    """The comment as it is now. Those inside a review's threads are in the lists of the reviews only."""
    comment = forge.comment(repository, trigger.object_id)
    if comment is None and trigger.is_pull and trigger.number is not None:
        return forge.review_line(repository, trigger.number, trigger.object_id)
    return comment


def _review(forge: GiteaClient, repository: str, trigger: Trigger) -> str:
    review = forge.review(repository, trigger.number or 0, trigger.object_id)
    if review is None:
        return "The review is gone."
    if review.user.id != trigger.actor_id:
        return "The review is by somebody else."
    if text_hash(review.body.replace("\0", "")) != trigger.text_sha256:
        return "The review was changed after the request; only the text as it was asked counts."
    return ""


def _edited(forge: GiteaClient, repository: str, trigger: Trigger) -> str:
    """Why nobody can tell who wrote a text that was found by looking: Gitea does not say who edited one."""
    if trigger.kind == "comment":
        comment = _read(forge, repository, trigger)
        if comment is not None and comment.updated_at != comment.created_at:
            return f"The comment was edited, and its webhook never came: {_NOBODY}"
    if trigger.kind == "opened" and trigger.number is not None:
        issue = forge.issue(repository, trigger.number)
        if issue is not None and _text_changed(forge, repository, issue):
            return f"The issue was edited, or may have been, and its webhook never came: {_NOBODY}"
    return ""


def _text_changed(forge: GiteaClient, repository: str, issue: Issue) -> bool:
    """Whether an issue may say something else than it did at first; a Gitea that does not count edits cannot tell."""
    if issue.updated_at == issue.created_at:
        return False
    if issue.text_edits is None or issue.text_edits > 0:
        return True
    lines = forge.lists.timeline(repository, issue.number, issue.created_at).items
    return any(line.kind == "change_title" for line in lines)


def _issue(forge: GiteaClient, repository: str, trigger: Trigger, self_id: int | None, again: bool) -> str:
    assert trigger.number is not None
    issue = forge.issue(repository, trigger.number)
    if issue is None:
        return "The issue is gone."
    if trigger.kind == "assigned" and not again and self_id not in {user.id for user in issue.assignees}:
        return "The bot is not assigned to the issue any more."
    if trigger.kind == "labeled" and not again:
        label = queries.trigger_label(trigger.repository_id).lower()
        if label not in {one.name.lower() for one in issue.labels}:
            return "The label is gone from the issue."
    if trigger.kind == "opened" and not again and issue.user.id != trigger.actor_id:
        return "The issue is by somebody else than the delivery says."
    if (
        trigger.kind == "opened"
        and text_hash(f"{issue.title}\n\n{issue.body}".replace("\0", "")) != trigger.text_sha256
    ):
        return "The issue was changed after the request; only the text as it was asked counts."
    return ""
