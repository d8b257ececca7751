"""The server itself: its clock, its schema, its workers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from app.ledger.chain import redact
from app.ledger.workers import alive
from app.models import fetch, fetch_one


def now() -> datetime:
    """The database's clock, by which all moments are stored."""
    row = fetch_one("select clock_timestamp() as now")
    assert row is not None
    moment: datetime = row["now"]
    return moment


def applied_migrations() -> frozenset[str]:
    """Names of the migrations that this database has; empty before the first one."""
    row = fetch_one("select to_regclass('schema_migrations') is not null as there")
    if not row or not row["there"]:
        return frozenset()
    return frozenset(row["name"] for row in fetch("select name from schema_migrations"))


def workers_alive(pool: str) -> int:
    """Slots of the live workers of a pool."""
    row = fetch_one(
        "select coalesce(sum(slots), 0) as n from workers where pool = %s and ended_at is null and not draining", pool
    )
    return int(row["n"]) if row else 0


def live_workers() -> Mapping[str, int]:
    """Consumers of each pool that take work and hold their session lock right now, whether or not a sweep ran."""
    rows = fetch(
        f"select w.pool, count(*) as n from workers w where w.ended_at is null and not w.draining "
        f"and {alive('w.id')} group by w.pool"
    )
    return {row["pool"]: int(row["n"]) for row in rows}


def show(value: Any) -> Any:
    """A value as it may be shown: redacted by the secrets this process knows."""
    return redact(value)
