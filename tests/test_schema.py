"""Migrations on a real server: on an empty database, on one with data, two at once, one that fails; the rights then."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from peewee import Model
from psycopg import errors, sql

import migrations
from app import models, queries, schema
from app.postgres import Cluster
from tests import spine

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = schema.FOLDER / "samples"
NAMES = schema.names()
_numbers = itertools.count(1)


class Empty:
    """A database without a table: its URL for each role."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.owner, self.app, self.superuser = (
            cluster.url(role, name) for role in ("mosaic_owner", "mosaic_app", "postgres")
        )

    def migrate(self, upto: str | None = None) -> list[str]:
        return schema.migrate(self.owner, self.app, upto=upto)

    def load(self, name: str) -> None:
        """What a Mosaic of that migration has written."""
        with psycopg.connect(self.owner, autocommit=True) as connection:
            connection.execute((SAMPLES / f"{name}.sql").read_bytes())

    def rows(self) -> dict[str, int]:
        """How many rows each table has."""
        with psycopg.connect(self.app) as connection:
            names = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
            return {name: self._count(connection, name) for (name,) in names if name != "schema_migrations"}

    @staticmethod
    def _count(connection: psycopg.Connection[tuple[object, ...]], name: str) -> int:
        row = connection.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(name))).fetchone()
        assert row is not None
        return int(str(row[0]))


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[Empty]:
    name = f"empty_{next(_numbers)}"
    with psycopg.connect(cluster.url("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} owner mosaic_owner").format(sql.Identifier(name)))
        yield Empty(cluster, name)
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def refused(url: str, statement: str, error: type[psycopg.Error] = errors.InsufficientPrivilege) -> None:
    with psycopg.connect(url, autocommit=True) as connection, pytest.raises(error):
        connection.execute(statement.encode())


# ---------------------------------------------------------------- empty, and full of data


def test_an_empty_database_gets_everything_once(empty: Empty) -> None:
    assert schema.pending(empty.app) == schema.pending(empty.owner) == NAMES
    assert empty.migrate() == NAMES
    assert empty.migrate() == [] and schema.pending(empty.app) == []
    assert set(empty.rows().values()) == {0}


def test_every_migration_has_a_sample_of_what_it_makes() -> None:
    assert sorted(path.stem for path in SAMPLES.glob("*.sql")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_migration_meets_the_data_of_all_earlier_ones(empty: Empty, name: str) -> None:
    """And afterwards its own sample fits: each table of the database holds something by then."""
    for earlier in NAMES[: NAMES.index(name)]:
        empty.migrate(upto=earlier)
        empty.load(earlier)
    before = empty.rows()
    assert empty.migrate(upto=name) == [name]
    assert {table: count for table, count in empty.rows().items() if table in before} == before
    empty.load(name)
    bare = {table for table, count in empty.rows().items() if count == 0}
    assert bare <= {"huey_kv", "huey_schedule", "huey_counter"}, "Huey makes no use of these here"
    the_jobs_of_the_samples_go_on(empty)


def the_jobs_of_the_samples_go_on(empty: Empty) -> None:
    """The newest code reads them, their chains verify, and what was under way can be finished."""
    if schema.pending(empty.app):
        return
    models.bind(empty.app)
    try:
        with models.db.connection_context():
            jobs = queries.jobs()
            assert {job.status.value for job in jobs} >= {"completed", "failed", "cancelled", "queued", "running"}
            assert all(spine.broken_links(job.id) == [] for job in jobs)
            assert all(queries.steps(job.id) and queries.events(job.id) for job in jobs)
            assert queries.all_gate_results(1)[-1][1].passed and queries.snapshot(1)
            [queued] = [job.id for job in jobs if job.status.value == "queued"]
            assert spine.work(queued, spine.worker()) in ("queued", "running", "completed")
            assert spine.work(spine.submit(repository_id=77), spine.worker()) == "completed"
    finally:
        models.db.close_all()


# ---------------------------------------------------------------- a later migration


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with our migrations in which a test writes the next one."""
    for name in NAMES:
        shutil.copy(schema.FOLDER / f"{name}.py", tmp_path)
    monkeypatch.setattr(schema, "FOLDER", tmp_path)
    monkeypatch.setattr(migrations, "__path__", [str(tmp_path)])
    return tmp_path


def write(folder: Path, name: str, *statements: str) -> None:
    lines = "".join(f"    run({statement!r})\n" for statement in statements)
    (folder / f"{name}.py").write_text(f"def up(run):\n{lines}")


def test_what_a_later_migration_makes_the_runtime_role_may_use(empty: Empty, later: Path) -> None:
    empty.migrate()
    write(later, "0901_notes", "create table notes (id bigserial primary key, text text not null)")
    assert schema.pending(empty.app) == ["0901_notes"]
    assert empty.migrate() == ["0901_notes"]
    with psycopg.connect(empty.app) as connection:
        connection.execute("insert into notes (text) values ('x')")
        connection.execute("update notes set text = 'y'")
    refused(empty.app, "drop table notes")
    refused(empty.app, "update job_events set kind = 'x'")


def test_a_migration_that_fails_leaves_nothing_of_itself(empty: Empty, later: Path) -> None:
    """It fits an empty database, not one with data: the statements before the bad one are taken back, too."""
    empty.migrate()
    empty.load(NAMES[0])
    write(
        later,
        "0902_careless",
        "create table half_made (id integer)",
        "alter table runner_jobs add column owner text not null",
    )
    write(later, "0903_next", "create table never_reached (id integer)")
    before = empty.rows()
    for _ in range(2):  # and the lock is free again
        with pytest.raises(errors.NotNullViolation):
            empty.migrate()
    assert empty.rows() == before and schema.pending(empty.app) == ["0902_careless", "0903_next"]
    write(later, "0902_careless", "alter table runner_jobs add column owner text not null default ''")
    sys.modules.pop("migrations.0902_careless")
    assert empty.migrate() == ["0902_careless", "0903_next"]


# ---------------------------------------------------------------- two at once


def test_two_processes_that_migrate_at_once_do_it_once(empty: Empty, tmp_path: Path) -> None:
    """Both are held before they begin until both are there."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "MOSAIC_DATA_DIR": str(tmp_path),
        "MOSAIC_DATABASE_URL": empty.app,
        "MOSAIC_DATABASE_OWNER_URL": empty.owner,
    }
    with psycopg.connect(empty.superuser, autocommit=True) as gate:
        gate.execute("select pg_advisory_lock(%s)", (schema._LOCK,))
        both = [
            subprocess.Popen(
                [sys.executable, "-m", "app", "migrate"],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for _ in range(2)
        ]
        end = time.monotonic() + 60
        while waiting(gate) < 2:
            assert time.monotonic() < end and all(process.poll() is None for process in both)
            time.sleep(0.01)
        gate.execute("select pg_advisory_unlock(%s)", (schema._LOCK,))
        said = sorted(process.communicate(timeout=60) for process in both)
    assert [process.returncode for process in both] == [0, 0]
    applied = "".join(f"applied {name}\n" for name in NAMES)
    assert said == [(applied, ""), ("nothing to do: the database is up to date\n", "")]


def waiting(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    """How many sessions of this database wait for an advisory lock."""
    row = connection.execute(
        "select count(*) from pg_locks where locktype = 'advisory' and not granted "
        "and database = (select oid from pg_database where datname = current_database())"
    ).fetchone()
    assert row is not None
    return int(str(row[0]))


# ---------------------------------------------------------------- rights


LEDGER = (
    "update job_events set data = '{}'",
    "update job_events set data = data where false",
    "delete from job_events",
    "truncate job_events",
    "truncate runner_jobs cascade",
)
DDL = (
    "create table mine (id integer)",
    "create schema mine",
    "create function mine() returns integer language sql as 'select 1'",
    "alter table runner_jobs add column mine integer",
    "alter table job_events disable trigger all",
    "drop trigger job_events_no_change on job_events",
    "create or replace function job_events_append_only() returns trigger language plpgsql as "
    "$$ begin return old; end $$",
    "create trigger mine before insert on runner_jobs for each row execute function job_events_append_only()",
    "drop table step_logs",
    "drop table job_events",
    "drop index job_steps_ready",
    "create index mine on runner_jobs (id)",
    "alter table job_events owner to mosaic_app",
    "set session_replication_role = replica",
    "set role mosaic_owner",
)
BOOKS = (
    "insert into schema_migrations (name, sha256) values ('9999_x', '')",
    "update schema_migrations set sha256 = ''",
    "delete from schema_migrations",
)


def test_the_runtime_role_may_write_rows_and_nothing_else(empty: Empty) -> None:
    empty.migrate()
    empty.load(NAMES[0])
    for statement in (*LEDGER, *BOOKS, *DDL):
        try:
            refused(empty.app, statement)
        except BaseException:
            print(f"not refused: {statement}")
            raise
    with psycopg.connect(empty.app, autocommit=True) as connection:
        connection.execute("grant update, delete on job_events to mosaic_app")  # answered with a mere warning
    refused(empty.app, LEDGER[0])
    with psycopg.connect(empty.app, autocommit=True) as connection:
        connection.execute("update runner_jobs set detail = 'x'")
        connection.execute("delete from huey_task")
        connection.execute(
            "insert into job_events (job_id, seq, kind, at, actor, data, prev, hash) "
            "values (1, 1000, 'job.created', now(), 'x', '{}', '', '')"
        )


def test_the_owner_itself_cannot_change_the_ledger_by_accident(empty: Empty) -> None:
    empty.migrate()
    empty.load(NAMES[0])
    for statement in (LEDGER[0], *LEDGER[2:]):
        refused(empty.owner, statement)
    refused(empty.owner, "delete from runner_jobs where id = 1", errors.ForeignKeyViolation)


def test_nothing_is_deleted_along_with_something_else(empty: Empty) -> None:
    empty.migrate()
    with psycopg.connect(empty.owner) as connection:
        found = connection.execute(
            "select conname from pg_constraint where contype = 'f' and (confdeltype <> 'a' or confupdtype <> 'a')"
        ).fetchall()
    assert found == []


# ---------------------------------------------------------------- the schema and those who rely on it


def test_the_models_declare_columns_that_are_there(database: str) -> None:
    tables: list[type[Model]] = [model for model in models.Table.__subclasses__()]
    assert len(tables) >= 12
    for table in tables:
        name = table._meta.table_name  # type: ignore[attr-defined]
        there = {column.name for column in models.db.get_columns(name)}
        declared = {field.column_name for field in table._meta.sorted_fields}  # type: ignore[attr-defined]
        assert declared <= there, (name, declared - there)


def test_another_server_is_refused_by_its_version(empty: Empty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIN_SERVER", 990000)
    with pytest.raises(schema.SchemaError, match=r"PostgreSQL 18 is not supported: use 15 to 18\."):
        empty.migrate()
    monkeypatch.undo()
    assert schema.pending(empty.owner) == NAMES
