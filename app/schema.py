"""Migrations: in order, each in its own transaction, under one advisory lock; then the runtime role's rights."""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from app.types import MosaicError

log = logging.getLogger("mosaic.schema")
FOLDER = Path(__file__).resolve().parent.parent / "migrations"
_LOCK = 0x6D6F7361  # one migrating process at a time, across hosts
MIN_SERVER, MAX_SERVER = 150000, 190000


class SchemaError(MosaicError):
    code = "schema_error"


def names() -> list[str]:
    """Migrations in order, by file name without `.py`."""
    return sorted(path.stem for path in FOLDER.glob("[0-9][0-9][0-9][0-9]_*.py"))


def migrate(owner_url: str, app_url: str, *, upto: str | None = None) -> list[str]:
    """Bring the database up to date; the names applied now. Safe to call from several processes at once.

    `owner_url` may create tables; the role of `app_url` receives what the running processes need and no more:
    on `job_events` it may read and insert.
    """
    with psycopg.connect(owner_url, autocommit=True) as connection:
        _check_version(connection)
        connection.execute("select pg_advisory_lock(%s)", (_LOCK,))
        try:
            applied = list(_apply(connection, upto))
            _grant(connection, str(conninfo_to_dict(app_url).get("user") or ""))
        finally:
            connection.execute("select pg_advisory_unlock(%s)", (_LOCK,))
    return applied


def pending(url: str) -> list[str]:
    """Migrations that are not applied yet; all of them when the database is empty."""
    with psycopg.connect(url, autocommit=True) as connection:
        known = connection.execute("select to_regclass('schema_migrations') is not null").fetchone()
        done = (
            {row[0] for row in connection.execute("select name from schema_migrations")}
            if known and known[0]
            else set()
        )
    return [name for name in names() if name not in done]


def _check_version(connection: psycopg.Connection[Any]) -> None:
    version = connection.info.server_version
    if not MIN_SERVER <= version < MAX_SERVER:
        raise SchemaError(f"PostgreSQL {version // 10000} is not supported: use 15 to 18.")


def _apply(connection: psycopg.Connection[Any], upto: str | None) -> Iterator[str]:
    connection.execute(
        "create table if not exists schema_migrations (name text primary key, sha256 text not null, "
        "at timestamptz not null default clock_timestamp())"
    )
    done = {row[0] for row in connection.execute("select name from schema_migrations")}
    for name in names():
        if name not in done:
            log.info("applying migration %s", name)
            with connection.transaction():
                importlib.import_module(f"migrations.{name}").up(connection.execute)
                digest = hashlib.sha256((FOLDER / f"{name}.py").read_bytes()).hexdigest()
                connection.execute("insert into schema_migrations (name, sha256) values (%s, %s)", (name, digest))
            yield name
        if name == upto:
            return


def _grant(connection: psycopg.Connection[Any], role: str) -> None:
    owner = connection.info.user
    if not role or role == owner:
        return
    who = sql.Identifier(role)
    for statement in (
        "grant usage on schema public to {}",
        "grant select, insert, update, delete on all tables in schema public to {}",
        "grant usage, select on all sequences in schema public to {}",
        "revoke update, delete, truncate on job_events from {}",
        "revoke insert, update, delete on schema_migrations from {}",
    ):
        connection.execute(sql.SQL(statement).format(who))
    if connection.execute("select to_regclass('audit_anchors')").fetchone() != (None,):
        connection.execute(sql.SQL("revoke update, delete, truncate on audit_anchors from {}").format(who))
