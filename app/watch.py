"""Watching the neighbours: a control worker waits for the lock of each, and wakes the moment that one's process dies.

One connection waits for one neighbour, so every worker is watched by two others and no more. The sweep and the lease
see whatever nobody watched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from app.ledger import workers
from app.models import KEEPALIVE, UNAVAILABLE, db
from app.pipelined import PatientConnection

log = logging.getLogger("mosaic.watch")
LOOK_SECONDS = 2.0  # how often somebody who is new is noticed
WAIT_SECONDS = 5  # how long one wait for a lock lasts: a killed watcher leaves no session behind for longer than this
GRACE_SECONDS = 3.5  # a process whose lock is free but whose other sessions live has this long: it looks every 2.4 s
WATCHERS = 2  # of each worker: one of them may be frozen itself
MOST = 16  # neighbours of one worker, so that connections stay few; the sweep looks after the others


def neighbours(me: int, others: Sequence[dict[str, Any]]) -> list[int]:
    """Whom control worker `me` watches: in the ring of all ids, those for whom it is among the next control workers."""
    controls = sorted([me, *(other["id"] for other in others if other["pool"] == "control")])

    def distance(number: int) -> int:
        ahead = [one for one in controls if one > number] + [one for one in controls if one < number]
        return ahead.index(me)

    near = sorted((distance(other["id"]), other["id"]) for other in others)
    return [number for steps, number in near if steps < WATCHERS][:MOST]


class Watch:
    """Runs until `over` is set; calls `bury(worker id)` once for each neighbour that dies."""

    def __init__(self, url: str, me: int, bury: Callable[[int], None], over: threading.Event) -> None:
        self._url, self._me, self._bury, self._over = url, me, bury, over
        self._watched: set[int] = set()
        self._sentries: dict[int, threading.Thread] = {}

    def run(self) -> None:
        while not self._over.is_set():
            try:
                with db.connection_context():
                    self._watched = set(neighbours(self._me, workers.others_alive(self._me)))
            except UNAVAILABLE as error:
                log.warning("worker %s cannot ask who else lives; it tries again: %s", self._me, error)
            self._post_sentries()
            self._over.wait(LOOK_SECONDS)

    def _post_sentries(self) -> None:
        self._sentries = {number: thread for number, thread in self._sentries.items() if thread.is_alive()}
        for number in self._watched - self._sentries.keys():
            sentry = threading.Thread(target=self._stand, args=(number,), name=f"watch-{number}", daemon=True)
            self._sentries[number] = sentry
            sentry.start()

    def _stand(self, number: int) -> None:
        """Wait for one neighbour's end. A fault ends the sentry; the next look posts another."""
        try:
            with self._connect() as connection:
                # Who was seen alive on this connection has died when the lock comes free. Otherwise it may be about to
                # take its lock (again): after a restart of the database everybody is, and we too have just come back.
                seen = not _free(connection, number)
                while number in self._watched and not self._over.is_set():
                    if not _granted(connection, number):
                        seen = True
                    elif self._is_dead(number, seen):
                        with db.connection_context():
                            if not workers.retired(number):
                                log.warning("worker %s is dead; worker %s takes over what it had", number, self._me)
                            self._bury(number)
                        return
        except UNAVAILABLE as error:
            log.info("the watch over worker %s was cut off: %s", number, error)
        except Exception:
            log.exception("the watch over worker %s failed; it begins again", number)

    def _is_dead(self, number: int, seen: bool) -> bool:
        """Its lock is free. It lives all the same when it has only lost that connection and takes the lock again; a
        killed process has no session left.
        """
        end = time.monotonic() + GRACE_SECONDS
        while not self._over.is_set():
            with db.connection_context():
                found = workers.state(number)
            if found["locked"]:
                return False
            if time.monotonic() > end or (seen and not found["sessions"]):
                return True
            self._over.wait(0.01)
        return False

    def _connect(self) -> psycopg.Connection[Any]:
        options = f"-c lock_timeout={WAIT_SECONDS}s {KEEPALIVE}"
        return PatientConnection.connect(
            self._url, autocommit=True, application_name="mosaic-watch", connect_timeout=10, options=options
        )


def _free(connection: psycopg.Connection[Any], number: int) -> bool:
    row = connection.execute(workers.IS_FREE, (number,)).fetchone()
    return row is not None and bool(row[0])


def _granted(connection: psycopg.Connection[Any], number: int) -> bool:
    """Wait for the lock of a worker; False when it was still held after WAIT_SECONDS."""
    try:
        connection.execute(workers.WATCH, (number,))
    except psycopg.errors.LockNotAvailable:
        return False
    return True
