"""Hosts: where consumers live, where jobs have their files, which host is gone for good."""

from __future__ import annotations

from dataclasses import dataclass

from app.ledger.workers import alive
from app.models import fetch
from app.pipeline import ANYWHERE

_POOLS = ("control", "agents", "gates")


@dataclass(frozen=True, slots=True)
class Host:
    """A host with at least one consumer that takes work."""

    name: str
    pools: frozenset[str]
    room: int  # agents that may run there at once
    jobs: int  # that run there now

    @property
    def able(self) -> bool:
        """Whether every step of a job can run there."""
        return self.pools >= set(_POOLS)


def live_hosts() -> tuple[Host, ...]:
    """Every host where somebody takes work, by name."""
    rows = fetch(
        "select w.host, array_agg(distinct w.pool) as pools, "
        "coalesce(sum(w.slots) filter (where w.pool = 'agents'), 0)::int as room, "
        "(select count(*) from runner_jobs j where j.host = w.host and j.finished_at is null)::int as jobs "
        f"from workers w where w.ended_at is null and not w.draining and {alive('w.id')} "
        "group by w.host order by w.host"
    )
    return tuple(Host(row["host"], frozenset(row["pools"]), row["room"], row["jobs"]) for row in rows)


def stranded_jobs(seconds: float, job_id: int | None = None) -> list[int]:
    """Jobs whose next step needs files of a host that cannot go on with it: for so long it lacks a consumer it needs.

    A job that only has to be closed needs the control consumer alone. What still runs there is waited for.
    """
    rows = fetch(
        "select j.id from runner_jobs j where j.host is not null and j.status = 'running' "
        "and j.finished_at is null and (%s::bigint is null or j.id = %s::bigint) "
        "and exists (select 1 from job_steps s where s.job_id = j.id and s.status = 'pending' "
        "and s.ready_at is not null and s.name <> all(%s)) "
        "and not exists (select 1 from job_steps s where s.job_id = j.id and s.status = 'running' "
        "and s.name <> all(%s)) "
        "and exists (select 1 from unnest(%s::text[]) p where (j.reason is null or p = 'control') "
        "and not exists (select 1 from workers w where w.host = j.host and w.pool = p and w.ended_at is null) "
        "and coalesce((select max(w.ended_at) from workers w where w.host = j.host and w.pool = p), '-infinity') "
        "< clock_timestamp() - %s * interval '1 second') order by j.id limit 500",
        job_id,
        job_id,
        list(ANYWHERE),
        list(ANYWHERE),
        list(_POOLS),
        seconds,
    )
    return [row["id"] for row in rows]


def jobs_at(host: str) -> frozenset[int]:
    """Open jobs whose files belong to a host. Whatever files of other jobs lie there is left over and may go."""
    rows = fetch("select id from runner_jobs where host = %s and finished_at is null", host)
    return frozenset(row["id"] for row in rows)
