"""The status pages over real HTTP, on a real PostgreSQL, with jobs that the stitcher and the ledger made.

Whatever a stranger wrote is shown as text; whoever is not on this machine sees nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psycopg
import pytest
from werkzeug.test import Client, TestResponse

from app import edge, models, page_job, page_views, queries, schema, stitcher
from app.ledger import chain, effects, jobs, steps, workers
from app.ledger.chain import entry, transaction
from app.postgres import Cluster
from app.types import Done, Failed, GateResult, GateSpec, HandBack, JobStatus, Result, StepStatus, Trigger, Usage
from app.worker import Worker

LOCAL = "http://127.0.0.1:8080"
FORGE = "https://git.example.org/forge"
TREE = "4f1c" * 10
BASE = "9a0b" * 10
GATES = (
    GateSpec("lint", "lint", "ruff check .", order=10),
    GateSpec("test", "test", "python -m pytest -q", order=20),
    GateSpec("coverage", "coverage", "coverage report", required=False, order=20, min=85.0),
)
HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</pre></details><script src=//evil.example></script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "<!-- -->]]><svg onload=alert(1)>",
    "' autofocus onfocus=alert(1) x='",
)
HIDDEN = "\x1b[31mred\x1b[0m \x1b]0;title\x07\u202eevil\u202c\u200b\u2066x\u2069\x00\x08"


# ---------------------------------------------------------------- a Mosaic with its database


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One database server for all tests of this file."""
    data_dir = Path(tempfile.mkdtemp(prefix="pages-"))
    server = Cluster(data_dir)
    server.start()
    schema.migrate(server.owner_url, server.app_url)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(data_dir, ignore_errors=True)


@pytest.fixture
def web_process(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is a freshly started web process."""
    with as_web_process(cluster, monkeypatch):
        yield


@contextmanager
def as_web_process(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, **more: str) -> Iterator[None]:
    environment = {"MOSAIC_DATA_DIR": str(cluster.data_dir), "MOSAIC_GITEA_URL": FORGE,
                   "MOSAIC_GITEA_WEBHOOK_SECRET": "a secret of the tests", "MOSAIC_LISTEN": "127.0.0.1:8080", **more}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    edge.settings.cache_clear()
    edge._started = False
    edge._ready()
    try:
        yield
    finally:
        models.db.close_all()
        edge.settings.cache_clear()
        edge._started = False


@pytest.fixture
def database(cluster: Cluster, web_process: None) -> Iterator[None]:
    """Empty tables and a connection of the test's own."""
    with psycopg.connect(cluster.owner_url, autocommit=True) as owner:
        owner.execute("alter table job_events disable trigger all")
        owner.execute("truncate runner_jobs, workers, users, repositories, huey_task restart identity cascade")
        owner.execute("alter table job_events enable trigger all")
    with models.db.connection_context():
        yield


@pytest.fixture
def http(database: None) -> Client:
    from app.web import create_app

    return create_app().test_client()


def get(http: Client, path: str, **more: Any) -> TestResponse:
    return http.get(path, base_url=more.pop("base_url", LOCAL), **more)


def text(http: Client, path: str, **more: Any) -> str:
    answer = get(http, path, **more)
    assert answer.status_code == 200, answer.text
    return answer.text


# ---------------------------------------------------------------- jobs made by the real stitcher


class Story:
    """Plays the consumers: claims ready steps and records results, through the ledger and the stitcher."""

    def __init__(self) -> None:
        self.worker = workers.register("story", socket.gethostname(), os.getpid(), "control", 4, "test")
        for pool in ("agents", "gates"):
            workers.register(f"story-{pool}", socket.gethostname(), os.getpid(), pool, 4, "test")
        self.object_id = 1000

    def submit(self, title: str = "Login fails after a password reset", text: str = "@mosaic fix this",
               number: int | None = 42, repository: str = "acme/shop", repository_id: int = 7, actor: str = "alice",
               instructions: str = "fix this", priority: int = 0, is_pull: bool = False) -> int:
        self.object_id += 1
        trigger = Trigger(kind="comment", repository_id=repository_id, repository=repository, number=number,
                          is_pull=is_pull, object_id=self.object_id, actor_id=11, actor=actor, text=text,
                          text_sha256="ab" * 32, issue_title=title, issue_body=text, issue_author="bob")
        with transaction():
            job_id = stitcher.submit(trigger, trigger_key=f"test:{self.object_id}", instructions=instructions,
                                     priority=priority)
        assert job_id is not None
        return job_id

    def claim(self, job_id: int, name: str) -> dict[str, Any]:
        pending = [step for step in queries.steps(job_id) if step.name == name and step.status is StepStatus.PENDING]
        row = steps.claim(pending[-1].id, self.worker, "host-1")
        assert row is not None, f"{name} is not ready"
        return row

    def do(self, job_id: int, name: str, result: Result | None = None, log: str = "") -> None:
        row = self.claim(job_id, name)
        if log:
            steps.log(row["id"], log)
        assert stitcher.record(row, result or Done())

    def admit(self, job_id: int, gates: tuple[GateSpec, ...] = GATES, **facts: Any) -> None:
        limits = {"minutes": 60, "rounds": 3, "attempts": 2, "tokens": 2_000_000, "cost_usd": 5.0, "concurrent": 1}
        self.do(job_id, "runner.admit", Done(facts={
            "branch": f"mosaic/issue-{job_id}", "base_sha": BASE, "default_branch": "main",
            "gates": [asdict(gate) for gate in gates], "rules": {"limits": limits}, **facts}))

    def prepare(self, job_id: int) -> None:
        self.do(job_id, "runner.snapshot")
        self.do(job_id, "runner.checkout", Done({"fence": 3}))
        self.do(job_id, "runner.setup", log="$ pip install -e .\nSuccessfully installed shop-1.4\n")

    def implement(self, job_id: int, calls: int = 14, total: int = 31_400, cost: float = 0.42) -> None:
        row = self.claim(job_id, "weaver.implement")
        steps.event(row, "ai.tool_called", tool="edit", path="shop/session.py", ok=True, note="")
        steps.tokens(row, Usage(input=total - 400, output=400, total=total, cost_usd=cost), Usage())
        assert stitcher.record(row, Done({"text": "Done.", "tool_calls": calls}))
        self.do(job_id, "runner.commit", Done({"tree": TREE, "commit": "c0ffee" * 6 + "abcd"}))
        self.do(job_id, "inspector.policy")

    def gate(self, job_id: int, name: str, passed: bool, output: str = "", why: str = "", **more: Any) -> None:
        spec = next(gate for gate in queries.gates(job_id) if gate.name == name)
        receipt = GateResult(name, spec.type, spec.command, spec.required, passed, 0 if passed else 1, 3.21,
                             why or ("It ended with exit code 0." if passed else "It ended with exit code 1."),
                             output, tree_sha=TREE, **more)
        kept = {"receipt": asdict(receipt), "required": spec.required, "passed": passed, "why": receipt.why}
        result = Done(kept) if passed else Failed("gate_red", receipt.why, output=kept)
        self.do(job_id, f"inspector.gate.{name}", result, log=f"$ {spec.command}\n{output}")

    def publish(self, job_id: int, number: int = 57) -> None:
        with transaction():
            key, target = f"job:{job_id}:push", {"repository_id": 7, "branch": "mosaic/issue-42", "sha": "c0ffee" * 6}
            effects.plan_once(key, "push", target, job_id=job_id)
        effect = effects.claim(queries.effect(key)["id"], self.worker)  # type: ignore[index]
        assert effect and effects.done(effect, "mosaic/issue-42", {"sha": "c0ffee" * 6})
        self.do(job_id, "herald.publish", Done(facts={"pull_request": number, "head_sha": "c0ffee" * 6}, conclude="done"))

    def close(self, job_id: int) -> None:
        self.do(job_id, "herald.report")
        self.do(job_id, "runner.cleanup")

    def whole(self, **more: Any) -> int:
        """A job that needed two rounds."""
        job_id = self.submit(**more)
        self.admit(job_id)
        self.prepare(job_id)
        self.implement(job_id)
        self.gate(job_id, "lint", True, "All checks passed!")
        self.gate(job_id, "test", False, "E  assert 302 == 200\n2 failed, 38 passed", counts={"tests": 40, "failures": 2})
        self.gate(job_id, "coverage", False, "TOTAL 81%", why="Coverage is 81.0 %, below 85 %.", coverage=81.0)
        self.implement(job_id, calls=5, total=9_000, cost=0.11)
        for name in ("lint", "test", "coverage"):
            self.gate(job_id, name, True, "ok", counts={"tests": 40} if name == "test" else {})
        self.publish(job_id)
        self.close(job_id)
        return job_id

    def working(self, **more: Any) -> int:
        """A job whose agent is at work."""
        job_id = self.submit(**more)
        self.admit(job_id)
        self.prepare(job_id)
        row = self.claim(job_id, "weaver.implement")
        steps.progress(row, {"calls": 7, "tool": "edit", "path": "shop/session.py", "tokens": 18_250})
        return job_id


@pytest.fixture
def story(database: None) -> Story:
    return Story()
