"""The simulation's own database: the real schema on a real server, its `clock_timestamp()` replaced by a virtual one.

One rule: nobody but the director moves the clock, and no clock of this machine is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from app import models
from app.postgres import Cluster
from tests.simulation.stage import Killed, checkpoint, current

BEGINNING = "2026-03-01 12:00:00+00"

_CLOCK = """
create schema virtual;
create table virtual.clock (at timestamptz not null);
insert into virtual.clock values ('{beginning}');
create function virtual.clock_timestamp() returns timestamptz language sql volatile
    as 'select at from virtual.clock';
grant usage on schema virtual to public;
grant select on virtual.clock to public;
do $$
declare
    found record;
begin
    for found in select c.table_name, c.column_name from information_schema.columns c
        where c.table_schema = 'public' and c.column_default like '%clock_timestamp()%'
    loop
        execute format('alter table public.%I alter column %I set default virtual.clock_timestamp()',
            found.table_name, found.column_name);
    end loop;
end $$;
"""


_POOL_ASKS = "SELECT 1"  # under a lock of the pool, which belongs to all processes of the simulation


class SimulatedCursor(psycopg.Cursor[Any]):
    """A checkpoint before every round trip; the mutants rewrite what is sent."""

    rewrites: ClassVar[list[Callable[[str], str]]] = []

    def execute(self, query: Any, params: Any = None, **more: Any) -> Any:
        actor = current()
        if actor is None or query == _POOL_ASKS:
            return super().execute(query, params, **more)
        actor.connection = self.connection
        text = query if isinstance(query, str) else ""
        if actor.killed:
            if text.upper().startswith("ROLLBACK"):
                return super().execute(query, params, **more)  # what the server does when the process is gone
            raise Killed
        if "lock_timeout" in text:
            actor.impatient = text.startswith("set ")
        pipeline = self.connection._pipeline
        if pipeline is None or not (pipeline.command_queue or pipeline.result_queue):
            checkpoint(f"sql: {' '.join(text.split()[:4])}")
        for rewrite in self.rewrites:
            query = rewrite(query)
        try:
            return super().execute(query, params, **more)
        except psycopg.Error:
            if actor.killed:
                raise Killed from None
            raise


class Store:
    """One database for many runs: `clear` empties it. The models are bound to it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster, self.name = cluster, name
        self._super = psycopg.connect(cluster.url("postgres", "postgres"), autocommit=True)
        self._super.execute(
            sql.SQL("create database {} template mosaic owner mosaic_owner").format(sql.Identifier(name))
        )
        self.admin = psycopg.connect(cluster.url("postgres", name), autocommit=True, row_factory=dict_row)
        self.admin.execute(_CLOCK.replace("{beginning}", BEGINNING))
        for setting in (
            "search_path = virtual, pg_catalog, public",
            "synchronous_commit = off",
            "deadlock_timeout = '20ms'",
            "idle_in_transaction_session_timeout = 0",  # by the virtual clock, and by the director
        ):
            self.admin.execute(f"alter role mosaic_app in database {name} set {setting}")
        # Triggers are off for the director alone: it empties the append-only ledger between two runs.
        self.admin.execute(
            "set session_replication_role = replica; set synchronous_commit = off; "
            "set search_path = virtual, pg_catalog, public"
        )
        self._tables = [
            row["tablename"]
            for row in self.ask(
                "select tablename from pg_tables where schemaname = 'public' and tablename <> 'schema_migrations'"
            )
        ]
        self._sequences = [
            row["name"]
            for row in self.ask(
                "select schemaname || '.' || sequencename as name from pg_sequences where schemaname = 'public'"
            )
        ]
        self.url = cluster.url("mosaic_app", name)
        models.bind(self.url, application_name=name, max_connections=60)
        models.db.obj.connect_params["cursor_factory"] = SimulatedCursor
        models.db.obj.connect_params["options"] += " -c idle_in_transaction_session_timeout=0"
        self._runs = 0

    def ask(self, statement: str, *params: Any) -> list[dict[str, Any]]:
        """Rows of a statement of the director's own."""
        cursor = self.admin.execute(statement, params or None)
        return list(cursor.fetchall()) if cursor.description else []

    def clear(self) -> None:
        self._runs += 1
        if self._runs % 100 == 0:
            self.ask(f"truncate {', '.join(self._tables)}")
        self.ask(";".join(f"delete from {table}" for table in self._tables))
        self.ask("select " + ", ".join(f"setval('{name}', 1, false)" for name in self._sequences))
        self.ask("update virtual.clock set at = %s", BEGINNING)

    def now(self) -> datetime:
        moment: datetime = self.ask("select at from virtual.clock")[0]["at"]
        return moment

    def move_clock(self, seconds: float) -> None:
        """Forward, or back as when somebody sets the server's clock."""
        self.ask("update virtual.clock set at = at + %s", timedelta(seconds=seconds))

    def close(self) -> None:
        models.db.close_all()
        self.admin.close()
        self._super.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(self.name)))
        self._super.close()
