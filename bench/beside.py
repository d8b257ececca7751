"""The step hop of the peers, in the same run on the same database: DBOS, Celery on Redis, Procrastinate, stock Huey.

Each does the same: a chain of empty steps, every one of which makes the next one due. What is durable differs, and the
table says so.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from app.postgres import SUPERUSER, Cluster
from app.processes import bound_to_us
from bench.report import Figure
from tests.worlds.openclaw import free_port

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".cache" / "bench" / "venv" / "bin"
PEERS = Path(__file__).resolve().parent / "peers"
STEPS = 150
REPEATS = 3
LIMIT = 120.0
WHAT = {
    "DBOS": "workflow of steps, each result committed to PostgreSQL",
    "Celery": "Redis with append-only file, fsync always; prefork, acks_late; no state of steps",
    "Procrastinate": "PostgreSQL, one worker, its defaults; jobs table, no audit",
    "Huey": "PostgreSQL, two threads, its defaults; loses what runs when it is killed",
}


def peers(cluster: Cluster, scratch: Path) -> tuple[list[Figure], dict[str, float]]:
    """Figures, and the milliseconds of those that keep what they are told (the target is to be faster than these)."""
    if not (VENV / "python").exists():
        return [Figure("peers", "", "not installed: run scripts/bench-setup.sh")], {}
    figures, times = [], {}
    for name, measure in (("DBOS", _dbos), ("Celery", _celery), ("Procrastinate", _procrastinate), ("Huey", _huey)):
        place = scratch / name
        place.mkdir()
        try:
            found = measure(cluster, place)
        except (RuntimeError, subprocess.SubprocessError) as error:
            figures.append(Figure(f"step hop of {name}", "", f"not measured: {error}"[:200]))
            continue
        middle = statistics.median(found)
        figures.append(Figure(f"step hop of {name}", "", f"{middle:.2f} ms ({WHAT[name]})", None, {"ms": middle}))
        if name != "Huey":
            times[name] = middle
    return figures, times


def _dbos(cluster: Cluster, place: Path) -> list[float]:
    with _database(cluster, "bench_dbos") as url:
        return [_result(_run("dbos_hop.py", url, str(STEPS), env={})) for _ in range(REPEATS)]


def _celery(_: Cluster, place: Path) -> list[float]:
    server = shutil.which("redis-server")
    if not server:
        raise RuntimeError("redis-server is not installed")
    port = free_port()
    redis = (server, "--bind", "127.0.0.1", "--port", str(port), "--appendonly", "yes", "--appendfsync", "always")
    env = {"BENCH_REDIS": f"redis://127.0.0.1:{port}/0"}
    worker = (str(VENV / "celery"), "-A", "celery_hop", "worker", "--loglevel", "WARNING")
    with _process(place, {}, *redis, "--dir", str(place)), _process(place, env, *worker):
        return _chains("celery_hop.py", env, place)


def _procrastinate(cluster: Cluster, place: Path) -> list[float]:
    with _database(cluster, "bench_procrastinate") as url:
        env = {"BENCH_POSTGRES": url}
        _run("procrastinate_hop.py", "schema", env=env)
        worker = (str(VENV / "procrastinate"), "--app=procrastinate_hop.app", "worker")
        with _process(place, env, *worker):
            return _chains("procrastinate_hop.py", env, place)


def _huey(cluster: Cluster, place: Path) -> list[float]:
    with _database(cluster, "bench_huey") as url:
        env = {"BENCH_POSTGRES": url}
        worker = (str(VENV / "huey_consumer"), "huey_hop.huey", "-w", "2", "-k", "thread")
        with _process(place, env, *worker):
            return _chains("huey_hop.py", env, place)


def _chains(script: str, env: Mapping[str, str], place: Path) -> list[float]:
    """The first chain waits for the worker to be ready and is not counted."""
    return [_chain(script, env, place / f"result-{n}") for n in range(REPEATS + 1)][1:]


def _chain(script: str, env: Mapping[str, str], out: Path) -> float:
    _run(script, str(STEPS), str(out), env=env)
    end = time.monotonic() + LIMIT
    while not out.exists():
        if time.monotonic() > end:
            raise RuntimeError(f"{script} did not end within {LIMIT:g} s")
        time.sleep(0.01)
    return float(out.read_text())


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    return {
        "PATH": f"{VENV}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": str(PEERS),
        **more,
    }


def _run(script: str, *words: str, env: Mapping[str, str]) -> str:
    ran = subprocess.run(
        [str(VENV / "python"), str(PEERS / script), *words], env=_environment(env), cwd=PEERS, capture_output=True,
        text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    if ran.returncode:
        raise RuntimeError(f"{script}: {(ran.stderr or ran.stdout).strip().splitlines()[-1:]}")
    return ran.stdout


def _result(text: str) -> float:
    return float(next(line for line in text.splitlines() if line.startswith("RESULT")).split()[1])


@contextmanager
def _process(place: Path, env: Mapping[str, str], *command: str) -> Iterator[None]:
    """A server or worker for the length of the block; it dies with us."""
    with (place / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=_environment(env), cwd=place, stdout=log, stderr=log, process_group=0,
            preexec_fn=bound_to_us(signal.SIGKILL),
        )  # fmt: skip
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _database(cluster: Cluster, name: str) -> Iterator[str]:
    admin = cluster.url(SUPERUSER, "postgres")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    try:
        yield cluster.url(SUPERUSER, name)
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)")
