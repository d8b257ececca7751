"""Effects: every write to the outside is planned first, claimed under a lease, recorded when it is found done.

What fails for now waits; what is refused for good, or fails for too long, is dead until somebody replays it.
"""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Jsonb

from app.ledger import chain
from app.ledger.breaker import CLOSED, MAX_OUTAGE_HOURS, RECOVERING
from app.ledger.workers import alive
from app.models import execute, fetch, fetch_one
from app.types import LostLease

LEASE_SECONDS = 30
SETTLE_PAUSES = (5.0, 60.0, 600.0)  # seconds until each look for copies that arrived after an unclear write
SETTLES = ("comment.status", "comment.closing", "comment.reply", "pull_request")  # of these there could be copies
CARRIED = ("push", "pull_request")  # done by the step herald.publish, never on the side
_AT_ONCE = 200  # bells of one sweep …
_BACKLOG = 20  # … and right after an outage, so that the forge is not flooded

# Nobody holds the effect: no lease, a lapsed one, or one of a worker whose session lock is gone.
FREE = f"(lease_until is null or lease_until < clock_timestamp() or not {alive('effects.worker_id')})"


def plan(
    key: str, kind: str, target: dict[str, Any], *, job_id: int | None = None, delivery_id: int | None = None
) -> int:
    """Plan an effect in the open transaction; its id. The same key again asks for a new version of the same thing."""
    row = fetch_one(
        "insert into effects (key, kind, target, job_id, delivery_id) values (%s,%s,%s,%s,%s) "
        "on conflict (key) do update set wanted = effects.wanted + 1, target = excluded.target, "
        "state = 'planned', error = '', code = '', attempts = 0, waiting_since = null, failed_at = null, "
        "failed_in = null, dropped_at = null returning id",
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


def plan_ringing(
    key: str, kind: str, target: dict[str, Any], queue: str, *, job_id: int | None, delivery_id: int | None
) -> tuple[str, tuple[Any, ...]]:
    """For `queue.ring_for`: as `plan_once`, heard before other bells when it is new."""
    return (
        "rung as (insert into effects (key, kind, target, job_id, delivery_id) values (%s,%s,%s,%s,%s) "
        "on conflict (key) do nothing returning %s::text as queue, 'herald.deliver' as task, id as number, "
        "1 as priority)",
        (key, kind, Jsonb(chain.redact(target)), job_id, delivery_id, queue),
    )


def touch(key: str, queue: str, *, at_once: bool = False, status: str | None = None) -> tuple[str, tuple[Any, ...]]:
    """For `queue.ring_for`: ask for a new version of an effect, if it exists; ring when it is due and nobody knows yet.

    `at_once` does not wait for the quiet time after the version before. One that was refused is asked for once more
    in each new status of its job (`status`, else what its row says).
    """
    soon = "case when %s and error = '' then least(next_at, clock_timestamp()) else next_at end"
    return (
        f"old as (select id, state, {soon} as soon, {soon} <= clock_timestamp() and rung_at is null "
        f"and lease_until is null and {CLOSED} as due from effects where key = %s and (state <> 'failed' or "
        "(dropped_at is null and failed_in is distinct from coalesce(%s::text, (select status from runner_jobs j "
        "where j.id = effects.job_id)))) for update), "
        "touched as (update effects set wanted = wanted + 1, state = 'planned', next_at = old.soon, "
        "attempts = case when old.state = 'failed' then 0 else attempts end, "
        "waiting_since = case when old.state = 'failed' then null else waiting_since end, "
        "rung_at = case when old.due then clock_timestamp() else rung_at end "
        "from old where effects.id = old.id returning effects.id, old.due), "
        "rung as (select %s::text as queue, 'herald.deliver' as task, id as number, 0 as priority "
        "from touched where due)",
        (at_once, at_once, key, status, queue),
    )


def claim(effect_id: int, worker_id: int) -> dict[str, Any] | None:
    """Take an effect that is due and free while the forge may be asked: its row with a new fence.

    State `planned`: to be carried out; `done`: to be looked for copies. One that was taken from a lost owner is
    `unsure`: what that owner sent may still arrive.
    """
    return fetch_one(
        "with old as (select id, worker_id is not null as lost from effects where id = %s and "
        "((state = 'planned' and next_at <= clock_timestamp()) or "
        f"(state = 'done' and settle_at <= clock_timestamp())) and {FREE} and {CLOSED} for update) "
        "update effects set worker_id = %s, fence = fence + 1, attempts = attempts + 1, unsure = unsure or old.lost, "
        f"lease_until = clock_timestamp() + interval '{LEASE_SECONDS} seconds' from old where effects.id = old.id "
        "returning effects.*",
        effect_id,
        worker_id,
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


def adopt(effect: dict[str, Any], external_id: str) -> None:
    """Say before the write whose thing this is from now on; LostLease when the effect is not ours any more."""
    if not execute(
        "update effects set external_id = %s where id = %s and fence = %s and lease_until > clock_timestamp()",
        external_id,
        effect["id"],
        effect["fence"],
    ):
        raise LostLease(f"effect {effect['key']} is no longer ours")


def done(
    effect: dict[str, Any], external_id: str, result: dict[str, Any] | None = None, *, quiet_seconds: float = 0.0
) -> bool:
    """Record a version as written; False when another owner has it by now. A newer wish keeps it planned.

    After an unclear write the first look for copies is due in SETTLE_PAUSES[0] seconds.
    """
    return (
        execute(
            "update effects set external_id = %s, result = result || %s, told = %s, worker_id = null, "
            "lease_until = null, attempts = 0, error = '', code = '', waiting_since = null, failed_at = null, "
            "failed_in = null, rung_at = null, done_at = clock_timestamp(), "
            "settle_at = case when unsure and kind = any(%s) then clock_timestamp() + %s * interval '1 second' "
            "else settle_at end, settled = case when unsure then 0 else settled end, unsure = false, "
            "next_at = clock_timestamp() + %s * interval '1 second', "
            "state = case when wanted > %s then 'planned' else 'done' end where id = %s and fence = %s",
            external_id,
            Jsonb(chain.redact(result or {})),
            effect["wanted"],
            list(SETTLES),
            SETTLE_PAUSES[0],
            quiet_seconds,
            effect["wanted"],
            effect["id"],
            effect["fence"],
        )
        == 1
    )


def settled(effect: dict[str, Any], external_id: str | None, *, error: str = "", code: str = "") -> None:
    """One look for copies is over; `external_id` = the one that is left. The next look comes later.

    `error` = why the look came to nothing; what it looked after is told all the same.
    """
    execute(
        "update effects set external_id = coalesce(%s, external_id), settled = settled + 1, attempts = 0, "
        "error = case when state = 'done' then %s else '' end, code = case when state = 'done' then %s else '' end, "
        "waiting_since = null, settle_at = clock_timestamp() + (%s::float8[])[settled + 2] "
        "* interval '1 second', worker_id = null, lease_until = null, rung_at = null where id = %s and fence = %s",
        external_id,
        chain.redact(error),
        code,
        list(SETTLE_PAUSES),
        effect["id"],
        effect["fence"],
    )


def doubt(effect: dict[str, Any]) -> None:
    """After a write by a lost owner: whatever was told up to now, the status comment is to be written once more."""
    execute(
        "update effects set wanted = wanted + 1, state = 'planned', rung_at = null, "
        "result = result || jsonb_build_object('doubt', wanted + 1) where id = %s and kind = 'comment.status'",
        effect["id"],
    )


def postpone(effect: dict[str, Any], seconds: float, error: str, code: str, *, unsure: bool = False) -> None:
    """The outside world failed: the same effect again after `seconds`. `unsure` = the write may have happened.

    One that was recorded as done although the answer to that was lost, and has no copies to look for, stays as it is.
    """
    execute(
        "update effects set worker_id = null, lease_until = null, rung_at = null, error = %s, code = %s, "
        "unsure = unsure or %s, "
        "waiting_since = case when state = 'planned' then coalesce(waiting_since, clock_timestamp()) end, "
        "settle_at = case when state = 'done' then clock_timestamp() + %s * interval '1 second' else settle_at end, "
        "next_at = clock_timestamp() + %s * interval '1 second' where id = %s and fence = %s "
        "and (state <> 'done' or kind = any(%s))",
        chain.redact(error),
        code,
        unsure,
        seconds,
        seconds,
        effect["id"],
        effect["fence"],
        list(SETTLES),
    )


def give_back(effect: dict[str, Any], seconds: float) -> None:
    """It was not even tried: again after `seconds`, and this was no attempt."""
    execute(
        "update effects set worker_id = null, lease_until = null, rung_at = null, attempts = attempts - 1, "
        "next_at = clock_timestamp() + %s * interval '1 second' where id = %s and fence = %s",
        seconds,
        effect["id"],
        effect["fence"],
    )


def pass_on(effect: dict[str, Any]) -> None:
    """It can be carried out on another host alone, where a bell rings for it now: this was no attempt."""
    execute(
        "update effects set worker_id = null, lease_until = null, rung_at = clock_timestamp(), "
        "attempts = attempts - 1 where id = %s and fence = %s",
        effect["id"],
        effect["fence"],
    )


def overdue(effect: dict[str, Any]) -> bool:
    """Whether it has failed for as long as anything may wait for the forge."""
    return (
        fetch_one(
            "select 1 as yes from effects where id = %s "
            f"and waiting_since < clock_timestamp() - interval '{MAX_OUTAGE_HOURS} hours'",
            effect["id"],
        )
        is not None
    )


def fail(effect: dict[str, Any], error: str, code: str) -> bool:
    """The outside world refused for good: a dead letter, kept for the operator, recorded in its job's ledger.

    What herald.publish carries is part of that step, whose own result tells it. False when it is not ours any more.
    """
    if effect["job_id"] is None:
        return _die(effect, error, code)
    with chain.entry(effect["job_id"]) as job:
        died = _die(effect, error, code)
        if died and effect["kind"] not in CARRIED:
            note(job, "notification.failed", "system:herald", effect, code=code, detail=chain.redact(error)[:500])
    return died


def _die(effect: dict[str, Any], error: str, code: str) -> bool:
    return (
        execute(
            "update effects set state = 'failed', worker_id = null, "
            "lease_until = null, rung_at = null, error = %s, code = %s, failed_at = clock_timestamp(), "
            "failed_in = (select status from runner_jobs j where j.id = effects.job_id), settle_at = null "
            "where id = %s and fence = %s",
            chain.redact(error),
            code,
            effect["id"],
            effect["fence"],
        )
        == 1
    )


def note(job: chain.Entry, kind: str, actor: str, effect: dict[str, Any], **data: Any) -> None:
    """Record in the ledger of a locked job what became of one of its effects."""
    job.event(kind, actor=actor, effect=effect["id"], key=effect["key"], what=effect["kind"], **data)


def due() -> list[int]:
    """Effects to carry out or to look at again that are due, free, and not rung for within five seconds, oldest first.

    Marks them as rung. None while the forge is away; a few at a time right after that.
    """
    return [
        row["id"]
        for row in fetch(
            "update effects set rung_at = clock_timestamp() where id in (select id from effects where "
            "((state = 'planned' and next_at <= clock_timestamp() and not kind = any(%s)) "
            "or (state = 'done' and settle_at <= clock_timestamp())) and (rung_at is null or "
            f"rung_at < clock_timestamp() - interval '5 seconds') and {FREE} and {CLOSED} order by id "
            f"limit case when {RECOVERING} then %s else %s end for update skip locked) returning id",
            list(CARRIED),
            _BACKLOG,
            _AT_ONCE,
        )
    ]
