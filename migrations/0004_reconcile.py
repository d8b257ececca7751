"""Looking for mentions whose webhook never came: how far each repository was read, and who looks."""

from __future__ import annotations

from collections.abc import Callable

CURSORS = """
create table reconcile_cursors (
    repository_id bigint not null,               -- 0 = the forge itself: its list of repositories, the notifications
    source text not null check (source in ('repositories','notifications','comments','issues')),
    read_to timestamptz not null,                -- the forge's time of the newest change that was looked at
    not_before timestamptz not null,             -- the forge's time when we first saw it; what is older is left alone
    looked_at timestamptz,                       -- our time: whose turn it is next
    failures integer not null default 0,
    retry_at timestamptz,                        -- our time: refused before, not to be asked again until then
    error text not null default '',
    primary key (repository_id, source)
);
create table reconciler (
    one boolean primary key default true check (one),
    worker_id bigint,                            -- who looks, while the lease lasts
    lease_until timestamptz,
    began_at timestamptz,                        -- of the round that is going on, or of the last one
    completed_at timestamptz,                    -- when a whole round ended last
    retry_at timestamptz,                        -- the forge is away, or asked us to wait
    failures integer not null default 0,
    error text not null default ''
);
"""
# How a request reached us first: told by a webhook, or found by looking ("poll"); "confirmed" = found, told afterwards.
VIA = """
alter table deliveries add column via text not null default 'webhook' check (via in ('webhook','poll','confirmed'));
create index deliveries_polled on deliveries (received_at) where via <> 'webhook';
create index deliveries_object on deliveries ((trigger ->> 'object_id')) where trigger is not null;
create index runner_jobs_object on runner_jobs ((trigger ->> 'object_id'));
"""


def up(run: Callable[[str], object]) -> None:
    """`run` executes SQL in the migration's transaction, as the owner role."""
    run(CURSORS)
    run(VIA)
