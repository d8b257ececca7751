"""Control from the command line: continue stopped jobs, pause and resume."""

from __future__ import annotations

import argparse
import uuid
from datetime import UTC, datetime

from app import queries, stitcher, waiting
from app.cli.base import Commands, add, forge_of, job_of, opened, operator
from app.cli.wip import kept_of
from app.settings import Settings
from app.types import MosaicError


def add_to(commands: Commands[argparse.ArgumentParser]) -> None:
    going_on = add(commands, "continue", cmd_continue)
    going_on.add_argument("job", type=int)
    going_on.add_argument("instructions", nargs="*", help="added to the request")
    add(commands, "pause", cmd_pause).add_argument("repository", nargs="?", help="owner/name; without: everything")
    add(commands, "resume", cmd_resume).add_argument("repository", nargs="?", help="owner/name; without: everything")


def cmd_continue(arguments: argparse.Namespace) -> int:
    """Go on from the work that was kept of a stopped job."""
    with opened():
        job = job_of(arguments.job)
        if not job.status.terminal:
            raise MosaicError(f"Job {job.id} is still {job.status.value}.", code="not_finished")
        saved = kept_of(job)
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
