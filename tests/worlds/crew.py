"""Real consumers with scripted work: `Crew(url).hire("control")` is a process of its own with Huey, lock, sweep, watch.

What a step does is told by its name: `{"runner.snapshot": "die"}`. Everything else is the product's own code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


class Hand:
    """One consumer process."""

    def __init__(self, process: subprocess.Popen[str], order: dict[str, Any]) -> None:
        self.process, self.order = process, order
        assert process.stdout is not None
        self.id = int(process.stdout.readline().split()[1])

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ended(self, seconds: float = 60.0) -> int:
        return self.process.wait(seconds)


class Crew:
    """Consumers of one database; all are killed at the end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.hands: list[Hand] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for hand in self.hands:
            hand.kill()
            assert hand.process.stdout is not None
            hand.process.stdout.close()

    def hire(self, pool: str, behave: Mapping[str, str] | None = None, **more: Any) -> Hand:
        """A consumer that is ready. `more`: host, slots, sweeps (False: none), ahead (seconds its clock is off),
        patience (seconds to end in after SIGTERM).
        """
        order = {"url": self.url, "pool": pool, "behave": dict(behave or {}), **more}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.worlds.crew", json.dumps(order)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        hand = Hand(process, order)
        self.hands.append(hand)
        return hand

    def rehire(self, hand: Hand) -> Hand:
        """What a supervisor does with one that has ended."""
        self.hands.remove(hand)
        hand.ended()
        order = {key: value for key, value in hand.order.items() if key != "url"}
        return self.hire(order.pop("pool"), order.pop("behave"), **order)


# ---------------------------------------------------------------- the process


def main(order: dict[str, Any]) -> None:
    ahead = float(order.get("ahead", 0.0))
    if ahead:
        real = time.time
        time.time = lambda: real() + ahead

    from app.context import Clients
    from app.edge import connected, open_database
    from app.redact import Redactor
    from app.rules import ServerConfig
    from app.types import Pool
    from app.worker import Worker
    from jobs import tasks

    pool = Pool(order["pool"])
    worker = Worker(order["url"], pool.value, order.get("slots", 4), order.get("host", "here"), order.get("signer", ""))
    open_database(order["url"], worker.session)
    huey = tasks.doorbell(pool, worker, order["url"])
    settings = SimpleNamespace(data_dir=Path(order.get("data", ROOT)))
    clients = Clients(settings, ServerConfig.load(None), worker, Redactor(()))  # type: ignore[arg-type]
    works = {
        name: tasks.Task(lambda context: work(context, order["behave"]), spec.redo if spec else ())
        for name, (_, spec) in tasks.step_targets(pool).items()
    }

    def run(step_id: int) -> None:
        with connected():
            tasks.perform(step_id, works, clients)

    for name in works:
        at_home(huey, name, run)
    if pool is Pool.CONTROL:
        errands(huey)
        if not order.get("sweeps", True):
            tasks.stitcher.idle_sweep = lambda: None  # type: ignore[assignment]
    with tasks.at_work(worker, pool):
        print(f"ready {worker.id}", flush=True)
        tasks.run(huey, worker, order.get("patience", 25.0))


def errands(huey: Any) -> None:
    """The errands of the control pool; nobody is told anything, for there is no forge."""
    from app import stitcher
    from app.edge import connected

    def advance(number: int) -> None:
        with connected():
            stitcher.advance(number)

    for name in ("stitcher.tell", "herald.deliver", "herald.probe", "runner.obey"):
        at_home(huey, name, lambda number: None)
    at_home(huey, "stitcher.advance", advance)


def at_home(huey: Any, name: str, function: Any) -> None:
    """Huey names a task after the module of its function, and bells name those of jobs.tasks."""
    function.__module__ = "jobs.tasks"
    huey.task(name=name)(function)


def work(context: Any, behave: Mapping[str, str]) -> Any:
    """Do what the script says for this step, then succeed as that step does."""
    from tests import spine

    name = context.row["name"]
    what, _, argument = (behave.get(f"{name}#{context.row['job_id']}") or behave.get(name, "")).partition(":")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hold":  # until the file is there, or it has to stop
        while not Path(argument).exists() and not context.cancelled():
            time.sleep(0.005)
        context.check()
    if what == "stubborn":  # until the file is there, whatever it is told
        while not Path(argument).exists():
            time.sleep(0.005)
    if what == "sleep":
        threading.Event().wait(float(argument))
        context.check()
    return spine.outcome(context.row, {})


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(json.loads(sys.argv[1]))
