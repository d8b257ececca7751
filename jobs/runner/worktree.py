"""runner.checkout, runner.commit, runner.cleanup: the worktree around the agent's work.

The git dir stays with Mosaic.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from app import authority, queries
from app.clients.git import Git
from app.context import Context
from app.prompts import summary
from app.rules import AGENT_FILES
from app.types import Done, Failed, Result
from app.voice import commit_message
from jobs.runner.begun import changed_paths, continues, start_of
from jobs.runner.mirror import with_base

BOT = ("Mosaic", "mosaic@noreply.invalid")


def checkout(context: Context) -> Result:
    """A fresh worktree at a path of its own, from the job's last commit, or saved work, or the branch, or the base."""
    job = context.job
    git = with_base(context)
    begun = continues(context)
    start = context.output_of("runner.checkout").get("start")
    if start is None:
        start = start_of(context, git, begun) if begun else _start(context, git)
        if start is None:
            return Failed("conflict", f"`{job.branch}` holds commits that are not Mosaic's.")
        git.keep(start, f"refs/mosaic/job-{job.id}/start")
    source = context.output_of("runner.commit").get("commit") or (begun.sha if begun else start)
    fence = context.row["fence"]
    path = context.paths.worktree(job.id, fence)
    _empty(path)
    context.paths.index(job.id, fence).parent.mkdir(parents=True, exist_ok=True)
    try:
        excluded = git.checkout(source, path, exclude=hidden_paths(context), index=context.paths.index(job.id, fence))
    except Exception:
        _remove(path)  # half of it would keep the space that the next try needs
        raise
    output = {"fence": fence, "start": start, "from": source, "excluded": list(excluded)[:50]}
    return Done(output={**output, "begun": changed_paths(git, begun)} if begun else output)


def hidden_paths(context: Context) -> tuple[str, ...]:
    """What the agent never sees: files that would instruct it, and what the rules exclude."""
    return (*AGENT_FILES, *context.rules.agent.exclude)


def _start(context: Context, git: Git) -> str | None:
    """Where the work starts: the branch's head when it is ours, the base when there is no branch; None = foreign."""
    job = context.job
    assert job.branch is not None and job.base_sha is not None
    head = git.remote_head(job.branch)
    if head is None:
        return job.base_sha
    if head not in queries.pushed_shas(job.repository_id, job.branch):
        return None
    git.fetch()
    return head


def commit(context: Context) -> Result:
    """Commit what the agent left in the worktree; its tree is what the gates judge and what is pushed, nothing else."""
    refusal = authority.still_allowed(context)
    if refusal:
        return refusal
    job, made = context.job, context.output_of("runner.checkout")
    git = context.clients.git(job.repository_id)
    before = context.output_of("runner.commit")
    agent = context.output_of("weaver.implement")
    login = job.trigger.actor
    noreply = f"noreply.{urlsplit(context.settings.gitea_url).hostname}"
    found = git.commit(
        context.paths.worktree(job.id, made["fence"]),
        context.paths.index(job.id, made["fence"]),
        made["start"],
        commit_message(
            job,
            context.clients.redactor.text(summary(agent.get("text", ""), job)),
            noreply=noreply,
            skip_ci=context.rules.bot.ci != "run",
        ),
        BOT,
        BOT,
        job.created_at,
        exclude=hidden_paths(context),
    )
    # What the agent wrote for agents would instruct it in the next round, with the weight of the system prompt.
    git.purge(context.paths.worktree(job.id, made["fence"]), context.paths.index(job.id, made["fence"]), AGENT_FILES)
    if found is None:
        return _nothing(before)
    if before.get("tree") == found.tree:
        return Done(output={**before, "unchanged": True, "author": login}, conclude="gates_failed")
    git.keep(found.sha, f"refs/mosaic/job-{job.id}/round-{context.step.round}")
    files, added, removed = git.stat(made["start"], found.sha)
    return Done(
        output={
            "commit": found.sha,
            "tree": found.tree,
            "start": made["start"],
            "files": files,
            "added": added,
            "removed": removed,
        },
        facts={"head_sha": found.sha},
    )


def _nothing(before: object) -> Result:
    """The worktree equals its start: nothing to do at first, a withdrawn change later."""
    return Done(output={"unchanged": True}, conclude="gates_failed" if before else "nothing_to_do")


def cleanup(context: Context) -> Result:
    """Remove the job's worktrees, indexes and checkouts on this machine."""
    removed = 0
    mine = re.compile(rf"{context.job.id}-[0-9].*")
    for folder in (
        context.paths.worktrees,
        context.paths.worktrees.parent / "indexes",
        context.paths.data / "checkouts",
    ):
        for path in folder.iterdir() if folder.is_dir() else ():
            if mine.fullmatch(path.name):
                _remove(path)
                removed += 1
    return Done(output={"removed": removed})


def _empty(path: Path) -> None:
    if path.exists():
        _remove(path)
    path.mkdir(parents=True, mode=0o700)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
