"""What goes out: the forge's circuit breaker, what waits, what is dead, whose comment is whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.ledger.effects import CARRIED
from app.models import fetch, fetch_one


@dataclass(frozen=True, slots=True)
class Breaker:
    """The circuit breaker of the forge. `since` = the first failure of the row that it counts."""

    state: str = "closed"  # closed | open | half_open (a probe is under way)
    failures: int = 0
    since: datetime | None = None
    code: str = ""  # why, as one word: unreachable, timed_out, server_error, rate_limited, token_refused, …
    detail: str = ""
    opened_at: datetime | None = None
    closed_at: datetime | None = None
    probes: int = 0  # failed ones of this outage
    next_probe_at: datetime | None = None
    wait: float = 0.0  # seconds until the next probe

    @property
    def closed(self) -> bool:
        return self.state == "closed"


def breaker() -> Breaker:
    """Whether the forge is asked at the moment, and if not, why and since when."""
    row = fetch_one(
        "select state, failures, since, code, detail, opened_at, closed_at, probes, next_probe_at, "
        "greatest(0, coalesce(extract(epoch from next_probe_at - clock_timestamp()), 0))::float8 as wait "
        "from circuit_breakers where service = 'forge'"
    )
    return Breaker(**row) if row else Breaker()


def probe_due() -> bool:
    """Whether it is time for somebody to ask the forge if it is back."""
    return (
        fetch_one(
            "select 1 as yes from circuit_breakers where service = 'forge' and state <> 'closed' "
            "and next_probe_at <= clock_timestamp() and (probe_until is null or probe_until < clock_timestamp())"
        )
        is not None
    )


_LISTED = (
    "select e.id, e.key, e.kind, e.state, e.job_id, e.delivery_id, e.code, e.error, e.attempts, e.created_at, "
    "e.waiting_since, e.failed_at, e.next_at, e.done_at, e.dropped_at, e.settle_at, e.target ->> 'number' as number, "
    "coalesce(j.repository, e.target ->> 'repository', r.full_name, '') as repository "
    "from effects e left join runner_jobs j on j.id = e.job_id "
    "left join repositories r on r.id = (e.target ->> 'repository_id')::bigint where "
)


def waiting_effects(limit: int = 200) -> list[dict[str, Any]]:
    """What is to go out and has not, oldest first: key, kind, repository, number, code, error, waiting_since, …"""
    return fetch(_LISTED + "e.state = 'planned' order by e.id limit %s", limit)


def dead_effects(limit: int = 200) -> list[dict[str, Any]]:
    """What was refused for good or failed for too long and waits for an operator, oldest first."""
    return fetch(
        _LISTED + "e.state = 'failed' and e.dropped_at is null and not e.kind = any(%s) order by e.id limit %s",
        list(CARRIED),
        limit,
    )


def closed_effects(limit: int = 20) -> list[dict[str, Any]]:
    """What was given up in the last week, by hand or because its job ended without it, newest first."""
    return fetch(
        _LISTED + "e.dropped_at > clock_timestamp() - interval '7 days' and e.state = 'failed' "
        "order by e.dropped_at desc limit %s",
        limit,
    )


def unlooked_effects(limit: int = 20) -> list[dict[str, Any]]:
    """What went out in the last week and could not be looked at for copies, newest first."""
    return fetch(
        _LISTED + "e.state = 'done' and e.code <> '' and e.done_at > clock_timestamp() - interval '7 days' "
        "order by e.id desc limit %s",
        limit,
    )


def effect_counts() -> Mapping[tuple[str, str], int]:
    """How many effects are waiting or dead, by (kind, state): state is planned or failed."""
    rows = fetch(
        "select kind, state, count(*) as n from effects where state = 'planned' "
        "or (state = 'failed' and dropped_at is null) group by kind, state"
    )
    return {(row["kind"], row["state"]): int(row["n"]) for row in rows}


def successor(effect: Mapping[str, Any], external_id: str | None) -> dict[str, Any] | None:
    """The effect of a newer job that has taken over this status comment."""
    if external_id is None:
        return None
    return fetch_one(
        "select * from effects where external_id = %s and kind = %s and job_id > %s "
        "and target ->> 'repository_id' = %s::text order by job_id desc limit 1",
        external_id,
        effect["kind"],
        effect["job_id"],
        str(effect["target"]["repository_id"]),
    )


def owned_by_others(effect: Mapping[str, Any], external_ids: Sequence[str]) -> frozenset[str]:
    """Of these comments, those that are another effect's own. A job that is retried gives its status comment away."""
    rows = fetch(
        "select external_id from effects where external_id = any(%s) and id <> %s and kind like 'comment.%%' "
        "and not (kind = 'comment.status' and %s = kind and job_id < %s) and target ->> 'repository_id' = %s::text",
        list(external_ids),
        effect["id"],
        effect["kind"],
        effect["job_id"],
        str(effect["target"]["repository_id"]),
    )
    return frozenset(row["external_id"] for row in rows)
