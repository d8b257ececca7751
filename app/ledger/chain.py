"""The append-only, hash-chained events of a job, and the lock under which a job is changed.

All changes to a job go through `entry(job_id)`: it locks the job's row, collects column changes and events, and writes
them together when the block ends. So events of one job never interleave and its `seq` has no gaps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from psycopg.types.json import Jsonb

from app.models import Answer, ask, db, fetch, fetch_one, send
from app.redact import Redactor
from app.types import LostLease

_redactor = Redactor(())


def use_redactor(redactor: Redactor) -> None:
    """Called once per process with the secrets it holds: nothing is stored before it went through this."""
    global _redactor
    _redactor = redactor


def redact(value: Any) -> Any:
    """A string or JSON value without the secrets this process knows, and without NUL (PostgreSQL stores none)."""
    return _storable(_redactor.value(value))


def _storable(value: Any) -> Any:
    """Without NUL and lone surrogates, which PostgreSQL refuses in text and JSON."""
    if isinstance(value, str):
        return value.replace("\x00", "").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return value


def canonical(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)


def stamp(at: datetime) -> str:
    """A moment as the chain and the envelope write it: UTC, microseconds, `Z`."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def link(prev: str, job_id: int, seq: int, kind: str, at: datetime, actor: str, step: str | None, data: str) -> str:
    """The hash of one event. The body enters by its own hash, so a body can be erased and the chain still verifies."""
    body = hashlib.sha256(data.encode()).hexdigest()
    fields = ("mosaic.event.v1", prev, str(job_id), str(seq), kind, stamp(at), actor, step or "", body)
    digest = hashlib.sha256()
    for field in fields:
        raw = field.encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return digest.hexdigest()


class Entry:
    """A locked job: its row as read, the changes and events to come.

    The lock is asked for with the first statement whose answer somebody looks at.
    """

    def __init__(self, job_id: int, found: Answer) -> None:
        self.id = job_id
        self._found = found
        self._changes: dict[str, Any] = {}
        self._events: list[tuple[str, str, str | None, str]] = []
        self._demands: list[tuple[Answer, str]] = []

    @property
    def _row(self) -> dict[str, Any]:
        if not self._found.rows:
            raise KeyError(f"there is no job {self.id}")
        return self._found.rows[0]

    @property
    def now(self) -> datetime:
        """The database's clock when the lock was taken."""
        moment: datetime = self._row["now"]
        return moment

    def __getitem__(self, column: str) -> Any:
        return self._changes[column] if column in self._changes else self._row[column]

    def set(self, **columns: Any) -> None:
        self._changes |= columns

    def demand(self, touched: Answer, otherwise: str) -> None:
        """The statement must have touched one row, or all of it is undone with LostLease."""
        self._demands.append((touched, otherwise))

    def check(self) -> None:
        """Whether all that was demanded is so."""
        while self._demands:
            touched, otherwise = self._demands.pop()
            if touched.count != 1:
                raise LostLease(otherwise)

    def event(self, kind: str, *, actor: str = "system:stitcher", step: str | None = None, **data: Any) -> None:
        self._events.append((kind, actor, step, canonical(redact(data))))

    @property
    def changed(self) -> bool:
        """Whether anything happened to the job in this block so far."""
        return bool(self._events or self._changes)

    def next_fence(self) -> int:
        """A number greater than every fence of this job so far."""
        self.set(fence=self["fence"] + 1)
        return int(self["fence"])

    def close(self) -> None:
        self.check()
        self._append_events()
        if not self._changes:
            return
        columns = sorted(self._changes)
        assignments = ", ".join(f"{column} = %s" for column in columns)
        send(
            f"update runner_jobs set {assignments} where id = %s",
            *(column_value(self._changes[column]) for column in columns),
            self.id,
        )
        self._row.update(self._changes)
        self._changes = {}

    def _append_events(self) -> None:
        if not self._events:
            return
        seq, prev, rows = self["event_seq"], self["event_hash"], []
        for kind, actor, step, data in self._events:
            seq += 1
            digest = link(prev, self.id, seq, kind, self.now, actor, step, data)
            rows.append((self.id, seq, kind, self.now, actor, step, data, prev, digest))
            prev = digest
        values = ", ".join(["(%s,%s,%s,%s,%s,%s,%s,%s,%s)"] * len(rows))
        send(
            f"insert into job_events (job_id, seq, kind, at, actor, step, data, prev, hash) values {values}",
            *(field for row in rows for field in row),
        )
        self._events.clear()
        self.set(event_seq=seq, event_hash=prev)


def column_value(value: Any) -> Any:
    return Jsonb(value) if isinstance(value, dict | list | tuple) else value


# In one query, the clock would be read before the lock is waited for: a lease counted from there may lapse at once.
_LOCK = "select j.*, clock_timestamp() as now from (select * from runner_jobs where id = {} for update) j"


@contextmanager
def entry(job_id: int) -> Iterator[Entry]:
    """Lock the job, let the block change it, write changes and events. Joins an open transaction."""
    with db.atomic():
        locked = Entry(job_id, ask(_LOCK.format("%s"), job_id))
        yield locked
        locked.close()


def lock_jobs(job_ids: Iterable[int]) -> None:
    """Lock several jobs for the open transaction, in the one order that everybody keeps, before any is changed.

    Changing a job marks rows of others (bells); who locks a second job only after that may wait for one who waits.
    """
    wanted = sorted(set(job_ids))
    if wanted:
        fetch("select id from runner_jobs where id = any(%s) order by id for update", wanted)


@contextmanager
def entry_of_step(step_id: int) -> Iterator[tuple[Entry, dict[str, Any]]]:
    """Lock the job that a step belongs to; the step's row as it is under that lock."""
    with db.atomic():
        job = ask(_LOCK.format("(select job_id from job_steps where id = %s)"), step_id)
        found = fetch_one("select * from job_steps where id = %s", step_id)
        if found is None:
            raise KeyError(f"there is no step {step_id}")
        locked = Entry(found["job_id"], job)
        yield locked, found
        locked.close()


@contextmanager
def transaction() -> Iterator[None]:
    """Several writes, one transaction; joins an open one."""
    with db.atomic():
        yield
