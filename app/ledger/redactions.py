"""Erase the body of one event. The chain covers its hash, which stays; who did it and why becomes an event itself.

The runtime role has no right to do this: the models have to be bound to the owner of the tables.
"""

from __future__ import annotations

import hashlib

from app.audit_chain import erased, tombstone
from app.ledger.chain import entry
from app.models import execute, fetch_one
from app.types import MosaicError


def erase(job_id: int, seq: int, actor: str, why: str) -> str:
    """Replace a body by its hash; the hash. MosaicError when there is no such event or nothing left to erase."""
    with entry(job_id) as job:
        row = fetch_one("select kind, data from job_events where job_id = %s and seq = %s", job_id, seq)
        if row is None:
            raise MosaicError(f"Job {job_id} has no event {seq}. `mosaic show {job_id}` lists them.", code="not_found")
        if row["kind"] == "audit.redacted":
            raise MosaicError("This event says who erased what; it stays.", code="not_erasable")
        if erased(row["data"].encode()):
            raise MosaicError(f"The body of event {seq} of job {job_id} is erased already.", code="not_erasable")
        digest = hashlib.sha256(row["data"].encode()).hexdigest()
        execute("select set_config('mosaic.redact', %s, true)", f"{job_id}:{seq}")
        execute("update job_events set data = %s where job_id = %s and seq = %s", tombstone(digest), job_id, seq)
        job.event("audit.redacted", actor=actor, seq=seq, body_sha256=digest, why=why)
    return digest
