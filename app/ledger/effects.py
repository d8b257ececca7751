"""Effects: every write to the outside is planned first, claimed under a lease, recorded when it is found done."""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Jsonb

from app.ledger import chain
from app.ledger.workers import alive
from app.models import execute, fetch, fetch_one
from app.types import LostLease

LEASE_SECONDS = 30

# Nobody holds the effect: no lease, a lapsed one, or one of a worker whose session lock is gone.
_FREE = f"(lease_until is null or lease_until < clock_timestamp() or not {alive('effects.worker_id')})"


def plan(
    key: str, kind: str, target: dict[str, Any], *, job_id: int | None = None, delivery_id: int | None = None
) -> int:
    """Plan an effect in the open transaction; its id. The same key again asks for a new version of the same thing."""
    row = fetch_one(
        "insert into effects (key, kind, target, job_id, delivery_id) values (%s,%s,%s,%s,%s) "
        "on conflict (key) do update set wanted = effects.wanted + 1, target = excluded.target, "
        "state = 'planned', error = '' returning id",
        key,
        kind,
        Jsonb(chain.redact(target)),
        job_id,
        delivery_id,
    )
    assert row is not None
    return int(row["id"])


def plan_once(
    key: str, kind: str, target: dict[str, Any], *, job_id: int | None = None, delivery_id: int | None = None
) -> int | None:
    """Plan an effect that has one version only; None when it is already planned or done."""
    row = fetch_one(
        "insert into effects (key, kind, target, job_id, delivery_id) values (%s,%s,%s,%s,%s) "
        "on conflict (key) do nothing returning id",
        key,
        kind,
        Jsonb(chain.redact(target)),
        job_id,
        delivery_id,
    )
    return int(row["id"]) if row else None


def touch(key: str, *, at_once: bool = False) -> tuple[int, bool] | None:
    """Ask for a new version of an effect that exists: (id, whether it is due and nobody has been told yet).

    `at_once` does not wait for the quiet time after the version before.
    """
    if at_once:
        execute("update effects set next_at = least(next_at, clock_timestamp()) where key = %s and error = ''", key)
    row = fetch_one(
        "with old as (select id, next_at <= clock_timestamp() and rung_at is null and lease_until is null as due "
        "from effects where key = %s and state <> 'failed' for update) "
        "update effects set wanted = wanted + 1, state = 'planned', "
        "rung_at = case when old.due then clock_timestamp() else rung_at end "
        "from old where effects.id = old.id returning effects.id, old.due",
        key,
    )
    return (int(row["id"]), bool(row["due"])) if row else None


def claim(effect_id: int, worker_id: int) -> dict[str, Any] | None:
    """Take a planned effect that is due and free: its row with a new fence."""
    return fetch_one(
        "update effects set worker_id = %s, fence = fence + 1, attempts = attempts + 1, "
        f"lease_until = clock_timestamp() + interval '{LEASE_SECONDS} seconds' "
        f"where id = %s and state = 'planned' and next_at <= clock_timestamp() and {_FREE} returning *",
        worker_id,
        effect_id,
    )


def check(effect: dict[str, Any]) -> None:
    """The fence check right before the write: renews the lease, or raises LostLease."""
    if not execute(
        f"update effects set lease_until = clock_timestamp() + interval '{LEASE_SECONDS} seconds' "
        "where id = %s and fence = %s and lease_until > clock_timestamp()",
        effect["id"],
        effect["fence"],
    ):
        raise LostLease(f"effect {effect['key']} is no longer ours")


def done(
    effect: dict[str, Any], external_id: str, result: dict[str, Any] | None = None, *, quiet_seconds: float = 0.0
) -> bool:
    """Record a version as written; False when another owner has it by now. A newer wish keeps it planned."""
    return (
        execute(
            "update effects set external_id = %s, result = result || %s, told = %s, worker_id = null, "
            "lease_until = null, "
            "attempts = 0, error = '', rung_at = null, done_at = clock_timestamp(), next_at = clock_timestamp() "
            "+ %s * interval '1 second', "
            "state = case when wanted > %s then 'planned' else 'done' end where id = %s and fence = %s",
            external_id,
            Jsonb(chain.redact(result or {})),
            effect["wanted"],
            quiet_seconds,
            effect["wanted"],
            effect["id"],
            effect["fence"],
        )
        == 1
    )


def doubt(effect: dict[str, Any]) -> None:
    """After a write by a lost owner: whatever was told up to now, the status comment is to be written once more."""
    execute(
        "update effects set wanted = wanted + 1, state = 'planned', rung_at = null, "
        "result = result || jsonb_build_object('doubt', wanted + 1) where id = %s and kind = 'comment.status'",
        effect["id"],
    )


def postpone(effect: dict[str, Any], seconds: float, error: str) -> None:
    """The outside world failed: the same effect again after `seconds`."""
    execute(
        "update effects set worker_id = null, lease_until = null, rung_at = null, error = %s, "
        "next_at = clock_timestamp() + %s * interval '1 second' where id = %s and fence = %s",
        chain.redact(error),
        seconds,
        effect["id"],
        effect["fence"],
    )


def fail(effect: dict[str, Any], error: str) -> None:
    """The outside world refused for good: kept for the operator, not tried again."""
    execute(
        "update effects set state = 'failed', worker_id = null, lease_until = null, error = %s "
        "where id = %s and fence = %s",
        chain.redact(error),
        effect["id"],
        effect["fence"],
    )


def due() -> list[int]:
    """Planned effects that are due, free, and not rung for within five seconds; marks them as rung."""
    return [
        row["id"]
        for row in fetch(
            "update effects set rung_at = clock_timestamp() where id in (select id from effects where state = "
            "'planned' "
            "and next_at <= clock_timestamp() and kind not in ('push', 'pull_request') and (rung_at is null or "
            "rung_at < clock_timestamp() - interval '5 seconds') "
            f"and {_FREE} order by next_at limit 200 for update skip locked) returning id"
        )
    ]
