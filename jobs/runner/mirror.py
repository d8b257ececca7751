"""The mirror on this host. The job may have been admitted on another one, or have begun its work there."""

from __future__ import annotations

from app.clients.git import Git
from app.context import Context
from app.types import MosaicError


class BaseGone(MosaicError):
    """The commit from which the job starts is not on the forge any more; the text names it."""

    code = "base_gone"


def with_base(context: Context) -> Git:
    """The mirror, made and fetched when it lacks the commit from which the job starts."""
    job = context.job
    assert job.base_sha is not None
    git = context.clients.forge_git(job.repository_id, job.repository)
    git.ensure()
    if not git.exists(job.base_sha):
        git.fetch()
        if not git.exists(job.base_sha):
            raise BaseGone(f"{job.base_sha[:12]} is on no branch of {job.repository} any more.")
        git.keep(job.base_sha, f"refs/mosaic/job-{job.id}/base")
    return git
