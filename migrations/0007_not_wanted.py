"""Pushes and pull requests that a job planned and ended without: closed as given up, as its end does it from now on."""

from __future__ import annotations

from collections.abc import Callable

CLOSE = """
update effects e
set state = 'failed',
    code = case when e.state = 'planned' then 'not_wanted' else e.code end,
    error = case when e.state = 'planned' then 'The job was ' || j.status || ' before this was done.' else e.error end,
    failed_at = coalesce(e.failed_at, clock_timestamp()),
    failed_in = j.status,
    dropped_at = clock_timestamp(),
    fence = e.fence + 1,
    worker_id = null,
    lease_until = null,
    rung_at = null,
    settle_at = null
from runner_jobs j
where j.id = e.job_id and j.finished_at is not null and e.kind in ('push', 'pull_request') and e.state <> 'done'
    and e.dropped_at is null;
"""


def up(run: Callable[[str], object]) -> None:
    run(CLOSE)
