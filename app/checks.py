"""What must hold for Mosaic to work, each looked at on its own: shared by `/readyz` and `mosaic doctor`.

One rule: a check says what it found and, unless all is well, one thing to do; it never shows a secret.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from app import disk as room
from app import queries, schema
from app.clients.openclaw import ready as engine_answers
from app.queries import of_operations
from app.settings import Settings
from app.settings_values import is_loopback
from app.types import Pool

OK, WARN, FAIL = "ok", "warn", "fail"
LOW_DISK, LEAST_DISK = room.LOW, room.LEAST  # bytes free: below the first warn, below the second fail
LONG_TRANSACTION = 300.0  # seconds


@dataclass(frozen=True, slots=True)
class Check:
    """`state` is ok, warn or fail; only fail means that Mosaic does not work."""

    name: str
    state: str
    said: str
    next: str = ""


def migrations() -> Check:
    applied = queries.applied_migrations()
    missing = [name for name in schema.names() if name not in applied]
    if missing:
        return Check("migrations", FAIL, f"Not applied: {', '.join(missing)}.", "Run `mosaic migrate`.")
    return Check("migrations", OK, f"{len(schema.names())} applied.")


def writable() -> Check:
    if of_operations.writable():
        return Check("database", OK, "It answers and takes changes.")
    return Check("database", FAIL, "It answers and takes no changes.", "Point MOSAIC_DATABASE_URL at the primary.")


def consumers() -> Iterator[Check]:
    """One for each pool: is there a live process that takes work, anywhere?"""
    alive = queries.live_workers()
    for pool in (pool.value for pool in Pool):
        if alive.get(pool):
            yield Check(pool, OK, f"{alive[pool]} live.")
        else:
            yield Check(
                pool,
                FAIL,
                f"No live {pool} consumer.",
                "Start Mosaic (`systemctl start mosaic`); if it runs, read its log.",
            )


def engine(settings: Settings) -> Check:
    """Whether the gateway answers. Where no model is configured, and the gateway would be here, none is expected."""
    if engine_answers(settings.openclaw_url):
        return Check("engine", OK, "The gateway is ready.")
    local = is_loopback(urlsplit(settings.openclaw_url).hostname or "")
    if local and not (settings.model_base_url or settings.model_id):
        action = "Set MOSAIC_MODEL_BASE_URL and MOSAIC_MODEL_ID, or MOSAIC_OPENCLAW_URL."
        return Check("engine", WARN, "No model is configured here, so no gateway runs here.", action)
    action = (
        "It needs 20 s after a start; then look for `engine` in Mosaic's log."
        if local
        else "Start the gateway on its machine."
    )
    return Check("engine", FAIL, f"The gateway at {settings.openclaw_url} is not ready.", action)


def disk(data_dir: Path) -> Check:
    """Space where the data directory is: worktrees, mirrors and, if Mosaic runs it, the database."""
    if not os.access(data_dir, os.W_OK | os.X_OK):
        return Check("disk", FAIL, f"{data_dir} cannot be written.", "Let Mosaic's account own the data directory.")
    free = room.free(data_dir)
    said = f"{free / 1024**3:.1f} GiB free in {data_dir}."
    if free >= LOW_DISK:
        return Check("disk", OK, said)
    action = "Make room: `mosaic gc` says what it can free; MOSAIC_KEEP_DAYS sets how long things are kept."
    if free < LEAST_DISK:
        return Check("disk", FAIL, f"{said} Jobs wait for space (`disk_full`) and go on by themselves.", action)
    return Check("disk", WARN, said, action)


def transactions() -> Check:
    age = of_operations.transactions()
    if age < LONG_TRANSACTION:
        return Check("transactions", OK, f"The oldest is {age:.0f} s old.")
    action = "Find it in pg_stat_activity and end its session: it keeps dead rows alive."
    return Check("transactions", WARN, f"The oldest is open for {age / 60:.0f} minutes.", action)
