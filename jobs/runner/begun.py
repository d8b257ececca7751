"""Work that an earlier job began: whether it can be continued, and on which commit it stands."""

from __future__ import annotations

from app.clients.git import Git
from app.context import Context
from app.queries import SavedWork
from app.types import MosaicError

SHOWN_PATHS = 50


def continues(context: Context) -> SavedWork | None:
    """The saved work with which this job begins, if it does."""
    found = context.job.metadata.get("continues")
    return SavedWork(**{name: found[name] for name in SavedWork.__slots__}) if found else None


class Unusable(MosaicError):
    """The saved work cannot be continued; the text says why."""

    code = "saved_work_unusable"


def start_of(context: Context, git: Git, saved: SavedWork) -> str:
    """The commit on which the continued change stands: the one on which it was begun.

    Raises `Unusable` when the work is gone, or when the branch has moved on since: going on would undo what came.
    """
    job = context.job
    assert job.branch is not None and job.base_sha is not None
    if not git.exists(saved.sha) or not git.exists(saved.start):
        raise Unusable(f"What job {saved.job} had done is not on the machine any more that kept it.")
    head = git.remote_head(job.branch)
    if head == saved.start or (head is not None and git.exists(head) and git.tree(head) == git.tree(saved.sha)):
        return saved.start  # or the very files that are to be continued were pushed, under other words
    if head is not None:
        raise Unusable(f"The branch {job.branch} has moved on since job {saved.job} was stopped.")
    if not git.is_ancestor(saved.start, job.base_sha):
        raise Unusable(f"The work of job {saved.job} stands on a commit that is not on {job.default_branch} any more.")
    return saved.start


def changed_paths(git: Git, saved: SavedWork) -> list[str]:
    """The paths that the saved work changes, as far as they are shown to the agent."""
    return [change.path for change in git.changes(saved.start, saved.sha)][:SHOWN_PATHS]
