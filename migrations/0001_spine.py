"""The spine: jobs, steps, the append-only ledger, deliveries, effects, workers, gates, logs, and Huey's tables."""

from __future__ import annotations

from collections.abc import Callable

TABLES = """
create table repositories (
    id bigint primary key,                       -- Gitea's numeric id: names change, ids do not
    full_name text not null,
    default_branch text not null default '',
    trigger_label text not null default 'mosaic',
    private boolean not null default true,
    paused boolean not null default false,
    seen_at timestamptz not null default clock_timestamp()
);
create table users (
    id bigint primary key,
    login text not null,
    is_self boolean not null default false,      -- the bot's own account
    seen_at timestamptz not null default clock_timestamp()
);
create unique index users_one_self on users (is_self) where is_self;

create table workers (
    id bigserial primary key,                    -- also the key of its session advisory lock
    boot_id text not null unique,
    host text not null,
    pid integer not null,
    pool text not null,
    slots integer not null,
    version text not null,
    draining boolean not null default false,
    started_at timestamptz not null default clock_timestamp(),
    heartbeat_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz
);
create index workers_alive on workers (pool) where ended_at is null;

create table runner_jobs (
    id bigserial primary key,
    pipeline text not null,
    status text not null default 'pending'
        check (status in ('pending','queued','running','waiting','completed','failed','cancelled')),
    repository_id bigint not null,
    repository text not null,
    number integer,
    instructions text not null default '',
    requester text not null,
    requester_id bigint not null,
    trigger jsonb not null,
    trigger_key text not null unique,
    priority integer not null default 0,
    access text not null default 'write',
    reason text,
    detail text not null default '',
    retry_of bigint references runner_jobs,
    branch text,
    base_sha text,
    default_branch text,
    pull_request integer,
    head_sha text,
    rules jsonb,
    gates jsonb not null default '[]',
    authority jsonb,
    cancel_requested_at timestamptz,
    cancelled_by text,
    created_at timestamptz not null default clock_timestamp(),
    queued_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    deadline_at timestamptz,
    tokens bigint not null default 0,
    cost_usd double precision not null default 0,
    fence bigint not null default 0,             -- the last fence handed to any step of this job
    event_seq integer not null default 0,        -- head of the job's event chain
    event_hash text not null default '',
    metadata jsonb not null default '{}',
    check ((finished_at is not null) = (status in ('completed','failed','cancelled')))
);
create index runner_jobs_open on runner_jobs (repository_id, number) where finished_at is null;
create index runner_jobs_person on runner_jobs (requester_id, created_at);
create index runner_jobs_issue on runner_jobs (repository_id, number, id desc);
-- Two jobs never work on one branch at the same time, whatever the code above believes.
create unique index runner_jobs_branch on runner_jobs (repository_id, branch) where status = 'running' and reason is
null;

create table job_steps (
    id bigserial primary key,
    job_id bigint not null references runner_jobs,
    name text not null,
    round integer not null,
    attempt integer not null,
    status text not null default 'pending'
        check (status in ('pending','running','completed','failed','skipped','cancelled')),
    phase text not null,
    type text not null,
    pool text not null,
    ord integer not null,
    fence bigint not null default 0,
    crashes integer not null default 0,
    faults integer not null default 0,
    worker_id bigint references workers,
    lease_until timestamptz,
    run_after timestamptz,                       -- not before this moment (backing off)
    ready_at timestamptz,                        -- its turn has come: the doorbell may ring
    rung_at timestamptz,                         -- the doorbell rang last
    output jsonb not null default '{}',
    progress jsonb,
    reason text not null default '',
    detail text not null default '',
    host text not null default '',
    created_at timestamptz not null default clock_timestamp(),
    started_at timestamptz,
    finished_at timestamptz,
    unique (job_id, name, round, attempt),
    check ((status = 'running') = (worker_id is not null)),
    check ((worker_id is null) = (lease_until is null))
);
create index job_steps_ready on job_steps (pool, ready_at) where status = 'pending' and ready_at is not null;
create index job_steps_running on job_steps (worker_id) where status = 'running';

create table job_events (
    id bigserial primary key,
    xid xid8 not null default pg_current_xact_id(),
    job_id bigint not null references runner_jobs,
    seq integer not null,
    kind text not null,
    at timestamptz not null,
    actor text not null,
    step text,
    data text not null,
    prev text not null,
    hash text not null,
    unique (job_id, seq)
);

create table deliveries (
    id bigserial primary key,
    source text not null,
    delivery_id text not null,
    dedup_key text,
    event text not null default '',
    state text not null check (state in ('ignored','duplicate','job','command','answered','failed')),
    reason text not null default '',
    body bytea,
    trigger jsonb,
    commands jsonb,
    job_id bigint references runner_jobs,
    attempts integer not null default 0,
    run_after timestamptz,
    received_at timestamptz not null default clock_timestamp(),
    unique (source, delivery_id)
);
create unique index deliveries_meaning on deliveries (source, dedup_key) where dedup_key is not null;
create index deliveries_person on deliveries (((trigger ->> 'actor_id')::bigint), received_at)
    where state in ('command','answered');
create index deliveries_open on deliveries (id) where state = 'command';

create table effects (
    id bigserial primary key,
    key text not null unique,
    job_id bigint references runner_jobs,
    delivery_id bigint references deliveries,
    kind text not null,
    target jsonb not null,
    state text not null default 'planned' check (state in ('planned','done','failed')),
    external_id text,
    result jsonb not null default '{}',
    wanted integer not null default 1,           -- version asked for; a status comment is asked for again and again
    told integer not null default 0,             -- version written
    attempts integer not null default 0,
    next_at timestamptz not null default clock_timestamp(),
    rung_at timestamptz,
    worker_id bigint references workers,
    lease_until timestamptz,
    fence bigint not null default 0,
    error text not null default '',
    created_at timestamptz not null default clock_timestamp(),
    done_at timestamptz
);
create index effects_open on effects (next_at) where state = 'planned';
create index effects_job on effects (job_id);

create table quality_gates (
    id bigserial primary key,
    scope text not null default '*',             -- '*' or owner/name
    name text not null,
    type text not null,
    command text not null,
    expect text not null default '',
    min double precision,
    required boolean not null default true,
    ord integer not null default 10,
    timeout integer not null default 900,
    report text not null default '',
    enabled boolean not null default true,
    unique (scope, name)
);
create table gate_results (
    id bigserial primary key,
    job_id bigint not null references runner_jobs,
    step_id bigint not null unique references job_steps,
    round integer not null,
    name text not null,
    type text not null,
    command text not null,
    required boolean not null,
    passed boolean not null,
    exit_code integer,
    seconds double precision not null,
    why text not null,
    output text not null,
    counts jsonb not null default '{}',
    coverage double precision,
    tree_sha text not null,
    timed_out boolean not null default false,
    created_at timestamptz not null default clock_timestamp()
);
create index gate_results_job on gate_results (job_id, round);

create table context_snapshots (
    id bigserial primary key,
    job_id bigint not null unique references runner_jobs,
    sha256 text not null,
    body jsonb not null,
    created_at timestamptz not null default clock_timestamp()
);
create table step_logs (
    id bigserial primary key,
    step_id bigint not null references job_steps,
    at timestamptz not null default clock_timestamp(),
    text text not null
);
create index step_logs_step on step_logs (step_id, id);

create table huey_kv (queue text not null, key text not null, value bytea not null, primary key (queue, key));
create table huey_schedule (id bigserial primary key, queue text not null, data bytea not null,
    timestamp double precision not null);
create index huey_schedule_queue_timestamp on huey_schedule (queue, timestamp);
create table huey_task (id bigserial primary key, queue text not null, data bytea not null,
    priority double precision not null default 0.0);
create index huey_task_queue_priority_id on huey_task (queue, priority desc, id);
create table huey_counter (queue text not null, key text not null, value bigint not null default 0,
    primary key (queue, key));
"""

# The ledger refuses change from everyone, the owner included (only a superuser who switches triggers off gets past,
# and then the hash chain tells).
APPEND_ONLY = """
create function job_events_append_only() returns trigger language plpgsql as $$
begin
    raise exception 'job_events is append-only' using errcode = '42501';
end $$;
create trigger job_events_no_change before update or delete on job_events
    for each row execute function job_events_append_only();
create trigger job_events_no_truncate before truncate on job_events
    for each statement execute function job_events_append_only();
"""


def up(run: Callable[[str], object]) -> None:
    """`run` executes SQL in the migration's transaction, as the owner role."""
    run(TABLES)
    run(APPEND_ONLY)
