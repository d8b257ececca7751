"""Saved work: what runner.keep has kept of jobs that were stopped half-way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.ledger.workers import alive
from app.models import fetch, fetch_one


@dataclass(frozen=True, slots=True)
class SavedWork:
    """One commit in the mirror of one host, under `refs/mosaic/wip/<job>`; `start` is the commit it stands on."""

    job: int
    sha: str
    start: str
    files: int
    added: int
    removed: int
    host: str

    @property
    def ref(self) -> str:
        return f"refs/mosaic/wip/{self.job}"

    @property
    def branch(self) -> str:
        """On the forge, when somebody asks for it there."""
        return f"mosaic/wip/{self.job}"


def saved_work(job_id: int) -> SavedWork | None:
    """What was kept of a job; None when nothing was. Whether the commit is still there only its host can tell."""
    row = fetch_one(
        "select * from job_steps where job_id = %s and name = 'runner.keep' and status = 'completed' "
        "and output ? 'kept' order by attempt desc limit 1",
        job_id,
    )
    return _saved(row) if row else None


def all_saved_work(limit: int = 50) -> tuple[SavedWork, ...]:
    """The newest saved work of all jobs."""
    rows = fetch(
        "select * from job_steps where name = 'runner.keep' and status = 'completed' and output ? 'kept' "
        "order by id desc limit %s",
        limit,
    )
    return tuple(map(_saved, rows))


def _saved(row: dict[str, Any]) -> SavedWork:
    said = row["output"]
    return SavedWork(
        row["job_id"], said["kept"], said["start"], said["files"], said["added"], said["removed"], row["host"]
    )


def host_alive(host: str, pool: str | None = None) -> bool:
    """Whether a consumer on that host lives; `pool` = of that kind."""
    return (
        fetch_one(
            "select 1 as yes from workers w where w.host = %s and w.pool = coalesce(%s, w.pool) "
            f"and w.ended_at is null and {alive('w.id')} limit 1",
            host,
            pool,
        )
        is not None
    )
