"""Huey's PostgreSQL storage, hearing two queues (the pool's own and that of this host) with one ear per process.

Stock Huey gives every worker thread a LISTEN connection of its own: each bell wakes them all, and each looks at the
table. Here the threads take turns (leader and followers): one listens, takes the bell, and hands the ear to the next
before it starts to work. A bell that rings in between waits in the connection, so none is missed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from huey.storage import PostgresStorage
from psycopg import sql

from app.pipelined import PatientConnection

RECHECK_SECONDS = 30.0  # the table is looked at without a bell this often; the sweep rings again after five seconds

# A bell of the first queue, or else one of the second, in one round trip.
_TAKE = """
with first as (
    delete from huey_task where id = (
        select id from huey_task where queue = %s order by priority desc, id limit 1 for update skip locked
    ) returning data
), second as (
    delete from huey_task where id = (
        select id from huey_task where queue = %s and not exists (select 1 from first)
        order by priority desc, id limit 1 for update skip locked
    ) returning data
)
select data from first union all select data from second
"""


def channel(queue: str) -> str:
    """The NOTIFY channel on which consumers of a queue listen."""
    return f"huey.q.{queue}"


class BellStorage(PostgresStorage):  # type: ignore[misc]
    """Nothing is taken from a queue while `closed` says so."""

    def __init__(self, name: str, *, queues: tuple[str, str], closed: Callable[[], bool], **options: Any) -> None:
        self._queues, self._closed = queues, closed
        self._ear = threading.Lock()
        self._connection_of_ear: Any = None
        self._maybe_more = True  # set and cleared by the listener only
        self._looked_at = 0.0
        self._idle = threading.local()  # .yes: this thread found nothing when it was here last
        super().__init__(name, **options)

    def _connect(self) -> PatientConnection:
        return PatientConnection.connect(self.dsn, autocommit=True, **self.connection_params)

    def _dequeue(self) -> bytes | None:
        """One bell, of the queue that was second the last time if there is one."""
        if self._closed():
            return None
        self._queues = first, second = self._queues[::-1]
        with self.db() as cursor:
            cursor.execute(_TAKE, (first, second))
            row = cursor.fetchone()
        return bytes(row[0]) if row else None

    def dequeue(self) -> bytes | None:
        """The next bell, or None after `read_timeout` seconds: the caller looks whether it is to stop."""
        data = None if getattr(self._idle, "yes", False) else self._dequeue()
        if data is None and self._ear.acquire(timeout=self.read_timeout):
            try:
                data = self._listen()
            finally:
                self._ear.release()
        self._idle.yes = data is None
        return data

    def _listen(self) -> bytes | None:
        deadline = time.monotonic() + self.read_timeout
        connection = self._listening()
        data = None
        if self._maybe_more or time.monotonic() > self._looked_at + RECHECK_SECONDS:
            data = self._look()
        while data is None and (left := deadline - time.monotonic()) > 0:
            if list(connection.notifies(timeout=left, stop_after=1)):
                data = self._look()
        return data

    def _look(self) -> bytes | None:
        """One notice may stand for several bells: after a find the next listener looks before it listens."""
        data = self._dequeue()
        self._maybe_more, self._looked_at = data is not None, time.monotonic()
        return data

    def _listening(self) -> Any:
        known = self._connection_of_ear
        if known is None or known.closed or known.broken:
            self._connection_of_ear = self._connect()
            for queue in set(self._queues):
                self._connection_of_ear.execute(sql.SQL("listen {}").format(sql.Identifier(channel(queue))))
            self._maybe_more = True  # bells may have rung before we listened
        return self._connection_of_ear
