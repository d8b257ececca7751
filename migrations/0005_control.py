"""Control: who paused what and when, whose turn it was, and indexes for the limits that count requests over time."""

from __future__ import annotations

from collections.abc import Callable

PAUSES = """
create table pauses (
    id bigserial primary key,
    repository_id bigint,                        -- null = everything that this Mosaic does
    repository text not null default '',         -- its name then, for display
    actor text not null,
    at timestamptz not null default clock_timestamp(),
    ended_by text,
    ended_at timestamptz,
    check ((ended_at is null) = (ended_by is null))
);
-- One open pause of a repository, and one of everything; the ended ones stay as the record.
create unique index pauses_open on pauses (coalesce(repository_id, -1)) where ended_at is null;
"""
TURNS = """
create table turns (
    scope text not null,                         -- queue:<repository>, <pool>:person, <pool>:repository
    who bigint not null,                         -- id of the person or the repository
    at timestamptz not null,                     -- when a slot was given to them last
    primary key (scope, who)
);
"""
COUNTED = """
create index runner_jobs_recent on runner_jobs (repository_id, created_at);
create index runner_jobs_queued on runner_jobs (repository_id) where status = 'queued';
"""


def up(run: Callable[[str], object]) -> None:
    """`run` executes SQL in the migration's transaction, as the owner role."""
    run(PAUSES)
    run(TURNS)
    run(COUNTED)
