"""Fixtures for everybody: servers are started once per test process, every test gets a place of its own in them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from app import models, schema
from app.postgres import Cluster

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real PostgreSQL whose database `mosaic` has the newest schema and no rows: the template of every test's own."""
    with Cluster(tmp_path_factory.mktemp("postgres")).opened() as running:
        schema.migrate(running.owner_url, running.app_url)
        yield running


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    """A fresh database with the newest schema: its URL for the runtime role. The models are bound to it."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(cluster.url("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template mosaic owner mosaic_owner").format(sql.Identifier(name))
        )
    url = cluster.url("mosaic_app", name)
    models.bind(url, application_name=name)
    with models.db.connection_context():
        yield url
    models.db.close_all()
    with psycopg.connect(cluster.url("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def session_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("session")


# Modules that start servers or many processes, or search long: left out of `make quick`, part of `make test`.
LONG = frozenset(
    [
        "test_postgres",
        "test_processes",
        "test_sandbox",
        "test_client_git",
        "test_client_gitea",
        "test_client_openclaw",
        "test_gitea_subtleties",
        "test_spine_faults",
        "test_ownership",
        "test_client_tls",
        "test_world_gitea",
        "test_pages",
        "test_quality_rails",
        "test_reports",
        "test_redact",
        "test_rules",
        "test_engine",
        "test_schema",
        "test_cli",
        "test_effects",
        "test_receiver",
        "test_audit",
        "test_audit_remote",
        "test_deploy",
        "test_logs",
        "test_doctor",
        "test_gc",
        "test_health",
        "test_backup",
        "test_wip",
        "test_wip_push",
        "test_bots",
        "test_moved",
        "test_reconcile",
        "test_hosts",
        "test_control",
        "test_bell_storage",
    ]
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in LONG:
            item.add_marker(pytest.mark.slow)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a failure at once: a long run should not keep it to itself until its end."""
    if report.failed and not os.environ.get("PYTEST_XDIST_WORKER"):
        last = report.longreprtext.strip().splitlines()[-1:]
        print(f"\n{report.nodeid} ({report.when}) failed: {''.join(last)[:300]}", flush=True)
