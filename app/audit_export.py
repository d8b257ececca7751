"""`mosaic audit export`: the envelope of every event with its chain fields, one JSON line each; and its verification.

A line can be verified without a database: its body is canonical JSON, so its hash follows from the line alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain as joined
from typing import Any

from app.audit_anchors import Anchored
from app.audit_chain import Chain, EventRow, by_job
from app.audit_invariants import Report
from app.ledger.chain import canonical
from app.queries import of_audit
from app.types import MosaicError

CHUNK = 1000  # jobs of one stream
FIELDS = ("job_id", "seq", "kind", "at", "actor", "step", "data", "prev", "hash")


def export(url: str, *, job: int | None = None, since: datetime | None = None) -> Iterator[bytes]:
    """Lines in the order of jobs, then of events; all of one moment."""
    with of_audit.snapshot(url) as connection:
        low, high = of_audit.span(connection) if job is None else (job, job)
        for start in range(low, high + 1, CHUNK):
            yield from map(_line, of_audit.events(connection, start, min(start + CHUNK, high + 1), since))


def _line(row: EventRow) -> bytes:
    job_id, seq, kind, at, actor, step, data, prev, digest = row
    body = data if b"\n" not in data else json.dumps(data.decode("utf-8", "replace")).encode()  # no body of ours
    head = f'{{"id":"{job_id}-{seq}","job_id":{job_id},"seq":{seq},"kind":{json.dumps(kind)},"at":{json.dumps(at)},'
    mid = f'"actor":{json.dumps(actor)},"step":{json.dumps(step)},"data":'
    return b"".join((head.encode(), mid.encode(), body, f',"prev":"{prev}","hash":"{digest}"}}\n'.encode()))


def verify_lines(lines: Iterable[str], anchored: Anchored, report: Report) -> tuple[int, set[int], list[str]]:
    """Check the chains of an export; how many events, of which jobs, and what it does not cover.

    The histories of jobs that are not in it, and what comes before the first event of a job in it, are not judged.
    """
    count, jobs, notes = 0, set[int](), list[str]()
    for job_id, rows in by_job(map(_row, enumerate(lines, 1))):
        first = next(rows)
        jobs.add(job_id)
        named = {seq: digest for seq, digest in anchored.heads.get(job_id, {}).items() if seq >= first[1]}
        chain = Chain(job_id, named, report)
        if first[1] > 1:
            chain.begin_at(first[1], first[7])
            notes.append(f"job {job_id} begins at event {first[1]}")
        for row in joined((first,), rows):
            count += 1
            data = chain.link(row)
            if row[2] == "audit.redacted" and data is not None:
                said = json.loads(data)
                if said["seq"] >= first[1]:
                    chain.confess(said["seq"], said["body_sha256"])
        chain.close(None)
    return count, jobs, notes


def _row(numbered: tuple[int, str]) -> EventRow:
    number, line = numbered
    try:
        said: dict[str, Any] = json.loads(line)
        values = [said[name] for name in FIELDS]
        values[6] = canonical(said["data"]).encode() if isinstance(said["data"], dict) else b"null"
        return tuple(values)
    except (ValueError, KeyError, TypeError):
        raise MosaicError(f"Line {number} is no exported event.", code="export_unreadable") from None
