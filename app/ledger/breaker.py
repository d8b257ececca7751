"""The circuit breaker of the forge: one row that all workers of all hosts share.

It opens after THRESHOLD failures in a row; while it is open nobody asks but one probe at a time; a probe that is
answered closes it, and what waited goes on.
"""

from __future__ import annotations

from app.ledger import chain
from app.models import execute, fetch_one

THRESHOLD = 5  # failures in a row, whoever had them
PROBE_PAUSES = (1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 30.0)  # seconds before the next probe
LONGEST_PAUSE = 600.0  # seconds, whatever the forge asks for
PROBE_SECONDS = 60  # a probe of which nothing is heard for so long is lost
MAX_OUTAGE_HOURS = 24  # what waits for the forge longer than this is given up
RECOVERY_SECONDS = 60  # after an outage the backlog goes out slowly for so long
_SERVICE = "forge"

# SQL: whether the forge may be asked.
CLOSED = f"not exists (select 1 from circuit_breakers where service = '{_SERVICE}' and state <> 'closed')"
RECOVERING = (
    f"exists (select 1 from circuit_breakers where service = '{_SERVICE}' "
    f"and closed_at > clock_timestamp() - interval '{RECOVERY_SECONDS} seconds')"
)


def failed(code: str, detail: str, *, retry_after: float = 0.0, at_once: bool = False) -> bool:
    """One more failure in a row; True when this one opened the breaker. `at_once` opens it whatever the count.

    Failures of requests that were under way when it opened change nothing.
    """
    limit = 1 if at_once else THRESHOLD
    execute("insert into circuit_breakers (service) values (%s) on conflict do nothing", _SERVICE)
    row = fetch_one(
        "update circuit_breakers set failures = failures + 1, since = coalesce(since, clock_timestamp()), code = %s, "
        "detail = %s, probes = 0, probe_until = null, state = case when failures + 1 >= %s then 'open' else state end, "
        "opened_at = case when failures + 1 >= %s then clock_timestamp() else opened_at end, "
        "next_probe_at = case when failures + 1 >= %s then clock_timestamp() + %s * interval '1 second' end "
        "where service = %s and state = 'closed' returning state",
        code,
        chain.redact(detail)[:1000],
        limit,
        limit,
        limit,
        min(retry_after, LONGEST_PAUSE),
        _SERVICE,
    )
    return row is not None and row["state"] == "open"


def worked() -> None:
    """An answer came: the failures before it are no row any more. An open breaker is closed by its probe only."""
    execute(
        "update circuit_breakers set failures = 0, since = null where service = %s and state = 'closed' "
        "and failures > 0",
        _SERVICE,
    )


def claim_probe() -> int | None:
    """The right to ask the forge once, as a fence; None when it is not time, or somebody else asks."""
    row = fetch_one(
        "update circuit_breakers set state = 'half_open', fence = fence + 1, "
        f"probe_until = clock_timestamp() + interval '{PROBE_SECONDS} seconds' where service = %s "
        "and state <> 'closed' and next_probe_at <= clock_timestamp() "
        "and (probe_until is null or probe_until < clock_timestamp()) returning fence",
        _SERVICE,
    )
    return int(row["fence"]) if row else None


def probe_failed(fence: int, code: str, detail: str, retry_after: float = 0.0) -> None:
    """Still away: the next probe after a pause that grows, or as long as the forge asks for."""
    execute(
        "update circuit_breakers set state = 'open', probes = probes + 1, probe_until = null, code = %s, detail = %s, "
        "next_probe_at = clock_timestamp() + greatest(%s, (%s::float8[])[least(probes + 1, %s)]) * interval '1 second' "
        "where service = %s and fence = %s and state = 'half_open'",
        code,
        chain.redact(detail)[:1000],
        min(retry_after, LONGEST_PAUSE),
        list(PROBE_PAUSES),
        len(PROBE_PAUSES),
        _SERVICE,
        fence,
    )


def close(fence: int) -> bool:
    """The forge answered the probe: True when this closed the breaker.

    After a real outage (an earlier probe had failed) what backed off is due at once. Rows that somebody holds are left
    alone: they are being worked on.
    """
    with chain.transaction():
        row = fetch_one(
            "with old as (select service, probes, code from circuit_breakers where service = %s and fence = %s "
            "and state = 'half_open' for update) update circuit_breakers b set state = 'closed', failures = 0, "
            "since = null, closed_at = clock_timestamp(), next_probe_at = null, probe_until = null, probes = 0 "
            "from old where b.service = old.service returning old.probes, old.code",
            _SERVICE,
            fence,
        )
        if row is not None and row["probes"] > 0:
            _hurry(row["code"])
        return row is not None


def _hurry(outage: str) -> None:
    """What waited for the forge is due, and what it waited no longer counts against it.

    One that was told when to come again keeps its time, unless it was the rate limit that kept all away (`outage`).
    """
    execute(
        "update effects set next_at = case when code = 'rate_limited' and %s <> 'rate_limited' then next_at "
        "else least(next_at, clock_timestamp()) end, rung_at = null, waiting_since = null "
        "where id in (select id from effects where state = 'planned' and error <> '' for update skip locked)",
        outage,
    )
    execute(
        "update job_steps set run_after = clock_timestamp() where id in (select id from job_steps where "
        "status = 'pending' and reason = 'forge_unavailable' and run_after > clock_timestamp() for update skip locked)"
    )
