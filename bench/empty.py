"""Jobs of empty steps through the real consumers: the hop from step to step, jobs per minute, recovery from kill -9."""

from __future__ import annotations

import os
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from app import schema, stitcher
from app.audit import verify as audit_verify
from app.edge import connected, open_database
from app.ledger.chain import entry, transaction
from app.postgres import Cluster
from app.processes import bound_to_us
from app.types import Trigger
from bench.noop import CHAIN, SHORT, install
from bench.report import Figure

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")
CHAINS = 30
JOBS = 400
KILLS = 7
LARGE_JOBS, LARGE_EVENTS, CHUNK = 60, 2000, 500
LIMIT = 120.0


class Bench:
    """A database of its own, and consumers of empty steps on it."""

    def __init__(self, data: Path, cluster: Cluster) -> None:
        self.data, self.cluster = data, cluster
        self.env = {
            "PATH": os.environ["PATH"],
            "MOSAIC_DATA_DIR": str(data),
            "MOSAIC_GITEA_URL": "http://127.0.0.1:9",  # nobody listens there, and no empty step asks
            "MOSAIC_GITEA_TOKEN": secrets.token_hex(20),
            "MOSAIC_GITEA_WEBHOOK_SECRET": secrets.token_hex(24),
            "MOSAIC_LOG_LEVEL": "WARNING",
            "PYTHONUNBUFFERED": "1",
        }
        self._submitted = 0

    @contextmanager
    def consumer(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A control consumer, ready for work; killed at the end with all that it started."""
        before = len(self.workers())
        with (self.data / "consumer.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.noop", *words], cwd=ROOT, env=self.env, stdout=log, stderr=log,
                process_group=0, preexec_fn=bound_to_us(signal.SIGKILL),
            )  # fmt: skip
        try:
            self.until(lambda: len(self.workers()) > before, "a consumer")
            yield process
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(15 if number == signal.SIGTERM else None)

    def workers(self) -> list[dict[str, Any]]:
        return self.sql("select id, pid from workers where ended_at is null order by id")

    def sql(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.cluster.app_url, row_factory=dict_row) as connection:
            return connection.execute(statement, values).fetchall()

    def until(self, look: Callable[[], T], what: str) -> T:
        end = time.monotonic() + LIMIT
        while not (found := look()):
            if time.monotonic() > end:
                raise RuntimeError(f"waited {LIMIT:g} s for {what}; see {self.data / 'consumer.log'}")
            time.sleep(0.002)
        return found

    def submit(self, pipeline: str) -> int:
        self._submitted += 1
        trigger = Trigger(
            kind="cli", repository_id=self._submitted % 50 + 1, repository=f"bench/{self._submitted % 50 + 1}",
            number=None, is_pull=False, object_id=0, actor_id=1, actor="bench", text="x", text_sha256="0" * 64,
            at="2026-01-01T00:00:00+00:00",
        )  # fmt: skip
        with connected(), transaction():
            job = stitcher.submit(
                trigger, trigger_key=f"bench:{self._submitted}", instructions="x", pipeline=pipeline, requester="cli:b"
            )
        assert job is not None
        return job

    def ended(self, job: int) -> bool:
        return bool(self.sql("select 1 as yes from runner_jobs where id = %s and finished_at is not null", job))


@contextmanager
def bench(data: Path) -> Iterator[Bench]:
    with Cluster(data).opened() as cluster:
        schema.migrate(cluster.owner_url, cluster.app_url)
        open_database(cluster.app_url, "bench")
        install()
        yield Bench(data, cluster)


def hop(here: Bench, floor_ms: float, peers: dict[str, float]) -> Figure:
    """Milliseconds from a step's start to its successor's, over jobs of empty steps, one at a time."""
    with here.consumer():
        times = [_chain(here) for _ in range(CHAINS + 5)][5:]  # the first ones warm up
    ours, best = statistics.median(times), min(peers.values(), default=0.0)
    ratio, beside = ours / floor_ms, f"; the fastest of these peers {best:.2f} ms" if peers else ""
    return Figure(
        "durable, audited step hop (claim, run, record, ring next)",
        "≤ 8 one-row commits, and faster than DBOS, Celery, Procrastinate",
        f"{ours:.2f} ms = {ratio:.1f} commits{beside}",
        ratio <= 8 and (not peers or ours < best),
        {"ms": ours, "commits": ratio, "fastest_peer_ms": best},
    )


def _chain(here: Bench) -> float:
    job = here.submit("chain")
    here.until(lambda: here.ended(job), "the chain")
    row = here.sql(
        "select extract(epoch from max(started_at) - min(started_at))::float * 1000 as ms, count(*) as n "
        "from job_steps where job_id = %s",
        job,
    )[0]
    assert row["n"] == CHAIN, f"a chain of {row['n']} steps"
    return float(row["ms"]) / (CHAIN - 1)


def throughput(here: Bench) -> Figure:
    """Jobs of six empty steps, from the first submission to the last end, by one consumer process."""
    with here.consumer():
        first = here.submit("short")
        here.until(lambda: here.ended(first), "the first job")
        began = time.monotonic()
        jobs = [here.submit("short") for _ in range(JOBS)]
        look = "select count(*) as n from runner_jobs where id >= %s and finished_at is not null"
        here.until(lambda: here.sql(look, jobs[0])[0]["n"] >= JOBS, "all jobs")
        rate = JOBS / (time.monotonic() - began) * 60
    return Figure(
        f"no-op jobs ({SHORT} steps) per minute", "≥ 3,000", f"{rate:,.0f}", rate >= 3000, {"jobs_per_minute": rate}
    )


def recovery(here: Bench) -> list[Figure]:
    """From kill -9 of the owner of a step to the start of that step by somebody else."""
    beside, alone = [], []
    for _ in range(KILLS):
        with here.consumer(), here.consumer():
            beside.append(_kill_owner(here))
            # a fresh supervisor each time: one that sees a child die again and again waits longer and longer
        with here.consumer("--supervised"):
            alone.append(_kill_owner(here))
    return [
        _recovered("recovery after kill -9, a second worker is there", 100, beside),
        _recovered("recovery after kill -9 of the only worker, under its supervisor", 1500, alone),
    ]


def _kill_owner(here: Bench) -> float:
    job = here.submit("fatal")
    look = (
        "select w.pid from job_steps s join workers w on w.id = s.worker_id "
        "where s.job_id = %s and s.name = 'noop.fatal' and s.status = 'running'"
    )
    pid = here.until(lambda: here.sql(look, job), "the step")[0]["pid"]
    time.sleep(0.3)  # the owner is in the middle of it
    at = here.sql("select clock_timestamp() as now")[0]["now"]
    os.kill(pid, signal.SIGKILL)
    here.until(lambda: here.ended(job), "the job")
    events = here.sql(
        "select at from job_events where job_id = %s and kind = 'step.started' and step like 'noop.fatal%%' "
        "order by seq",
        job,
    )
    return float((events[1]["at"] - at).total_seconds() * 1000)


def _recovered(name: str, target: float, times: list[float]) -> Figure:
    middle, worst = statistics.median(times), max(times)
    return Figure(
        name,
        f"≤ {target:g} ms",
        f"median {middle:.0f} ms, longest of {len(times)} {worst:.0f} ms",
        worst <= target,
        {"median_ms": middle, "worst_ms": worst},
    )


def verify(here: Bench) -> Figure:
    """`audit verify` over everything that this bench has written, and a large ledger of output beside it."""
    for _ in range(LARGE_JOBS):
        job = here.submit("short")
        for _ in range(LARGE_EVENTS // CHUNK):
            with connected(), entry(job) as locked:
                for n in range(CHUNK):
                    locked.event("step.output", text=f"line {n} of the output of a step that says much")
    began = time.monotonic()
    found = audit_verify(here.cluster.app_url)
    rate = found.events / (time.monotonic() - began)
    broken = [str(one) for one in found.violations if one.invariant in ("chain", "anchored")]
    if broken:
        raise RuntimeError(f"the bench's own ledger does not verify: {broken[:3]}")
    return Figure(
        "audit verify",
        "≥ 100,000 events/s",
        f"{rate:,.0f} events/s over {found.events:,} events of {found.jobs:,} jobs",
        rate >= 100_000,
        {"events_per_second": rate, "events": float(found.events)},
    )
