"""What `/metrics` says, as Prometheus reads it: one table of metrics, their values counted in the database.

One rule: a label names a kind of thing (a pool, a step's name, a result), never one thing (a repository, a job).
All web processes answer the same: the values come from the database, and counters never go back.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from app import queries
from app.queries import of_operations as counted
from app.types import JobStatus, Pool
from app.worker import VERSION

# name → (kind, help, labels). docs/operations.md explains each.
METRICS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "mosaic_build_info": ("gauge", "Version of Mosaic and of Python; always 1.", ("version", "python")),
    "mosaic_jobs": ("gauge", "Open jobs.", ("status",)),
    "mosaic_jobs_ended": ("counter", "Jobs that ended.", ("status", "reason")),
    "mosaic_tokens": ("counter", "Tokens that all jobs used.", ()),
    "mosaic_cost_usd": ("counter", "US dollars that all jobs cost, by the prices in the settings.", ()),
    "mosaic_queue_depth": ("gauge", "Steps whose turn has come and that no worker has taken.", ("pool",)),
    "mosaic_queue_age_seconds": ("gauge", "How long the oldest of them waits.", ("pool",)),
    "mosaic_steps_running": ("gauge", "Steps that run.", ("pool",)),
    "mosaic_steps_ended": ("counter", "Steps that ended.", ("step", "result")),
    "mosaic_hop_seconds": ("histogram", "From a step's turn to its start.", ("pool",)),
    "mosaic_workers": ("gauge", "Consumer processes that live and take work.", ("pool",)),
    "mosaic_effects": ("gauge", "Writes to the outside: planned (waiting), done, failed (dead).", ("kind", "state")),
    "mosaic_effects_written": ("counter", "Versions of them that were written.", ("kind",)),
    "mosaic_effects_age_seconds": ("gauge", "How long the oldest of them that was never written waits.", ()),
    "mosaic_deliveries": ("counter", "Webhooks received.", ("state",)),
    "mosaic_breaker_open": ("gauge", "1 while nothing is sent there because it is away.", ("service",)),
    "mosaic_reconcile_lag_seconds": ("gauge", "Since the last look for mentions whose webhook never came.", ()),
    "mosaic_oldest_transaction_seconds": ("gauge", "Age of the oldest open transaction of the database.", ()),
    "mosaic_database_bytes": ("gauge", "Size of the database.", ()),
    "mosaic_disk_free_bytes": ("gauge", "Free space where the data directory is.", ()),
}
Rows = list[dict[str, Any]]


@dataclass
class Tally:
    """Counts of a table that only grows. What cannot change any more is counted once, the rest at every look."""

    mark: Callable[[int], int]
    count: Callable[[int, int | None], Rows]
    known: int = 0
    kept: Rows = field(default_factory=list)

    def rows(self) -> Rows:
        upto = self.mark(self.known)
        if upto > self.known:
            self.kept += self.count(self.known, upto)
            self.kept, self.known = merged(self.kept), upto
        return merged([*self.kept, *self.count(self.known, None)])


def merged(rows: Iterable[dict[str, Any]]) -> Rows:
    """Rows with the same words added up, number by number."""
    sums: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        words = tuple(value for value in row.values() if isinstance(value, str))
        if words in sums:
            sums[words] = {name: v if isinstance(v, str) else v + row[name] for name, v in sums[words].items()}
        else:
            sums[words] = dict(row)
    return list(sums.values())


class Database(Collector):
    """Everything of METRICS, read anew at every scrape. The caller has the database open."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._mutex = threading.Lock()
        self._jobs = Tally(counted.job_mark, counted.ended_jobs)
        self._steps = Tally(counted.job_mark, counted.ended_steps)
        self._deliveries = Tally(counted.delivery_mark, counted.received)

    def collect(self) -> Iterator[Metric]:
        with self._mutex:
            jobs, steps, deliveries = self._jobs.rows(), self._steps.rows(), self._deliveries.rows()
        yield _family("mosaic_build_info", [((VERSION, platform.python_version()), 1)])
        yield from _of_jobs(jobs)
        yield from _of_queue()
        yield from _of_steps(steps)
        yield from _of_effects()
        yield _family("mosaic_deliveries", [((row["state"],), row["n"]) for row in deliveries])
        yield from _of_outside()
        yield from _of_server(self._data_dir)


def text(collector: Database) -> bytes:
    """The answer to a scrape, in Prometheus' text format."""
    return bytes(generate_latest(collector))


Samples = Iterable[tuple[tuple[str, ...], float]]


def _family(name: str, samples: Samples) -> Metric:
    kind, help_text, labels = METRICS[name]
    made = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, help_text, labels=labels)
    for values, number in samples:
        made.add_metric(values, number)
    return made


def _of_jobs(rows: Rows) -> Iterator[Metric]:
    counts = queries.job_counts()
    open_statuses = [status.value for status in JobStatus if not status.terminal]
    yield _family("mosaic_jobs", [((status,), counts.get(status, 0)) for status in open_statuses])
    ended = [row for row in rows if row["status"] != "open"]
    yield _family("mosaic_jobs_ended", [((row["status"], row["reason"]), row["jobs"]) for row in ended])
    yield _family("mosaic_tokens", [((), sum(row["tokens"] for row in rows))])
    yield _family("mosaic_cost_usd", [((), sum(row["usd"] for row in rows))])


def _of_queue() -> Iterator[Metric]:
    found, alive = {row["pool"]: row for row in counted.waiting_steps()}, queries.live_workers()
    pools = [pool.value for pool in Pool]
    for name, column in (("queue_depth", "depth"), ("queue_age_seconds", "age"), ("steps_running", "running")):
        yield _family(f"mosaic_{name}", [((pool,), found.get(pool, {}).get(column, 0)) for pool in pools])
    yield _family("mosaic_workers", [((pool,), alive.get(pool, 0)) for pool in pools])


def _of_steps(rows: Rows) -> Iterator[Metric]:
    by_result = merged({"step": row["step"], "result": row["result"], "n": row["steps"]} for row in rows)
    yield _family("mosaic_steps_ended", [((row["step"], row["result"]), row["n"]) for row in by_result])
    _, help_text, labels = METRICS["mosaic_hop_seconds"]
    hops = HistogramMetricFamily("mosaic_hop_seconds", help_text, labels=labels)
    numbers = [f"b{number}" for number in range(len(counted.HOP_BUCKETS))]
    wanted = ("pool", "hops", "seconds", *numbers)
    for row in merged({name: row[name] for name in wanted} for row in rows):
        buckets = [(str(limit), float(row[name])) for limit, name in zip(counted.HOP_BUCKETS, numbers, strict=True)]
        hops.add_metric([row["pool"]], [*buckets, ("+Inf", float(row["hops"]))], row["seconds"])
    yield hops


def _of_effects() -> Iterator[Metric]:
    rows = counted.written_effects()
    yield _family("mosaic_effects", [((row["kind"], row["state"]), row["n"]) for row in rows])
    by_kind = merged({"kind": row["kind"], "n": row["written"]} for row in rows)
    yield _family("mosaic_effects_written", [((row["kind"],), row["n"]) for row in by_kind])
    yield _family("mosaic_effects_age_seconds", [((), max((row["age"] for row in rows), default=0.0))])


def _of_outside() -> Iterator[Metric]:
    found = {row["service"]: row["state"] for row in counted.breakers()}
    opened = {"forge": 0, **{service: int(state != "closed") for service, state in found.items()}}
    yield _family("mosaic_breaker_open", [((service,), number) for service, number in opened.items()])
    lag = counted.reconcile_lag()
    yield _family("mosaic_reconcile_lag_seconds", [] if lag is None else [((), lag)])


def _of_server(data_dir: Path) -> Iterator[Metric]:
    yield _family("mosaic_oldest_transaction_seconds", [((), counted.transactions())])
    yield _family("mosaic_database_bytes", [((), counted.database_size())])
    disk = os.statvfs(data_dir)
    yield _family("mosaic_disk_free_bytes", [((), disk.f_bavail * disk.f_frsize)])
