"""Looking for lost mentions: what is to be looked at, how far it was read, how late we are, what was found."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.models import fetch, fetch_one


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far one list of a repository was read. Both moments are the forge's."""

    repository_id: int
    source: str  # repositories | notifications | comments | issues
    read_to: datetime
    not_before: datetime
    due: bool  # not refused lately
    error: str


@dataclass(frozen=True, slots=True)
class ReconcileState:
    """What an operator asks first: `lag` = seconds since the last complete round (None: there was none yet)."""

    lag: float | None
    failures: int
    error: str
    found: int  # requests that were found by looking and by nothing else, ever
    confirmed: int  # … and were told by a webhook afterwards


def cursors() -> dict[tuple[int, str], Cursor]:
    rows = fetch(
        "select repository_id, source, read_to, not_before, error, "
        "coalesce(retry_at, '-infinity') <= clock_timestamp() as due from reconcile_cursors"
    )
    return {(row["repository_id"], row["source"]): Cursor(**row) for row in rows}


def known_repositories() -> list[tuple[int, str]]:
    """Id and name of every repository ever met, the one that was not looked at for longest first."""
    rows = fetch(
        "select r.id, r.full_name from repositories r left join "
        "(select repository_id, min(looked_at) as looked_at from reconcile_cursors group by repository_id) c "
        "on c.repository_id = r.id order by c.looked_at nulls first, r.id"
    )
    return [(row["id"], row["full_name"]) for row in rows]


def known_requests(keys: Collection[str]) -> frozenset[str]:
    """Which of these requests were met before. The jobs tell it too: deliveries are kept for a while only."""
    if not keys:
        return frozenset()
    rows = fetch(
        "select dedup_key as key from deliveries where source = 'gitea' and dedup_key = any(%s) union all "
        "select substr(trigger_key, 7) as key from runner_jobs where trigger_key = any(%s)",
        list(keys),
        [f"gitea:{key}" for key in keys],
    )
    return frozenset(row["key"] for row in rows)


def last_text(kind: str, object_id: int) -> str | None:
    """The newest text of a comment that was taken for a request; None when none was."""
    row = fetch_one(
        "select text from (select trigger ->> 'text' as text, received_at as at from deliveries "
        "where trigger ->> 'object_id' = %s and trigger ->> 'kind' = %s and source = 'gitea' union all "
        "select trigger ->> 'text', created_at from runner_jobs where trigger ->> 'object_id' = %s "
        "and trigger ->> 'kind' = %s) known order by at desc limit 1",
        str(object_id),
        kind,
        str(object_id),
        kind,
    )
    return str(row["text"]) if row else None


def own_pulls(repository_id: int) -> frozenset[int]:
    """Numbers of the pull requests that Mosaic opened there."""
    rows = fetch(
        "select distinct pull_request as number from runner_jobs where repository_id = %s and pull_request is not null",
        repository_id,
    )
    return frozenset(row["number"] for row in rows)


def reconcile_lag() -> float | None:
    """Seconds since the last complete round; None before the first one."""
    row = fetch_one("select extract(epoch from clock_timestamp() - completed_at)::float8 as lag from reconciler")
    return None if row is None else row["lag"]


def reconcile_state() -> ReconcileState:
    row: dict[str, Any] = fetch_one("select failures, error from reconciler") or {"failures": 0, "error": ""}
    counts = {
        one["via"]: int(one["n"])
        for one in fetch("select via, count(*) as n from deliveries where via <> 'webhook' group by via")
    }
    return ReconcileState(
        reconcile_lag(), row["failures"], row["error"], counts.get("poll", 0), counts.get("confirmed", 0)
    )
