"""A job whose host is gone goes on at another one; what the old host made for it is not looked at any more."""

from __future__ import annotations

import logging
from typing import Any

from app import queries
from app.ledger import chain, steps
from app.ledger.chain import Entry
from app.pipeline import on_files
from app.queue import forget
from app.stitcher.advance import specs_of, start_over, step_forward
from app.stitcher.placing import best

log = logging.getLogger("mosaic.hosts")
LOST_SECONDS = 30.0  # a host without a consumer that a job needs has this long to come back
_PUBLISH = "herald.publish"


def stranded() -> list[int]:
    return queries.stranded_jobs(LOST_SECONDS)


def move(job_id: int) -> None:
    """Let a stranded job go on elsewhere: from its checkout, or with its last steps when they need no files."""
    with chain.entry(job_id) as job:
        if not queries.stranded_jobs(LOST_SECONDS, job_id):
            return
        old, closing = job["host"], job["reason"] is not None
        others = tuple(host for host in queries.live_hosts() if host.name != old)
        found = best(job, others, closing=closing)
        if found is None:
            return
        log.warning("host %s is gone: job %s goes on at %s", old, job_id, found.name)
        job.set(host=found.name)
        round = _start_again(job, closing)
        told: dict[str, Any] = {"round": round} if round else {}
        job.event("host.lost", host=old, to=found.name, **told)
        forget(old)
        step_forward(job)


def _start_again(job: Entry, closing: bool) -> int | None:
    """The steps that make and judge the commit run once more, with new fences; the round from which they count.

    It is no crash and no attempt; whatever earlier rounds had made is gone with the host, so the rounds begin anew.
    None: nothing is made again. A commit that was about to be published may be on the forge already: whether it is,
    herald.publish finds out.
    """
    waiting = steps.wait_again(job)
    if closing or _PUBLISH in waiting:
        return None
    rows = specs_of(job)
    return start_over(job, on_files(rows), rows, queries.steps(job.id))
