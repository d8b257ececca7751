"""runner.keep: what a job that is stopped half-way has done so far is kept, as a commit that stays on this machine.

It is nobody's result: whoever continues it goes through policy and gates like any other change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app import queries
from app.clients.git import Commit, Git
from app.context import Context
from app.types import Done, Permanent, Result
from app.voice import commit_message
from app.voice_pr import skips_ci
from jobs.runner.begun import continues
from jobs.runner.worktree import BOT, hidden_paths

log = logging.getLogger("mosaic.runner")


@dataclass(frozen=True, slots=True)
class _Found:
    """A commit that holds the work, and the commit on which it stands."""

    sha: str
    start: str


def keep(context: Context) -> Result:
    """Keep the newest work of the job as `refs/mosaic/wip/<job>`: of its worktrees, or else its newest commit."""
    job = context.job
    git = context.clients.git(job.repository_id)
    found = _newest(context, git) if (git.mirror / "HEAD").is_file() else None
    if found is None:
        return Done(output={"why": "nothing was changed"})
    sha = _quiet(context, git, found.sha)
    git.keep(sha, f"refs/mosaic/wip/{job.id}")
    files, added, removed = git.stat(found.start, sha)
    return Done(
        output={"kept": sha, "start": found.start, "files": files, "added": added, "removed": removed},
    )


def _newest(context: Context, git: Git) -> _Found | None:
    last = context.output_of("runner.commit")
    for place in _checkouts(context):
        if context.paths.worktree(context.job.id, place["fence"]).is_dir():
            made = _commit(context, git, place)
            if last and (made is None or made.tree == last["tree"]):
                break  # what lies in older worktrees is older than that commit
            if made is not None and git.changes(place["from"], made.sha):
                return _Found(made.sha, place["start"])  # not just what was checked out again after a loss
    if "commit" in last and git.exists(last["commit"]):
        return _Found(last["commit"], last["start"])
    return _begun(context, git)


def _begun(context: Context, git: Git) -> _Found | None:
    """A job that continued another and was stopped before it did anything: what it began with."""
    begun = continues(context)
    return _Found(begun.sha, begun.start) if begun and git.exists(begun.sha) else None


def _quiet(context: Context, git: Git, sha: str) -> str:
    """The commit, in words that start no CI: those of a round may start one, where the rules let it run the result."""
    if skips_ci(git.message(sha)):
        return sha
    return git.reword(sha, _words(context), BOT, BOT, context.job.created_at)


def _words(context: Context) -> str:
    """Nothing has judged it: if it is pushed, no CI is to run it."""
    noreply = f"noreply.{urlsplit(context.settings.gitea_url).hostname}"
    return commit_message(context.job, f"Work so far of job {context.job.id}", noreply=noreply)


def _checkouts(context: Context) -> Iterator[dict[str, Any]]:
    """What the checkouts of the job said, newest first."""
    done = [
        step
        for step in queries.steps(context.job.id)
        if step.name == "runner.checkout" and step.status == "completed" and "fence" in step.output
    ]
    for step in sorted(done, key=lambda step: int(step.output["fence"]), reverse=True):
        yield dict(step.output)


def _commit(context: Context, git: Git, place: dict[str, Any]) -> Commit | None:
    """The worktree as a commit. What git refuses to take (odd paths of a half-done change) is not kept."""
    job = context.job
    work: Path = context.paths.worktree(job.id, place["fence"])
    try:
        return git.commit(
            work,
            context.paths.index(job.id, place["fence"]),
            place["start"],
            _words(context),
            BOT,
            BOT,
            job.created_at,
            exclude=hidden_paths(context),
        )
    except Permanent as error:
        log.warning("the worktree of job %s cannot be kept: %s", job.id, error)
        return None
