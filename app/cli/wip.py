"""Work that was kept of stopped jobs: `mosaic wip`, `mosaic wip push <job>`.

The push is not made here: it is asked for, and a herald makes it where the work lies, under its fence and on record.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

from app import queries, stitcher
from app.cli.base import Commands, add, count, job_of, opened, operator
from app.clients.git import Git
from app.ledger.chain import stamp
from app.neutral import plain
from app.paths import Paths
from app.queries import SavedWork
from app.settings import Settings
from app.types import Job, MosaicError

LOOK_SECONDS = 0.2


def add_to(commands: Commands[argparse.ArgumentParser]) -> None:
    kept = add(commands, "wip", cmd_wip)
    kept.add_argument("action", choices=("list", "push"), nargs="?", default="list")
    kept.add_argument("job", type=int, nargs="?", help="whose work to push, to the branch mosaic/wip/<job>")
    kept.add_argument("--limit", type=count, default=20, help="how many to list, from 1")
    kept.add_argument("--wait", type=count, default=120, metavar="SECONDS", help="how long to wait for a push, from 1")


def cmd_wip(arguments: argparse.Namespace) -> int:
    """List the work that was kept of stopped jobs, or have one pushed as a branch to look at."""
    with opened() as settings:
        if arguments.action == "push":
            if arguments.job is None:
                raise MosaicError("Name the job: mosaic wip push <job>.", code="nothing_asked")
            return _push(job_of(arguments.job), arguments.wait)
        for saved in queries.all_saved_work(arguments.limit):
            job = job_of(saved.job)
            there = "" if _is_here(settings, job, saved) else f"  (not here: {saved.host} kept it)"
            print(f"{saved.job:>6}  {saved.files:>4} files  +{saved.added} -{saved.removed}  {job.repository}{there}")
    return 0


def kept_of(job: Job) -> SavedWork:
    saved = queries.saved_work(job.id)
    if saved is None:
        raise MosaicError(
            f"Nothing of job {job.id} is kept. `mosaic retry {job.id}` starts it again from the branch.",
            code="nothing_kept",
        )
    return saved


def _is_here(settings: Settings, job: Job, saved: SavedWork) -> bool:
    git = Git(Paths(settings.data_dir).mirror(job.repository_id), None)
    return (git.mirror / "HEAD").is_file() and git.resolve(saved.ref) == saved.sha


def _push(job: Job, seconds: float) -> int:
    saved = kept_of(job)
    if not queries.host_alive(saved.host, "control"):
        raise MosaicError(
            f"The work of job {job.id} is kept on {saved.host}, where no Mosaic runs now. Start it, then ask again.",
            code="host_gone",
        )
    effect = stitcher.push_saved(job, saved, operator())
    return _outcome(effect, f"{job.repository}: branch {saved.branch} is at {saved.sha[:12]}", seconds)


def _outcome(effect_id: int, done: str, seconds: float) -> int:
    """Wait for what was asked for, and say how it goes; 1 when it takes longer than `seconds`."""
    shown, end = "", time.monotonic() + seconds
    while True:
        row = queries.effect_by_id(effect_id) or {}
        if row.get("state") == "done":
            print(done)
            return 0
        if row.get("state") == "failed":
            raise MosaicError(f"{plain(row['error'])} (effect {effect_id})", code=row["code"] or "failed")
        now = _progress(row)
        if now != shown:
            print(now, flush=True)
            shown = now
        if time.monotonic() >= end:
            print(f"It goes on by itself: `mosaic effects` shows effect {effect_id} until it is done.")
            return 1
        time.sleep(LOOK_SECONDS)


def _progress(row: Mapping[str, Any]) -> str:
    if row["worker_id"] is not None:
        return "under way"
    if row["error"]:
        return f"waits: {row['code']}: {plain(row['error'])} Next try {stamp(row['next_at'])}."
    forge = queries.breaker()
    if not forge.closed:
        return f"waits: Gitea is left alone since {stamp(forge.opened_at) if forge.opened_at else '?'} ({forge.code})"
    return f"asked for on {row['target']['host']}"
