"""Deliveries: what came in, once each, by id and by meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from app.ledger import chain
from app.ledger.breaker import MAX_OUTAGE_HOURS
from app.models import execute, fetch, fetch_one, send
from app.types import Command, DidYouMean, Trigger


def receive(
    source: str,
    delivery_id: str,
    *,
    dedup_key: str | None,
    event: str,
    state: str,
    reason: str = "",
    body: bytes | None = None,
    trigger: Trigger | None = None,
    commands: Sequence[Command | DidYouMean] = (),
    via: str = "webhook",
) -> int | None:
    """Store a delivery in the open transaction: its id, or None when it is known by id or by meaning.

    `via` says how it reached us first: told by a webhook, or found by looking (poll).
    """
    row = fetch_one(
        "insert into deliveries (source, delivery_id, dedup_key, event, state, reason, body, trigger, commands, via) "
        "values (%s,%s,%s,%s,%s,%s,%s,%s,%s,%s) on conflict do nothing returning id",
        source,
        delivery_id,
        dedup_key,
        event,
        state,
        reason,
        body,
        Jsonb(chain.redact(asdict(trigger))) if trigger else None,
        Jsonb([_command(command) for command in commands]) if commands else None,
        via,
    )
    if row is None and dedup_key is not None and via == "webhook":
        execute(
            "insert into deliveries (source, delivery_id, event, state, reason) values (%s,%s,%s,'duplicate',%s) "
            "on conflict do nothing",
            source,
            delivery_id,
            event,
            f"same meaning as {dedup_key}",
        )
    return int(row["id"]) if row else None


def _command(command: Command | DidYouMean) -> dict[str, Any]:
    return {"type": type(command).__name__, **chain.redact(asdict(command))}


def attach(delivery_id: int, job_id: int | None, state: str, reason: str = "") -> None:
    """Say what became of a delivery."""
    execute(
        "update deliveries set job_id = coalesce(%s, job_id), state = %s, reason = %s where id = %s",
        job_id,
        state,
        reason,
        delivery_id,
    )


def take_command(delivery_id: int) -> dict[str, Any] | None:
    """Lock an unanswered command delivery for the open transaction; None when it was answered or is being answered."""
    return fetch_one("select * from deliveries where id = %s and state = 'command' for update skip locked", delivery_id)


def postpone(delivery_id: int, seconds: float, why: str) -> None:
    execute(
        "update deliveries set attempts = attempts + 1, reason = %s, "
        "run_after = clock_timestamp() + %s * interval '1 second' where id = %s",
        why,
        seconds,
        delivery_id,
    )


def overdue(delivery_id: int) -> bool:
    """Whether it has waited for as long as anything may wait for the forge."""
    return (
        fetch_one(
            "select 1 as yes from deliveries where id = %s "
            f"and received_at < clock_timestamp() - interval '{MAX_OUTAGE_HOURS} hours'",
            delivery_id,
        )
        is not None
    )


def due_commands() -> list[int]:
    """Unanswered command deliveries whose bell should ring (again); marks them as rung for five seconds."""
    return [
        row["id"]
        for row in fetch(
            "update deliveries set run_after = clock_timestamp() + interval '5 seconds' where id in ("
            "select id from deliveries where state = 'command' and coalesce(run_after, received_at + interval "
            "'2 seconds') "
            "<= clock_timestamp() order by id limit 200 for update skip locked) returning id"
        )
    ]


def note_job(delivery_id: int, job_id: int) -> None:
    """Remember which job a delivery made."""
    send("update deliveries set job_id = %s where id = %s", job_id, delivery_id)


def confirm(source: str, dedup_key: str, trigger: Trigger) -> None:
    """A signed delivery tells what was found by looking before: what it says of the person's rights counts now.

    Only for the same person, and while it can still matter.
    """
    said = Jsonb({"permission": trigger.permission})
    row = fetch_one(
        "update deliveries set via = 'confirmed', trigger = trigger || %s where source = %s and dedup_key = %s "
        "and via = 'poll' and (trigger ->> 'actor_id')::bigint = %s returning job_id",
        said,
        source,
        dedup_key,
        trigger.actor_id,
    )
    if row and row["job_id"]:
        execute(
            "update runner_jobs set trigger = trigger || %s, metadata = metadata - 'found' where id = %s "
            "and finished_at is null and metadata ->> 'found' = 'poll' and requester_id = %s "
            "and (trigger ->> 'actor_id')::bigint = %s",
            said,
            row["job_id"],
            trigger.actor_id,
            trigger.actor_id,
        )


def release(source: str, dedup_key: str, *, before: datetime | None = None) -> None:
    """Let the same meaning count as a new one from now on: its delivery keeps the key with its own id.

    `before` spares what came in since that moment (the database's).
    """
    execute(
        "update deliveries set dedup_key = dedup_key || ':' || id where source = %s and dedup_key = %s "
        "and received_at < coalesce(%s, 'infinity'::timestamptz)",
        source,
        dedup_key,
        before,
    )
