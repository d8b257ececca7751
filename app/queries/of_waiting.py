"""Why jobs wait: worked out from the rows as they are now, for one job or a page of them, in a few statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app import waiting
from app.ledger.slots import SUSPECT
from app.ledger.turns import QUEUE
from app.ledger.workers import alive
from app.models import fetch, fetch_one
from app.queries.of_effects import Breaker, breaker
from app.waiting import Waiting

Row = Mapping[str, Any]
_JUST_RUNG = 5  # seconds after which a bell that nobody answered counts as lost


def waiting_for(job_id: int) -> Waiting | None:
    """What the job waits for now; None when it works, or has ended."""
    return waiting_of([job_id]).get(job_id)


def waiting_of(job_ids: Sequence[int]) -> Mapping[int, Waiting]:
    """The same for several jobs; those that wait for nothing are left out."""
    rows = fetch(
        "select id, status, repository_id, repository, branch, rules -> 'limits' ->> 'concurrent' as most "
        "from runner_jobs where id = any(%s) and finished_at is null and reason is null "
        "and cancel_requested_at is null",
        list(job_ids),
    )
    found: dict[int, Waiting | None] = {row["id"]: waiting.person() for row in rows if row["status"] == "waiting"}
    queued = [row for row in rows if row["status"] == "queued"]
    if queued:
        queue = _queue({row["repository_id"] for row in queued})
        found |= {row["id"]: queue.why(row) for row in queued}
    working = [row["id"] for row in rows if row["status"] in ("pending", "running")]
    if working:
        found |= _steps(working)
    return {job_id: why for job_id, why in found.items() if why is not None}


def open_pause(repository_id: int | None) -> Row | None:
    """The open pause of a repository, or (None) of everything: actor, at, repository."""
    return fetch_one(
        "select * from pauses where ended_at is null and repository_id is not distinct from %s", repository_id
    )


def open_pauses() -> list[dict[str, Any]]:
    """Every open pause, the one of everything first."""
    return fetch("select * from pauses where ended_at is null order by repository_id nulls first")


# ---------------------------------------------------------------- queued


@dataclass
class _Queue:
    """The queues of some repositories: who runs, who waits in which order, what is paused."""

    paused: dict[int | None, Row] = field(default_factory=dict)
    running: defaultdict[int, list[Row]] = field(default_factory=lambda: defaultdict(list))
    order: defaultdict[int, list[Row]] = field(default_factory=lambda: defaultdict(list))

    def why(self, job: Row) -> Waiting:
        home = job["repository_id"]
        place = next((row["place"] for row in self.order[home] if row["id"] == job["id"]), None)
        pause = self.paused.get(None) or self.paused.get(home)
        if pause:
            return waiting.paused(pause["actor"], pause["at"], place)
        busy = next((row["id"] for row in self.running[home] if row["branch"] == job["branch"]), None)
        if busy:
            return waiting.branch_busy(job["branch"], busy, place)
        before = [row["id"] for row in self.order[home] if place and row["place"] < place]
        full = len(self.running[home]) >= int(job["most"] or 1)
        if place and (full or before):
            return waiting.queue(job["repository"], place, [row["id"] for row in self.running[home]], before)
        return waiting.soon(place)


def _queue(repositories: set[int]) -> _Queue:
    found = _Queue()
    ids = list(repositories)
    found.paused = {row["repository_id"]: row for row in open_pauses()}
    for row in fetch(
        "select id, repository_id, branch from runner_jobs where repository_id = any(%s) and status = 'running' "
        "and reason is null and finished_at is null order by id",
        ids,
    ):
        found.running[row["repository_id"]].append(row)
    for row in fetch(f"select * from ({QUEUE}) q where repository_id = any(%s) order by place", ids):
        found.order[row["repository_id"]].append(row)
    return found


# ---------------------------------------------------------------- admitted or at work, between two steps


def _steps(job_ids: list[int]) -> dict[int, Waiting | None]:
    """Of jobs of which nothing runs: why the step whose turn it is does not run."""
    rows = fetch(
        "select distinct on (s.job_id) s.job_id, s.pool, s.reason, s.faults, s.crashes, "
        "s.attempt - s.excused as tries, "
        "extract(epoch from s.run_after - clock_timestamp()) as wait, s.ready_at is not null as ready, "
        "s.rung_at >= clock_timestamp() - %s * interval '1 second' as rung from job_steps s "
        "where s.job_id = any(%s) and s.status = 'pending' and (s.ready_at is not null or s.faults > 0) "
        "and not exists (select 1 from job_steps r where r.job_id = s.job_id and r.status = 'running') "
        "order by s.job_id, s.ord, s.name, s.round desc, s.attempt desc",
        _JUST_RUNG,
        job_ids,
    )
    pools = _pools() if rows else {}
    forge = breaker() if any(row["reason"] == "forge_unavailable" for row in rows) else Breaker()
    return {row["job_id"]: _why_step(row, pools, forge) for row in rows}


def _why_step(step: Row, pools: Mapping[str, Row], forge: Breaker) -> Waiting | None:
    if step["reason"] == "forge_unavailable" and not forge.closed:
        return waiting.forge_away(forge.since, forge.wait)
    if step["wait"] is not None and step["wait"] > 0:
        if not step["faults"]:
            return waiting.trying_again(step["tries"], float(step["wait"]))
        return waiting.backing_off(step["reason"], float(step["wait"]), step["faults"])
    pool = pools.get(step["pool"])
    if pool is None:
        return waiting.no_consumer(step["pool"])
    if step["ready"] and not step["rung"] and step["crashes"] >= SUSPECT:
        return waiting.alone(step["crashes"])
    if step["ready"] and not step["rung"] and pool["busy"] >= pool["slots"]:
        return waiting.no_slot(step["pool"], pool["busy"], pool["slots"])
    return None


def _pools() -> Mapping[str, Row]:
    """Slots of the live consumers of each pool, and how many of them work."""
    return {
        row["pool"]: row
        for row in fetch(
            "select w.pool, sum(w.slots)::int as slots, (select count(*) from job_steps s where s.pool = w.pool "
            "and s.status = 'running')::int as busy from workers w where w.ended_at is null and not w.draining "
            f"and {alive('w.id')} group by w.pool"
        )
    }
