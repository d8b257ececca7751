"""Scenario: somebody with every right changes the ledger. Each way of it is seen by `audit verify`.

Each trial has a copy of the database to itself; a copy that nobody touched must be clean.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from app.audit import violations
from app.ledger.chain import link
from app.postgres import SUPERUSER, Cluster
from tests.proof.tally import Tally

Admin = psycopg.Connection[Any]
COPY = "mosaic_tampered"


def tampering(data: Path) -> Tally:
    """`data`: the data directory of a Mosaic that is stopped."""
    tally, began = Tally("audit tampering"), time.monotonic()
    with Cluster(data).opened() as cluster:
        untouched = {str(one) for one in _try(cluster, nothing, data)}
        tally.audit += sorted(untouched)
        for name, act in ACTS.items():
            found = [text for text in map(str, _try(cluster, act, data)) if text not in untouched]
            tally.expect(bool(found), f"{name}: not detected")
            tally.notes.append(f"{name}: {found[0] if found else 'not detected'}"[:160])
    tally.seconds = time.monotonic() - began
    return tally


def _try(cluster: Cluster, act: Callable[[Admin], None], data: Path) -> list[Any]:
    """What the audit finds in a copy in which `act` was done."""
    with psycopg.connect(cluster.url(SUPERUSER, "postgres"), autocommit=True) as admin:
        admin.execute(f"drop database if exists {COPY} with (force)")
        admin.execute(f"create database {COPY} template mosaic")
    try:
        with psycopg.connect(cluster.url(SUPERUSER, COPY)) as copy:
            act(copy)
        return violations(cluster.url(SUPERUSER, COPY), data_dir=data)
    finally:
        with psycopg.connect(cluster.url(SUPERUSER, "postgres"), autocommit=True) as admin:
            admin.execute(f"drop database if exists {COPY} with (force)")


def _job(copy: Admin) -> int:
    """A job in the middle that has many events."""
    row = copy.execute("select job_id from job_events group by 1 having count(*) > 10 order by 1 limit 1").fetchone()
    assert row
    return int(row[0])


def _unguarded(copy: Admin) -> None:
    """What a superuser can do: triggers do not fire in this session."""
    copy.execute("set session_replication_role = replica")


def nothing(_: Admin) -> None:
    """Left as it is."""


def edit(copy: Admin) -> None:
    _unguarded(copy)
    copy.execute("update job_events set actor = 'gitea:mallory' where job_id = %s and seq = 5", (_job(copy),))


def middle_delete(copy: Admin) -> None:
    _unguarded(copy)
    copy.execute("delete from job_events where job_id = %s and seq = 6", (_job(copy),))


def tail_delete(copy: Admin) -> None:
    """The last three events, and the head on the job made to fit."""
    _unguarded(copy)
    job = _job(copy)
    copy.execute(
        "delete from job_events where job_id = %s and seq > (select max(seq) - 3 from job_events where job_id = %s)",
        (job, job),
    )
    _fit_head(copy, job)


def _fit_head(copy: Admin, job: int) -> None:
    copy.execute(
        "update runner_jobs j set event_seq = e.seq, event_hash = e.hash from job_events e where j.id = %s "
        "and e.job_id = j.id and e.seq = (select max(seq) from job_events where job_id = j.id)",
        (job,),
    )


def rewrite(copy: Admin) -> None:
    """Somebody else asked for the job: in its first event, in its row, and every hash and the head made to fit."""
    _unguarded(copy)
    job, prev = _job(copy), ""
    rows = copy.execute(
        "select id, seq, kind, at, actor, step, data from job_events where job_id = %s order by seq", (job,)
    ).fetchall()
    for number, seq, kind, at, actor, step, data in rows:
        forged = "gitea:mallory" if seq == 1 else actor
        digest = link(prev, job, seq, kind, at, forged, step, data)
        copy.execute(
            "update job_events set actor = %s, prev = %s, hash = %s where id = %s", (forged, prev, digest, number)
        )
        prev = digest
    copy.execute("update runner_jobs set requester = 'gitea:mallory' where id = %s", (job,))
    _fit_head(copy, job)


def drop_trigger(copy: Admin) -> None:
    copy.execute("drop trigger job_events_no_change on job_events")


def disarm_trigger(copy: Admin) -> None:
    """The trigger stays; the function behind it does nothing any more."""
    copy.execute(
        "create or replace function job_events_append_only() returns trigger language plpgsql as "
        "$$ begin return coalesce(new, old); end $$"
    )


def forget_anchors(copy: Admin) -> None:
    """A rewrite that takes the anchors in the database along: the witness outside still knows."""
    rewrite(copy)
    copy.execute("delete from audit_anchors")


def whole_job(copy: Admin) -> None:
    """A job disappears with everything that belongs to it."""
    _unguarded(copy)
    job = _job(copy)
    copy.execute("delete from job_events where job_id = %s", (job,))
    copy.execute("delete from runner_jobs where id = %s", (job,))


ACTS: dict[str, Callable[[Admin], None]] = {
    "edit": edit,
    "middle delete": middle_delete,
    "tail delete": tail_delete,
    "rewrite": rewrite,
    "rewrite without anchors": forget_anchors,
    "whole job": whole_job,
    "drop trigger": drop_trigger,
    "disarm trigger": disarm_trigger,
}
