"""What came in and what goes out: deliveries, effects, the people and repositories known."""

from __future__ import annotations

from typing import Any

from app.models import fetch, fetch_one


def self_id() -> int | None:
    """The numeric id of the bot's own account, once a control process has learned it."""
    row = fetch_one("select id from users where is_self")
    return int(row["id"]) if row else None


def self_login() -> str | None:
    row = fetch_one("select login from users where is_self")
    return str(row["login"]) if row else None


def ourselves(repository_id: int | None) -> tuple[int | None, str, str]:
    """The bot's id and name as far as they are known, and the label that starts a job in a repository; in one look."""
    row = fetch_one(
        "select (select id from users where is_self) as id, (select login from users where is_self) as login, "
        "(select trigger_label from repositories where id = %s) as label",
        repository_id,
    )
    assert row is not None
    return row["id"], row["login"] or "mosaic", row["label"] or "mosaic"


def trigger_label(repository_id: int) -> str:
    row = fetch_one("select trigger_label from repositories where id = %s", repository_id)
    return str(row["trigger_label"]) if row else "mosaic"


def repository_named(full_name: str) -> tuple[int, str] | None:
    """(id, name) of a repository that has had a job."""
    row = fetch_one("select id, full_name from repositories where lower(full_name) = lower(%s)", full_name)
    return (int(row["id"]), str(row["full_name"])) if row else None


def effect(key: str) -> dict[str, Any] | None:
    return fetch_one("select * from effects where key = %s", key)


def effects(job_id: int) -> list[dict[str, Any]]:
    return fetch("select * from effects where job_id = %s order by id", job_id)


def effect_by_id(effect_id: int) -> dict[str, Any] | None:
    return fetch_one("select * from effects where id = %s", effect_id)


def pushed_shas(repository_id: int, branch: str) -> frozenset[str]:
    """Commits that Mosaic itself pushed to a branch."""
    rows = fetch(
        "select result ->> 'sha' as sha from effects where kind = 'push' and target ->> 'branch' = %s "
        "and (target ->> 'repository_id')::bigint = %s and result ? 'sha'",
        branch,
        repository_id,
    )
    return frozenset(row["sha"] for row in rows)


def delivery(delivery_id: int) -> dict[str, Any] | None:
    return fetch_one("select * from deliveries where id = %s", delivery_id)
