"""Anchors of the event chains: one row names the heads of all jobs that grew since the row before. Append-only.

The work is in proportion to the new events: rows commit out of the order of their ids, so the search begins where every
transaction had ended that an earlier anchor could not see, and leaves out what the last anchor has seen.
Restored rows have the numbers that app/restored.py gives them: 2 is an event that the last anchor before had not seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from app.ledger import chain
from app.models import db, execute, fetch_one

_ANCHOR = 0x6D6F616E  # advisory lock: one process at a time adds an anchor
Sign = Callable[[bytes], tuple[str, str]]  # body → (public key, signature), in hexadecimal

_GROWN = """
with last as (select seq, hash, max_id, low_xid, high_xid, body::jsonb ->> 'snapshot' as snapshot,
        (body::jsonb ->> 'events')::bigint as events from audit_anchors order by seq desc limit 1),
begin as (select coalesce((select a.max_id from audit_anchors a, last where a.high_xid <= last.low_xid
        order by a.seq desc limit 1), 0) as id),
grown as (select e.job_id, count(*) as n, max(e.id) as id from job_events e left join last on true
        where e.id > (select id from begin) and (last.seq is null or e.id > last.max_id
        or not pg_visible_in_snapshot(e.xid, last.snapshot::pg_snapshot)
        or (e.xid = '2' and last.high_xid = '3')) group by e.job_id)
select (select seq from last) as seq, (select hash from last) as hash, coalesce((select events from last), 0) as events,
    coalesce((select max_id from last), 0) as max_id, pg_current_snapshot()::text as snapshot,
    pg_snapshot_xmin(pg_current_snapshot())::text as low_xid, pg_snapshot_xmax(pg_current_snapshot())::text as high_xid,
    clock_timestamp() as at, coalesce(sum(g.n), 0)::bigint as more, coalesce(max(g.id), 0) as newest,
    jsonb_agg(jsonb_build_array(j.id, j.event_seq, j.event_hash) order by j.id) filter (where j.id is not null) as heads
from grown g left join runner_jobs j on j.id = g.job_id
"""


def add(sign: Sign, *, not_within: float = 0.0) -> dict[str, Any] | None:
    """Anchor what has grown; the new row, or None: nothing has, another process is at it, or the last one is too young.

    `not_within` = seconds that must have passed since the last anchor, on the database's clock.
    """
    with db.atomic():
        if not _elected() or _young(not_within):
            return None
        grown = fetch_one(_GROWN)
        if grown is None or not grown["heads"]:
            return None
        return _store(grown, sign)


def _elected() -> bool:
    row = fetch_one("select pg_try_advisory_xact_lock(%s) as ours", _ANCHOR)
    return bool(row and row["ours"])


def _young(seconds: float) -> bool:
    row = fetch_one(
        "select at > clock_timestamp() - %s * interval '1 second' as young from audit_anchors "
        "order by seq desc limit 1",
        seconds,
    )
    return bool(row and row["young"])


def _store(grown: dict[str, Any], sign: Sign) -> dict[str, Any]:
    seq = (grown["seq"] or 0) + 1
    body = chain.canonical(
        {
            "seq": seq,
            "at": chain.stamp(grown["at"]),
            "prev": grown["hash"] or "",
            "events": grown["events"] + grown["more"],
            "heads": grown["heads"],
            "max_id": max(grown["max_id"], grown["newest"]),
            "snapshot": grown["snapshot"],
        }
    )
    key, signature = sign(body.encode())
    row = {
        "seq": seq,
        "at": grown["at"],
        "body": body,
        "hash": hashlib.sha256(body.encode()).hexdigest(),
        "key": key,
        "signature": signature,
        "max_id": max(grown["max_id"], grown["newest"]),
        "low_xid": grown["low_xid"],
        "high_xid": grown["high_xid"],
    }
    names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
    execute(f"insert into audit_anchors ({names}) values ({marks})", *row.values())
    return row
