"""One consumer process among many: its liveness lock, its heartbeat, the sweep if it is elected.

The session lock tells everybody that this process lives: when it dies, PostgreSQL frees the lock, and a control worker
that waits for it takes its steps back at once; the sweep does so a second later. The lease is the last line, for a
process that is alive but frozen or cut off.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from app.ledger import steps, workers
from app.models import FROZEN_SECONDS, KEEPALIVE, UNAVAILABLE, db
from app.pipelined import gone
from app.watch import Watch

log = logging.getLogger("mosaic.worker")
VERSION = "0.1.0"
STOP_SECONDS = 0.4  # how often running steps learn that they are to stop
IDLE_SECONDS = 2.0  # … while nothing is held: how often it is looked whether the session lock is
RENEW_SECONDS = 8.0  # how often the leases are renewed, which last 30 s
_SWEEPER = 0x6D6F7377  # advisory lock of the worker that sweeps
SWEEP_SECONDS = 1.0
OFFICE_SECONDS = 5.0  # how long a sweeper stays one before it is elected again
YOUNG_SECONDS = 5.0  # a server that has just started: everybody is about to take their locks again


@dataclass(slots=True, eq=False)
class Held:
    """A step that runs here. `why` says why it has to stop: cancel | lost | late | drain."""

    step_id: int
    fence: int
    interruptible: bool
    deadline: float = math.inf  # on the monotonic clock: the step's own limit
    stop: threading.Event = field(default_factory=threading.Event)
    why: str = ""

    def end(self, why: str) -> None:
        self.why = self.why or why
        self.stop.set()


class Worker:
    """Registered while its process lives. Threads of the consumer hold steps through `holding`."""

    def __init__(self, url: str, pool: str, slots: int, host: str = "", signer: str = "") -> None:
        self._url = url
        self.pool, self.slots, self.host = pool, slots, host or socket.gethostname()
        self.signer = signer  # fingerprint of the key that signs what this host writes
        self.boot_id = str(uuid.uuid4())
        self.id = 0
        self.draining = False
        self._held: list[Held] = []  # two of one step, when one of them has lost it
        self._mutex = threading.Lock()
        self._over = threading.Event()
        self._woken = threading.Event()
        self._lock: psycopg.Connection[Any] | None = None

    @property
    def session(self) -> str:
        """The application name of every connection of this process."""
        return workers.session_name(self.pool, self.boot_id)

    def start(self, sweep: Callable[[], None] | None = None, bury: Callable[[int], None] | None = None) -> None:
        """Register, take the session lock, start the heartbeat and (control workers) the sweep and the watch."""
        with db.connection_context():
            self.id = workers.register(
                self.boot_id, self.host, os.getpid(), self.pool, self.slots, VERSION, self.signer
            )
        self._hold_lock()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        if sweep:
            threading.Thread(target=self._sweep, args=(sweep,), name="sweep", daemon=True).start()
        if bury:
            threading.Thread(target=Watch(self._url, self.id, bury, self._over).run, name="watch", daemon=True).start()

    def drain(self) -> None:
        """Take nothing new; what can be interrupted is handed back, what cannot goes on with its lease renewed."""
        self.draining = True
        threading.Thread(target=self._say_draining, name="drain", daemon=True).start()
        with self._mutex:
            for held in self._held:
                if held.interruptible:
                    held.end("drain")

    def _say_draining(self) -> None:
        """Off the books, so that no bell rings for our slots. On a thread of its own: `drain` is a signal handler."""
        try:
            with db.connection_context():
                workers.drain(self.id)
        except Exception:
            log.exception("worker %s could not say that it stops; its bells are rung again elsewhere", self.id)

    def left(self) -> list[tuple[int, int]]:
        """(step, fence) of what is still held: a process that ends hands it back."""
        with self._mutex:
            return [(held.step_id, held.fence) for held in self._held if held.why != "lost"]

    def stop(self) -> None:
        self._over.set()
        self._woken.set()
        with db.connection_context():
            workers.retire(self.id)
        if self._lock is not None:
            self._lock.close()

    @contextmanager
    def holding(self, step: dict[str, Any], *, interruptible: bool, seconds: float = math.inf) -> Iterator[Held]:
        held = Held(step["id"], step["fence"], interruptible, time.monotonic() + seconds)
        with self._mutex:
            self._held.append(held)
            self._woken.set()
            if self.draining and interruptible:
                held.end("drain")
        try:
            yield held
        finally:
            with self._mutex:
                self._held.remove(held)

    def _hold_lock(self) -> bool:
        """Make sure that the session lock is held; True when it had to be taken (again)."""
        if self._lock is not None and not gone(self._lock):
            return False
        connection = self._connect()
        # Not waiting: where the server has not yet noticed the end of the session before, that one still counts.
        row = connection.execute("select pg_try_advisory_lock(%s, %s)", (workers.LOCK_CLASS, self.id)).fetchone()
        if row and row[0]:
            self._lock = connection
            return True
        connection.close()
        return False

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            self._url,
            autocommit=True,
            application_name=self.session,
            connect_timeout=10,
            options=KEEPALIVE,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )

    def _beat(self) -> None:
        renewed = time.monotonic()
        while not self._over.is_set():
            self._pause()
            try:
                due = self._hold_lock() or time.monotonic() - renewed > RENEW_SECONDS
                self._look(renew=due)
                renewed = time.monotonic() if due else renewed
            except UNAVAILABLE as error:
                renewed = -math.inf  # the leases may have lapsed while the database took no changes
                log.warning("worker %s cannot reach the database; it tries again: %s", self.id, error)
            except Exception:
                log.exception("heartbeat of worker %s failed; it tries again", self.id)

    def _pause(self) -> None:
        """Until the next look: they are often while something is held, and whoever begins to hold something asks."""
        if not self._held:
            self._woken.wait(IDLE_SECONDS)
            self._woken.clear()
        self._over.wait(STOP_SECONDS)

    def _look(self, *, renew: bool) -> None:
        with self._mutex:
            held = list(self._held)
        if not held and not renew:
            return
        with db.connection_context():
            if renew:
                workers.beat(self.id)
            ids = [item.step_id for item in held]
            rows = steps.renew(self.id, ids) if renew else steps.running(self.id)
            ours = {(row["id"], row["fence"]): row for row in rows}
        for item in held:
            row = ours.get((item.step_id, item.fence))
            if row is None:
                item.end("lost")
            elif row["stop"]:
                item.end("cancel")
            elif time.monotonic() > item.deadline:
                item.end("late")

    def _sweep(self, sweep: Callable[[], None]) -> None:
        """Sweep at once, then once a second unless another worker does. No fault ends this thread."""
        self._first_sweep(sweep)
        while not self._over.is_set():
            try:
                with self._connect() as election:
                    election.execute(f"set idle_in_transaction_session_timeout = '{FROZEN_SECONDS}s'")
                    while not self._over.is_set():
                        self._sweep_if_elected(election, sweep)
            except UNAVAILABLE as error:
                log.warning("the sweep lost the database; it tries again: %s", error)
            except Exception:
                log.exception("the sweep failed; it goes on")
            self._over.wait(SWEEP_SECONDS)

    def _first_sweep(self, sweep: Callable[[], None]) -> None:
        """Who starts may be here because the last control worker of all has died: what that one had goes on at once.

        Not right after a start of the server: the others are about to take their locks again.
        """
        try:
            with db.connection_context():
                if not workers.server_is_young(YOUNG_SECONDS):
                    sweep()
        except UNAVAILABLE as error:
            log.warning("the first sweep lost the database: %s", error)
        except Exception:
            log.exception("the first sweep failed; the next one is due in a second")

    def _sweep_if_elected(self, election: psycopg.Connection[Any], sweep: Callable[[], None]) -> None:
        """Some rounds. The office is held for a transaction only: the server ends that of a sweeper that is frozen.

        The wait comes first: after a restart of the database the workers take their locks again before anyone looks.
        """
        with election.transaction():
            row = election.execute("select pg_try_advisory_xact_lock(%s)", (_SWEEPER,)).fetchone()
            elected, end = row is not None and bool(row[0]), time.monotonic() + OFFICE_SECONDS
            while not self._over.wait(SWEEP_SECONDS) and elected:
                with db.connection_context():
                    sweep()
                if time.monotonic() > end:
                    return
