"""Hosts: several machines on one database. A job's files lie on one of them, and its file steps belong there."""

from __future__ import annotations

from collections.abc import Callable

HOSTS = """
alter table runner_jobs add column host text;    -- where its worktree and its commits lie; null = nowhere yet
alter table job_steps add column excused integer not null default 0; -- attempts before it that a loss of ours took
alter table workers add column signer text not null default ''; -- fingerprint of the key that signs what Mosaic writes
create index runner_jobs_host on runner_jobs (host) where finished_at is null;
create index workers_host on workers (host, pool, ended_at);
"""


def up(run: Callable[[str], object]) -> None:
    """`run` executes SQL in the migration's transaction, as the owner role."""
    run(HOSTS)
