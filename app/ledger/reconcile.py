"""What looking for lost mentions leaves behind: who looks, how far each repository was read, what was refused.

Its one rule: a moment that says how far was read is the forge's, a moment that says whose turn it is is the database's.
"""

from __future__ import annotations

from datetime import datetime

from app.ledger.workers import alive
from app.models import execute, fetch_one

FORGE = 0  # the repository id under which the forge's own lists are kept
BACKOFF = 5.0  # seconds after the first refusal of the forge; doubled with each one that follows
MOST_BACKOFF = 60.0
MOST_REPOSITORY_BACKOFF = 3600.0


def take_office(worker_id: int, lease_seconds: float) -> bool:
    """Become, or stay, the one who looks. False: somebody else does, or the forge asked everybody to wait."""
    row = fetch_one(
        "insert into reconciler as r (worker_id, lease_until) values (%s, clock_timestamp() + %s * interval '1 second')"
        " on conflict (one) do update set worker_id = excluded.worker_id, lease_until = excluded.lease_until "
        "where (r.worker_id is null or r.worker_id = excluded.worker_id or r.lease_until < clock_timestamp() "
        f"or not {alive('r.worker_id')}) and coalesce(r.retry_at, '-infinity') <= clock_timestamp() "
        "returning worker_id",
        worker_id,
        lease_seconds,
    )
    return row is not None


def in_office(worker_id: int) -> bool:
    """Whether nobody else has looked since this worker did: it may only be waiting for the forge."""
    return fetch_one("select 1 as yes from reconciler where worker_id = %s", worker_id) is not None


def leave_office(worker_id: int) -> None:
    """Let the next one begin at once."""
    execute("update reconciler set worker_id = null, lease_until = null where worker_id = %s", worker_id)


def begin_round() -> None:
    execute(
        "insert into reconciler as r (began_at) values (clock_timestamp()) on conflict (one) do update "
        "set began_at = excluded.began_at"
    )


def complete_round() -> None:
    """Every served repository was looked at since the round began. What stopped earlier rounds is over."""
    execute(
        "update reconciler set completed_at = clock_timestamp(), failures = 0, retry_at = null, error = '' "
        "where began_at is not null"
    )


def back_off(error: str, retry_after: float | None) -> None:
    """The forge is away or busy: nobody asks it before this moment."""
    execute(
        "insert into reconciler as r (failures, error, retry_at) "
        "values (1, %s, clock_timestamp() + coalesce(%s, %s) * interval '1 second') on conflict (one) do update "
        "set failures = r.failures + 1, error = excluded.error, retry_at = clock_timestamp() + "
        "coalesce(%s, least(%s * 2 ^ least(r.failures, 20), %s)) * interval '1 second'",
        error,
        retry_after,
        BACKOFF,
        retry_after,
        BACKOFF,
        MOST_BACKOFF,
    )


def answers_again() -> None:
    """The forge answered."""
    execute("update reconciler set failures = 0, retry_at = null, error = '' where failures > 0")


def first_seen(repository_id: int, sources: tuple[str, ...], moment: datetime) -> None:
    """From this moment on (the forge's) the repository is ours to look at; what is known already stays."""
    for source in sources:
        execute(
            "insert into reconcile_cursors (repository_id, source, read_to, not_before) values (%s,%s,%s,%s) "
            "on conflict do nothing",
            repository_id,
            source,
            moment,
            moment,
        )


def remember_name(repository_id: int, full_name: str, default_branch: str, private: bool) -> None:
    """The name a repository has today; its label is admission's to say."""
    execute(
        "insert into repositories as r (id, full_name, default_branch, private) values (%s,%s,%s,%s) "
        "on conflict (id) do update set full_name = excluded.full_name, default_branch = excluded.default_branch, "
        "private = excluded.private, seen_at = clock_timestamp() where (r.full_name, r.default_branch, r.private) "
        "is distinct from (excluded.full_name, excluded.default_branch, excluded.private)",
        repository_id,
        full_name,
        default_branch,
        private,
    )


def read_to(repository_id: int, source: str, moment: datetime) -> None:
    """Everything that changed up to this moment was looked at. A cursor never goes back."""
    execute(
        "update reconcile_cursors set read_to = greatest(read_to, %s), looked_at = clock_timestamp(), failures = 0, "
        "retry_at = null, error = '' where repository_id = %s and source = %s",
        moment,
        repository_id,
        source,
    )


def refused(repository_id: int, sources: tuple[str, ...], error: str) -> None:
    """The forge refuses this one: it is asked again later, each time twice as late, up to an hour."""
    execute(
        "update reconcile_cursors set looked_at = clock_timestamp(), failures = failures + 1, error = %s, retry_at = "
        "clock_timestamp() + least(60 * 2 ^ least(failures, 20), %s) * interval '1 second' "
        "where repository_id = %s and source = any(%s)",
        error,
        MOST_REPOSITORY_BACKOFF,
        repository_id,
        list(sources),
    )


def forget(repository_id: int) -> None:
    """Not served (any more): if it is again one day, it starts from there."""
    execute("delete from reconcile_cursors where repository_id = %s", repository_id)
