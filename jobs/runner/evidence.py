"""Is the request still there? The forge is asked again: a signed delivery may be old, replayed, or withdrawn."""

from __future__ import annotations

from app import queries
from app.clients.gitea import GiteaClient
from app.gitea_events import text_hash
from app.types import Trigger


def verify(forge: GiteaClient, repository: str, trigger: Trigger, self_id: int | None, *, again: bool = False) -> str:
    """ "" when the forge confirms the request; otherwise one sentence that says what does not fit.

    `again` = the job repeats one that was accepted before: its label is off by now, and the bot may be unassigned.
    """
    if trigger.actor_id == self_id:
        return "Mosaic does not take requests from itself."
    if trigger.kind == "comment":
        return _comment(forge, repository, trigger, self_id, again)
    if trigger.number is not None and trigger.kind in ("opened", "assigned", "labeled"):
        return _issue(forge, repository, trigger, self_id, again)
    return ""


def _comment(forge: GiteaClient, repository: str, trigger: Trigger, self_id: int | None, again: bool) -> str:
    comment = forge.comment(repository, trigger.object_id)
    if comment is None:
        return "The comment is gone, or it is a reply inside a review thread, which cannot be read again."
    if comment.user.id == self_id:
        return "Mosaic does not take requests from itself."
    if not again and comment.user.id != trigger.actor_id and comment.updated_at == comment.created_at:
        return "The comment is by somebody else than the delivery says, and nobody has edited it."
    if text_hash(comment.body.replace("\0", "")) != trigger.text_sha256:
        return "The comment was changed after the request; only the text as it was asked counts."
    return ""


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
