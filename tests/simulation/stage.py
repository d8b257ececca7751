"""Actors that move one at a time: real threads, each with its own database connection, that stop at checkpoints.

One rule: exactly one thread runs at any moment, the director or one actor; so a run depends on its moves alone.

A checkpoint stands before every round trip to the database, around every request to the forge, and inside the scripted
work. There an actor may be left standing (its process is frozen), be ended (kill -9) or go on. An actor that waits for
a lock in the server is found out by asking the server, never by its being slow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg

_STUCK = 3_000  # looks, of 10 ms and a question to the server each
FOREVER = 1_000_000  # moves: to the end of the task


class Killed(BaseException):
    """kill -9: nothing catches it, and nothing it passes may write any more."""


class Actor:
    """One task on a thread of its own. It moves only while the director lets it."""

    def __init__(self, name: str, task: Callable[[], Any]) -> None:
        self.name = name
        self.where = "start"
        self.moves = 0  # how many checkpoints it may still pass
        self.passed = 0
        self.killed = False
        self.over = False
        self.blocked = False
        self.impatient = False  # it has set a lock_timeout: its waiting ends by itself
        self.result: Any = None
        self.error: BaseException | None = None
        self.connection: psycopg.Connection[Any] | None = None
        self._task = task
        self.go, self.parked = _signal(), _signal()
        self.on_checkpoint: Callable[[Actor], None] | None = None
        hand = _idle.pop() if _idle else _Hand()
        hand.take(self)

    def perform(self) -> None:
        """On its own thread: the task, from the first move to the end."""
        _local.actor = self
        self.go.acquire()
        try:
            if not self.killed:
                self.result = self._task()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - the director raises it
            self.error = error
        finally:
            self.over = True

    @property
    def in_transaction(self) -> bool:
        idle = psycopg.pq.TransactionStatus.IDLE
        connection = self.connection
        return connection is not None and not connection.closed and connection.pgconn.transaction_status != idle


_local = threading.local()


class _Hand(threading.Thread):
    """A thread that plays one actor after the other: starting one costs more than a move."""

    def __init__(self) -> None:
        super().__init__(name="actor", daemon=True)
        self._wanted, self._actor = _signal(), None
        self.start()

    def take(self, actor: Actor) -> None:
        self._actor = actor
        self._wanted.release()

    def run(self) -> None:
        while True:
            self._wanted.acquire()
            actor, self._actor = self._actor, None
            assert actor is not None
            actor.perform()
            _idle.append(self)
            actor.parked.release()


_idle: list[_Hand] = []


def _signal() -> threading.Lock:
    """One gives it with `release`, the other takes it with `acquire`."""
    lock = threading.Lock()
    lock.acquire()
    return lock


def current() -> Actor | None:
    """The actor whose thread this is; None for the director."""
    return getattr(_local, "actor", None)


def checkpoint(where: str) -> None:
    """A place where the process may be frozen or killed."""
    actor = current()
    if actor is None:
        return
    if actor.killed:
        raise Killed
    actor.where = where
    actor.passed += 1
    if actor.on_checkpoint is not None:
        actor.on_checkpoint(actor)
    if actor.moves <= 0 or Stage.somebody_blocked:
        actor.parked.release()
        actor.go.acquire()
        if actor.killed:
            raise Killed
    actor.moves -= 1


def die() -> None:
    """The process of this actor ends here: the director sees that it was killed."""
    actor = current()
    assert actor is not None
    actor.killed = True
    raise Killed


class Stage:
    """Lets actors move and knows who waits for whom. `ask` runs SQL on a connection that no actor uses."""

    somebody_blocked = False

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask
        self.blocked: list[Actor] = []
        Stage.somebody_blocked = False

    def run(self, actor: Actor, moves: int = FOREVER) -> bool:
        """Let an actor pass up to `moves` checkpoints; True when its task is over."""
        if actor.over or actor.blocked:
            return actor.over
        actor.moves = moves
        while True:
            actor.go.release()
            if not self._arrives(actor):
                actor.blocked = True
                actor.moves = 0
                self.blocked.append(actor)
                Stage.somebody_blocked = True
                return False
            self._collect()
            if actor.over or actor.moves <= 0:
                return actor.over

    def kill(self, actor: Actor) -> None:
        """End an actor where it stands; the server rolls its open transaction back."""
        if actor.over:
            return
        actor.killed = True
        if actor.blocked:
            self.hang_up(actor)
        else:
            actor.go.release()
        actor.parked.acquire()
        while not actor.over:
            actor.go.release()
            actor.parked.acquire()
        if actor.impatient and actor.connection is not None and not actor.connection.closed:
            actor.connection.execute("reset lock_timeout")  # the session went with the process; the pool keeps ours
        self._leave(actor)
        self._collect()

    def hang_up(self, actor: Actor) -> None:
        """The server ends the actor's session, as it does with who is idle in a transaction for too long."""
        assert actor.connection is not None
        pid = actor.connection.info.backend_pid
        self._ask("select pg_terminate_backend(%s)", pid)
        while self._ask("select 1 from pg_stat_activity where pid = %s", pid):
            pass
        if not actor.killed:
            self._collect()

    def _arrives(self, actor: Actor) -> bool:
        """Wait until the actor stands at a checkpoint or has ended; False when it waits for a lock."""
        tries = 0
        while not actor.parked.acquire(timeout=0.01):
            tries += 1
            if tries > _STUCK:
                raise RuntimeError(f"{actor.name} neither moves nor waits for the database, after {actor.where}")
            if not actor.impatient and self._waits(actor):
                return False
        return True

    def _waits(self, actor: Actor) -> bool:
        connection = actor.connection
        if connection is None or connection.closed:
            return False
        pid = connection.info.backend_pid
        return bool(self._ask("select 1 from pg_locks where pid = %s and not granted", pid))

    def _collect(self) -> None:
        """Those who waited and have got their lock stand at their next checkpoint before anybody else moves."""
        again = True
        while again and self.blocked:
            again = False
            for actor in list(self.blocked):
                while not (there := actor.parked.acquire(timeout=0.002)):
                    if self._waits(actor):
                        break
                if there:
                    self._leave(actor)
                    again = True

    def _leave(self, actor: Actor) -> None:
        actor.blocked = False
        if actor in self.blocked:
            self.blocked.remove(actor)
        Stage.somebody_blocked = bool(self.blocked)
