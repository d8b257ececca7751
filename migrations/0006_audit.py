"""The audit: signed anchors of the event chains, and the one change that an event allows: its body becomes its hash.

The ledger's trigger lets an UPDATE pass only when all of this holds: the owner of the table does it (the runtime role
has no right to), in a transaction that has said `set local mosaic.redact = '<job>:<seq>'` for this very event, nothing
but the body changes, and the new body is the hash of the old one. The chain covers that hash, so it still verifies.
"""

from __future__ import annotations

from collections.abc import Callable

ANCHORS = """
create table audit_anchors (
    seq bigint primary key,                      -- from 1, without gaps
    at timestamptz not null,
    body text not null,                          -- what is signed: heads of the chains that grew, count of all events
    hash text not null,                          -- SHA-256 of the body; the next body holds it
    key text not null,                           -- the public key
    signature text not null,
    max_id bigint not null,                      -- of the events: the newest one seen
    low_xid xid8 not null,                          -- transactions below this one had ended
    high_xid xid8 not null                           -- this one and later ones had not begun
);
"""

EVENTS_GUARD = """
begin
    if tg_op = 'UPDATE'
        and current_setting('mosaic.redact', true) = old.job_id || ':' || old.seq
        and new.data = '{"redacted":"' || encode(sha256(convert_to(old.data, 'UTF8')), 'hex') || '"}'
        and old.data not like '{"redacted":"%'
        and row(new.id, new.xid, new.job_id, new.seq, new.kind, new.at, new.actor, new.step, new.prev, new.hash)
            is not distinct from
            row(old.id, old.xid, old.job_id, old.seq, old.kind, old.at, old.actor, old.step, old.prev, old.hash)
    then
        return new;
    end if;
    raise exception 'job_events is append-only' using errcode = '42501';
end """

ANCHORS_GUARD = """
begin
    raise exception 'audit_anchors is append-only' using errcode = '42501';
end """

FUNCTIONS = {"job_events_append_only": EVENTS_GUARD, "audit_anchors_append_only": ANCHORS_GUARD}
TRIGGERS = """
create trigger audit_anchors_no_change before update or delete on audit_anchors
    for each row execute function audit_anchors_append_only();
create trigger audit_anchors_no_truncate before truncate on audit_anchors
    for each statement execute function audit_anchors_append_only();
"""
# `mosaic blame`: from the first digits of a commit to who made it.
COMMITS = """
create index effects_pushed on effects ((result ->> 'sha') text_pattern_ops) where kind = 'push';
create index job_steps_commit on job_steps ((output ->> 'commit') text_pattern_ops) where name = 'runner.commit';
"""


def up(run: Callable[[str], object]) -> None:
    """`run` executes SQL in the migration's transaction, as the owner role."""
    run(ANCHORS)
    for name, source in FUNCTIONS.items():
        run(f"create or replace function {name}() returns trigger language plpgsql as $${source}$$")
    run(TRIGGERS)
    run(COMMITS)
