"""Pauses: while one is open, jobs are accepted and queued, and none starts. The ended ones stay as the record."""

from __future__ import annotations

from app.ledger import chain
from app.models import fetch_one


def pause(repository_id: int | None, repository: str, actor: str) -> bool:
    """Open a pause of a repository, or (None) of everything; False when one is open already."""
    row = fetch_one(
        "insert into pauses (repository_id, repository, actor) values (%s,%s,%s) "
        "on conflict (coalesce(repository_id, -1)) where ended_at is null do nothing returning id",
        repository_id,
        chain.redact(repository),
        chain.redact(actor),
    )
    return row is not None


def resume(repository_id: int | None, actor: str) -> bool:
    """End the open pause; False when there is none."""
    row = fetch_one(
        "update pauses set ended_at = clock_timestamp(), ended_by = %s "
        "where repository_id is not distinct from %s and ended_at is null returning id",
        chain.redact(actor),
        repository_id,
    )
    return row is not None
