"""Control from the command line: continue stopped jobs, look at the work that was kept, pause and resume."""

from __future__ import annotations

import argparse
import uuid
from datetime import UTC, datetime

from app import queries, stitcher, waiting
from app.cli.base import Commands, add, count, forge_of, job_of, opened, operator
from app.clients.git import Credential, Git
from app.paths import Paths
from app.queries import SavedWork
from app.settings import Settings
from app.types import Job, MosaicError


def add_to(commands: Commands[argparse.ArgumentParser]) -> None:
    going_on = add(commands, "continue", cmd_continue)
    going_on.add_argument("job", type=int)
    going_on.add_argument("instructions", nargs="*", help="added to the request")
    add(commands, "pause", cmd_pause).add_argument("repository", nargs="?", help="owner/name; without: everything")
    add(commands, "resume", cmd_resume).add_argument("repository", nargs="?", help="owner/name; without: everything")
    kept = add(commands, "wip", cmd_wip)
    kept.add_argument("action", choices=("list", "push"), nargs="?", default="list")
    kept.add_argument("job", type=int, nargs="?", help="whose work to push, to the branch mosaic/wip/<job>")
    kept.add_argument("--limit", type=count, default=20, help="how many to list, from 1")


def cmd_continue(arguments: argparse.Namespace) -> int:
    """Go on from the work that was kept of a stopped job."""
    with opened():
        job = job_of(arguments.job)
        if not job.status.terminal:
            raise MosaicError(f"Job {job.id} is still {job.status.value}.", code="not_finished")
        saved = _saved(job)
        if not queries.host_alive(saved.host):
            raise MosaicError(
                f"The work of job {job.id} is kept on {saved.host}, and no Mosaic runs there now. "
                f"`mosaic retry {job.id}` starts it again from the branch.",
                code="host_gone",
            )
        # The request stays the first person's: the operator only lets it go on.
        new = stitcher.retry(
            job,
            actor=operator(),
            actor_id=job.requester_id,
            login=job.trigger.actor,
            key=uuid.uuid4().hex,
            permission=job.trigger.permission,
            at=datetime.now(UTC).isoformat(),
            saved=saved,
            added=" ".join(arguments.instructions),
        )
        print(f"Job {new} goes on from what job {job.id} had done ({saved.files} files changed).")
    return 0


def _saved(job: Job) -> SavedWork:
    saved = queries.saved_work(job.id)
    if saved is None:
        raise MosaicError(
            f"Nothing of job {job.id} is kept. `mosaic retry {job.id}` starts it again from the branch.",
            code="nothing_kept",
        )
    return saved


def cmd_pause(arguments: argparse.Namespace) -> int:
    """Let no new job start, in one repository or anywhere; what runs goes on."""
    with opened() as settings:
        home, name = _place(settings, arguments.repository)
        changed = stitcher.pause(home, name, operator())
        print(f"{name or 'Everything'} is paused{'' if changed else ' already'}: requests are taken and wait.")
    return 0


def cmd_resume(arguments: argparse.Namespace) -> int:
    """Let jobs start again, in one repository or everywhere."""
    with opened() as settings:
        home, name = _place(settings, arguments.repository)
        changed = stitcher.resume(home, operator())
        print(f"{name or 'Everything'} {'goes on' if changed else 'was not paused'}.")
        for pause in queries.open_pauses():
            why = waiting.paused(pause["actor"], pause["at"], None).sentence
            print(f"Still paused: {pause['repository'] or 'everything'}. {why}")
    return 0


def _place(settings: Settings, name: str | None) -> tuple[int | None, str]:
    """(Gitea's id, name today) of a repository; (None, "") for everything."""
    if name is None:
        return None, ""
    known = queries.repository_named(name)
    if known is None:
        found = forge_of(settings).repository(name)
        known = (found.id, found.full_name) if found else None
    if known is None:
        raise MosaicError(f"{name} is not visible to the bot.", code="not_found")
    return known


def cmd_wip(arguments: argparse.Namespace) -> int:
    """List the work that was kept of stopped jobs, or push one as a branch to look at."""
    with opened() as settings:
        if arguments.action == "push":
            if arguments.job is None:
                raise MosaicError("Name the job: mosaic wip push <job>.", code="nothing_asked")
            return _push(settings, job_of(arguments.job))
        for saved in queries.all_saved_work(arguments.limit):
            job = job_of(saved.job)
            there = "" if _is_here(_mirror(settings, job), saved) else f"  (not here: {saved.host} kept it)"
            print(f"{saved.job:>6}  {saved.files:>4} files  +{saved.added} -{saved.removed}  {job.repository}{there}")
    return 0


def _push(settings: Settings, job: Job) -> int:
    saved, branch = _saved(job), f"mosaic/wip/{job.id}"
    git = _mirror(settings, job)
    if not _is_here(git, saved):
        raise MosaicError(
            f"The work of job {job.id} is not in this data directory: {saved.host} kept it.", code="not_here"
        )
    if git.remote_head(branch) != saved.sha and git.push(saved.sha, branch, None) == "conflict":
        raise MosaicError(f"There is another branch {branch} on the forge: delete it first.", code="conflict")
    print(f"{job.repository}: branch {branch} is at {saved.sha[:12]}")
    return 0


def _is_here(git: Git, saved: SavedWork) -> bool:
    return (git.mirror / "HEAD").is_file() and git.resolve(saved.ref) == saved.sha


def _mirror(settings: Settings, job: Job) -> Git:
    path = Paths(settings.data_dir).mirror(job.repository_id)
    if not (settings.gitea_url and settings.gitea_token):
        return Git(path, None)
    bundle = str(settings.ca_bundle) if settings.ca_bundle else None
    url = f"{settings.gitea_url.rstrip('/')}/{job.repository}.git"
    token = settings.gitea_push_token or settings.gitea_token
    return Git(path, url, Credential("mosaic", token), ca_bundle=bundle)
