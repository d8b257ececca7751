"""The tables as Peewee models. Only ledger.py, queries.py and queue.py import this module; rows never leave them.

The schema itself is made by migrations/; these classes declare what the code relies on.
"""

from __future__ import annotations

from typing import Any

import psycopg
from peewee import (
    BigIntegerField,
    BlobField,
    BooleanField,
    CompositeKey,
    DatabaseProxy,
    DateTimeField,
    FloatField,
    IntegerField,
    InterfaceError,
    Model,
    OperationalError,
    TextField,
)
from playhouse.pool import MaxConnectionsExceeded
from playhouse.postgres_ext import BinaryJSONField
from psycopg.conninfo import conninfo_to_dict

from app.pipelined import Asked, PipelinedDatabase

db = DatabaseProxy()
# The database is away, broke off, or asks to try again (a deadlock): the same work later may succeed.
UNAVAILABLE = (
    OperationalError,
    InterfaceError,
    MaxConnectionsExceeded,
    psycopg.OperationalError,
    psycopg.errors.IdleInTransactionSessionTimeout,
)
# The server ends a connection to a host that lost its power or its cable after about 25 s, not after two hours.
KEEPALIVE = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
FROZEN_SECONDS = 30  # a process that is frozen inside a transaction holds its locks no longer than this


def bind(url: str, *, max_connections: int = 20, application_name: str = "mosaic") -> None:
    """Connect the models to the PostgreSQL named by a libpq URL. Opens no connection yet.

    All processes of a host together stay below the 100 connections that a server allows by default.
    """
    params: dict[str, Any] = dict(conninfo_to_dict(url))
    name = params.pop("dbname", "mosaic")
    params = {"application_name": application_name, "connect_timeout": 10} | params
    frozen = f"-c idle_in_transaction_session_timeout={FROZEN_SECONDS}s {KEEPALIVE}"
    params["options"] = f"{params.get('options', '')} {frozen}".strip()
    # A dead peer is noticed in about 25 s instead of two hours: session locks tell who is alive.
    params |= {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
    db.initialize(PipelinedDatabase(name, max_connections=max_connections, stale_timeout=300, timeout=20, **params))


class Table(Model):
    class Meta:
        database = db


class Repository(Table):
    id = BigIntegerField(primary_key=True)
    full_name = TextField()
    default_branch = TextField(default="")
    trigger_label = TextField(default="mosaic")
    private = BooleanField(default=True)
    seen_at = DateTimeField()

    class Meta:
        table_name = "repositories"


class User(Table):
    id = BigIntegerField(primary_key=True)
    login = TextField()
    is_self = BooleanField(default=False)

    class Meta:
        table_name = "users"


class Worker(Table):
    boot_id = TextField()
    host = TextField()
    pid = IntegerField()
    pool = TextField()
    slots = IntegerField()
    version = TextField()
    signer = TextField(default="")
    draining = BooleanField(default=False)
    started_at = DateTimeField()
    heartbeat_at = DateTimeField()
    ended_at = DateTimeField(null=True)

    class Meta:
        table_name = "workers"


class RunnerJob(Table):
    pipeline = TextField()
    status = TextField()
    repository_id = BigIntegerField()
    repository = TextField()
    number = IntegerField(null=True)
    instructions = TextField(default="")
    requester = TextField()
    requester_id = BigIntegerField()
    trigger = BinaryJSONField(index=False)
    trigger_key = TextField(unique=True)
    priority = IntegerField(default=0)
    access = TextField(default="write")
    reason = TextField(null=True)
    detail = TextField(default="")
    retry_of = BigIntegerField(null=True)
    branch = TextField(null=True)
    base_sha = TextField(null=True)
    default_branch = TextField(null=True)
    pull_request = IntegerField(null=True)
    head_sha = TextField(null=True)
    rules = BinaryJSONField(null=True, index=False)
    gates = BinaryJSONField(default=list, index=False)
    authority = BinaryJSONField(null=True, index=False)
    cancel_requested_at = DateTimeField(null=True)
    cancelled_by = TextField(null=True)
    created_at = DateTimeField()
    queued_at = DateTimeField(null=True)
    started_at = DateTimeField(null=True)
    finished_at = DateTimeField(null=True)
    deadline_at = DateTimeField(null=True)
    tokens = BigIntegerField(default=0)
    cost_usd = FloatField(default=0)
    fence = BigIntegerField(default=0)
    event_seq = IntegerField(default=0)
    event_hash = TextField(default="")
    metadata = BinaryJSONField(default=dict, index=False)
    host = TextField(null=True)
    forge_wait_since = DateTimeField(null=True)

    class Meta:
        table_name = "runner_jobs"


class JobStep(Table):
    job_id = BigIntegerField()
    name = TextField()
    round = IntegerField()
    attempt = IntegerField()
    status = TextField(default="pending")
    phase = TextField()
    type = TextField()
    pool = TextField()
    ord = IntegerField()
    fence = BigIntegerField(default=0)
    crashes = IntegerField(default=0)
    excused = IntegerField(default=0)
    faults = IntegerField(default=0)
    worker_id = BigIntegerField(null=True)
    lease_until = DateTimeField(null=True)
    run_after = DateTimeField(null=True)
    ready_at = DateTimeField(null=True)
    rung_at = DateTimeField(null=True)
    output = BinaryJSONField(default=dict, index=False)
    progress = BinaryJSONField(null=True, index=False)
    reason = TextField(default="")
    detail = TextField(default="")
    host = TextField(default="")
    started_at = DateTimeField(null=True)
    finished_at = DateTimeField(null=True)

    class Meta:
        table_name = "job_steps"


class JobEvent(Table):
    job_id = BigIntegerField()
    seq = IntegerField()
    kind = TextField()
    at = DateTimeField()
    actor = TextField()
    step = TextField(null=True)
    data = TextField()
    prev = TextField()
    hash = TextField()

    class Meta:
        table_name = "job_events"


class Delivery(Table):
    source = TextField()
    delivery_id = TextField()
    dedup_key = TextField(null=True)
    event = TextField(default="")
    state = TextField()
    reason = TextField(default="")
    body = BlobField(null=True)
    trigger = BinaryJSONField(null=True, index=False)
    commands = BinaryJSONField(null=True, index=False)
    job_id = BigIntegerField(null=True)
    attempts = IntegerField(default=0)
    run_after = DateTimeField(null=True)
    received_at = DateTimeField()
    via = TextField(default="webhook")

    class Meta:
        table_name = "deliveries"


class ReconcileCursor(Table):
    repository_id = BigIntegerField()
    source = TextField()
    read_to = DateTimeField()
    not_before = DateTimeField()
    looked_at = DateTimeField(null=True)
    failures = IntegerField(default=0)
    retry_at = DateTimeField(null=True)
    error = TextField(default="")

    class Meta:
        table_name = "reconcile_cursors"
        primary_key = CompositeKey("repository_id", "source")


class Reconciler(Table):
    one = BooleanField(primary_key=True, default=True)
    worker_id = BigIntegerField(null=True)
    lease_until = DateTimeField(null=True)
    began_at = DateTimeField(null=True)
    completed_at = DateTimeField(null=True)
    retry_at = DateTimeField(null=True)
    failures = IntegerField(default=0)
    error = TextField(default="")

    class Meta:
        table_name = "reconciler"


class Effect(Table):
    key = TextField(unique=True)
    job_id = BigIntegerField(null=True)
    delivery_id = BigIntegerField(null=True)
    kind = TextField()
    target = BinaryJSONField(index=False)
    state = TextField(default="planned")
    external_id = TextField(null=True)
    result = BinaryJSONField(default=dict, index=False)
    wanted = IntegerField(default=1)
    told = IntegerField(default=0)
    attempts = IntegerField(default=0)
    next_at = DateTimeField()
    worker_id = BigIntegerField(null=True)
    lease_until = DateTimeField(null=True)
    fence = BigIntegerField(default=0)
    error = TextField(default="")
    done_at = DateTimeField(null=True)
    code = TextField(default="")
    waiting_since = DateTimeField(null=True)
    failed_at = DateTimeField(null=True)
    failed_in = TextField(null=True)
    dropped_at = DateTimeField(null=True)
    unsure = BooleanField(default=False)
    settle_at = DateTimeField(null=True)
    settled = IntegerField(default=0)

    class Meta:
        table_name = "effects"


class CircuitBreaker(Table):
    service = TextField(primary_key=True)
    state = TextField(default="closed")
    failures = IntegerField(default=0)
    since = DateTimeField(null=True)
    code = TextField(default="")
    detail = TextField(default="")
    opened_at = DateTimeField(null=True)
    closed_at = DateTimeField(null=True)
    probes = IntegerField(default=0)
    next_probe_at = DateTimeField(null=True)
    probe_until = DateTimeField(null=True)
    fence = BigIntegerField(default=0)

    class Meta:
        table_name = "circuit_breakers"


class Pause(Table):
    repository_id = BigIntegerField(null=True)  # null = everything
    repository = TextField(default="")
    actor = TextField()
    at = DateTimeField()
    ended_by = TextField(null=True)
    ended_at = DateTimeField(null=True)

    class Meta:
        table_name = "pauses"


class Turn(Table):
    scope = TextField()
    who = BigIntegerField()
    at = DateTimeField()

    class Meta:
        table_name = "turns"
        primary_key = CompositeKey("scope", "who")


class QualityGate(Table):
    scope = TextField(default="*")
    name = TextField()
    type = TextField()
    command = TextField()
    expect = TextField(default="")
    min = FloatField(null=True)
    required = BooleanField(default=True)
    ord = IntegerField(default=10)
    timeout = IntegerField(default=900)
    report = TextField(default="")
    enabled = BooleanField(default=True)

    class Meta:
        table_name = "quality_gates"


class GateResultRow(Table):
    job_id = BigIntegerField()
    step_id = BigIntegerField(unique=True)
    round = IntegerField()
    name = TextField()
    type = TextField()
    command = TextField()
    required = BooleanField()
    passed = BooleanField()
    exit_code = IntegerField(null=True)
    seconds = FloatField()
    why = TextField()
    output = TextField()
    counts = BinaryJSONField(default=dict, index=False)
    coverage = FloatField(null=True)
    tree_sha = TextField()
    timed_out = BooleanField(default=False)

    class Meta:
        table_name = "gate_results"


class ContextSnapshot(Table):
    job_id = BigIntegerField(unique=True)
    sha256 = TextField()
    body = BinaryJSONField(index=False)

    class Meta:
        table_name = "context_snapshots"


class AuditAnchor(Table):
    seq = BigIntegerField(primary_key=True)
    at = DateTimeField()
    body = TextField()
    hash = TextField()
    key = TextField()
    signature = TextField()
    max_id = BigIntegerField()
    low_xid = BigIntegerField()
    high_xid = BigIntegerField()

    class Meta:
        table_name = "audit_anchors"


class StepLog(Table):
    step_id = BigIntegerField()
    at = DateTimeField()
    text = TextField()

    class Meta:
        table_name = "step_logs"


def fetch(sql: str, *params: Any) -> list[dict[str, Any]]:
    """Rows of a statement as dicts, inside whatever transaction is open."""
    return _rows(db.execute_sql(sql, params))


def _rows(cursor: Any) -> list[dict[str, Any]]:
    answer = cursor.pgresult  # `description` would make an object of every column
    names = [answer.fname(at).decode() for at in range(answer.nfields)]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def fetch_one(sql: str, *params: Any) -> dict[str, Any] | None:
    rows = fetch(sql, *params)
    return rows[0] if rows else None


def execute(sql: str, *params: Any) -> int:
    """Run a statement that returns no rows; how many rows it touched."""
    return int(db.execute_sql(sql, params).rowcount)


def send(sql: str, *params: Any) -> None:
    """Run a statement whose answer nobody needs: it travels with the next one of the transaction, or with COMMIT."""
    db.send(sql, params)


class Answer:
    """Rows that are on their way: they are here when somebody looks at them."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._rows: list[dict[str, Any]] | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        if self._rows is None:
            self._rows = _rows(self._asked.answer())
        return self._rows

    @property
    def count(self) -> int:
        """How many rows a statement that returns none has touched."""
        return int(self._asked.answer().rowcount)


def ask(sql: str, *params: Any) -> Answer:
    """Run a statement whose answer is looked at later; it travels with the next one whose answer is."""
    return Answer(db.ask(sql, params))
