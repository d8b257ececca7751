"""`python -m bench [--only NAME ...]`: every figure, then the table in bench/results/latest.md and latest.json."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from bench import beside, empty, machine, service
from bench.report import Figure, store

PARTS = ("service", "peers", "hop", "throughput", "recovery", "verify")


@contextmanager
def scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mosaic-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def say(figures: list[Figure]) -> list[Figure]:
    for one in figures:
        print(f"bench: {one.name}: {one.measured}", flush=True)
    return figures


def of_service(path: Path) -> list[Figure]:
    with service.front(path) as made:
        return [*say(service.idle(made)), *say(service.ack(made)), *say([service.burst(made)]),
                *say([service.visible(made)])]  # fmt: skip


def of_empty_jobs(path: Path, parts: list[str]) -> tuple[dict[str, str], list[Figure]]:
    """Floors first, then the peers, then ours: the same database, one after the other."""
    with empty.bench(path / "data") as here:
        with psycopg.connect(here.cluster.app_url) as connection:
            said = machine.describe(str(connection.execute("show server_version").fetchone()[0]))  # type: ignore[index]
        commit = machine.commit_floor(here.cluster.owner_url)
        figures = say([machine.disk_floor(path), commit])
        times: dict[str, float] = {}
        if "peers" in parts:
            found, times = beside.peers(here.cluster, path)
            figures += say(found)
        if "hop" in parts:
            figures += say([empty.hop(here, commit.values["p50_ms"], times)])
        if "throughput" in parts:
            figures += say([empty.throughput(here)])
        if "recovery" in parts:
            figures += say(empty.recovery(here))
        if "verify" in parts:
            figures += say([empty.verify(here)])
    return said, figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], choices=PARTS, metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    parts = options.only or list(PARTS)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that everything is ended on the way out
    with scratch() as path:
        said, figures = of_empty_jobs(path, parts)
        if "service" in parts:
            figures += of_service(path / "service")
    print("\n" + store(said, figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
