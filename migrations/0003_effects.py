"""Effects: the forge's circuit breaker, dead letters, second looks after an unclear write, a job's wait for Gitea."""

from __future__ import annotations

from collections.abc import Callable

BREAKERS = """
create table circuit_breakers (
    service text primary key,                    -- 'forge'
    state text not null default 'closed' check (state in ('closed','open','half_open')),
    failures integer not null default 0,         -- in a row, by any worker of any host
    since timestamptz,                           -- the first of them
    code text not null default '',               -- why: unreachable, rate_limited, token_refused, ...
    detail text not null default '',
    opened_at timestamptz,
    closed_at timestamptz,
    probes integer not null default 0,           -- failed ones of this outage
    next_probe_at timestamptz,
    probe_until timestamptz,                     -- somebody asks; if nothing is heard until then, somebody else may
    fence bigint not null default 0
);
"""
EFFECTS = """
alter table effects
    add column code text not null default '',    -- why it waits or is dead, as one stable word
    add column waiting_since timestamptz,        -- its first failure since it last succeeded
    add column failed_at timestamptz,
    add column failed_in text,                   -- status of the job then: the next status tries once more
    add column dropped_at timestamptz,           -- an operator gave it up
    add column unsure boolean not null default false, -- a write of an earlier try may still arrive
    add column settle_at timestamptz,            -- then it is looked for copies that arrived late
    add column settled integer not null default 0;
create index effects_settle on effects (settle_at) where state = 'done' and settle_at is not null;
create index effects_dead on effects (id) where state = 'failed';
create index effects_outside on effects (external_id) where external_id is not null;
"""
JOBS = """
alter table runner_jobs add column forge_wait_since timestamptz; -- its clock stands still from then on
create index runner_jobs_forge_wait on runner_jobs (forge_wait_since) where forge_wait_since is not null;
"""


def up(run: Callable[[str], object]) -> None:
    """`run` executes SQL in the migration's transaction, as the owner role."""
    run(BREAKERS)
    run(EFFECTS)
    run(JOBS)
