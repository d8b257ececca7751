"""Which branch a job works on: one per issue, reused while its pull request is open, a new name after that."""

from __future__ import annotations

from dataclasses import dataclass

from app import queries
from app.clients.gitea import GiteaClient
from app.clients.gitea_types import Repository
from app.context import Context
from app.types import Job, MosaicError

_MOST = 50  # names tried for one issue


@dataclass(frozen=True, slots=True)
class Branch:
    name: str
    pull_request: int | None


def choose_branch(context: Context, forge: GiteaClient, repository: Repository, prefix: str) -> Branch:
    """The branch, and the open pull request on it if there is one.

    `mosaic/issue-42`, then `-2`, `-3` once the pull request before was merged or closed; `mosaic/job-7` without an
    issue; on one of Mosaic's own pull requests, its branch.
    """
    job = context.job
    if job.trigger.is_pull and job.number is not None:
        return _of_pull_request(job, forge, repository.full_name)
    stem = f"{prefix}issue-{job.number}" if job.number is not None else f"{prefix}job-{job.retry_of or job.id}"
    used = {one.branch: one.pull_request for one in reversed(_earlier(job)) if one.branch}
    for count in range(1, _MOST):
        name = stem if count == 1 else f"{stem}-{count}"
        number = used.get(name)
        if number is None or _open(forge, repository.full_name, number):
            return Branch(name, number)
    raise MosaicError(f"All names from {stem} to {stem}-{_MOST} are used.", code="conflict")


def _earlier(job: Job) -> tuple[Job, ...]:
    """Other jobs of the issue (or of the job that is retried), newest first."""
    if job.number is not None:
        found = queries.issue_jobs(job.repository_id, job.number, limit=1000)
        return tuple(one for one in found if one.id != job.id and one.number == job.number)
    before = queries.job(job.retry_of) if job.retry_of else None
    return (before,) if before else ()


def _of_pull_request(job: Job, forge: GiteaClient, repository: str) -> Branch:
    assert job.number is not None
    own = [
        one
        for one in queries.issue_jobs(job.repository_id, job.number)
        if one.pull_request == job.number and one.branch
    ]
    if not own or own[0].branch is None:
        raise MosaicError("This pull request is not one of Mosaic's.", code="wrong_place")
    if not _open(forge, repository, job.number):
        raise MosaicError("This pull request is closed.", code="wrong_place")
    return Branch(own[0].branch, job.number)


def _open(forge: GiteaClient, repository: str, number: int) -> bool:
    pull = forge.pull(repository, number)
    return pull is not None and pull.state == "open" and not pull.merged
