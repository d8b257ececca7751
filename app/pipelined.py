"""The connection pool: it follows restarts of the server, and sends what needs no answer together with what does.

A transaction of ours is a dozen short statements, and most of its time would be spent waiting for answers that nobody
reads: of BEGIN, of the events that are appended, of COMMIT. These wait here and go out with the next statement whose
answer is wanted, or with COMMIT, in one round trip (libpq's pipeline mode). Order and errors stay: a statement that
fails spoils the transaction, and the error is raised at that next statement or at the end of the transaction.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from peewee import InterfaceError, OperationalError, __exception_wrapper__  # type: ignore[attr-defined]
from playhouse.postgres_ext import PooledPsycopg3Database

Statement = tuple[str, Any]


class Asked:
    """A statement whose answer is wanted, but not yet: whoever reads it sends it, with all that wait before it."""

    def __init__(self, read: Callable[[], None]) -> None:
        self._read = read
        self.cursor: Any = None

    def answer(self) -> Any:
        """The cursor with the answer."""
        if self.cursor is None:
            self._read()
        return self.cursor


_UNANSWERED = ("SAVEPOINT ", "RELEASE SAVEPOINT ")
_ROLLBACK_TO = "ROLLBACK TO SAVEPOINT "


class _Waiting(threading.local):
    """Statements of this thread's transaction that have not been sent."""

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.asked: dict[int, Asked] = {}  # place in that list -> who wants the answer


class PipelinedDatabase(PooledPsycopg3Database):  # type: ignore[misc]
    """Peewee's pool with both habits. A thread whose connection the server has closed gets a new one at its next
    statement: a step keeps its connection for as long as it works, and a restart must not cost it its result.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._waiting = _Waiting()
        super().__init__(*args, **options)

    # ------------------------------------------------------------ statements

    def begin(self, isolation_level: Any = None) -> None:
        if isolation_level is not None:
            return super().begin(isolation_level)  # type: ignore[no-any-return]
        self.cursor()  # a connection that is gone is replaced now, outside the transaction
        self._waiting.statements, self._waiting.asked = [("BEGIN", None)], {}

    def send(self, sql: str, params: Any = None) -> None:
        """A statement whose answer nobody needs; outside a transaction it is carried out at once."""
        if self.in_transaction():
            self._waiting.statements.append((sql, params))
        else:
            self.execute_sql(sql, params)

    def ask(self, sql: str, params: Any = None) -> Asked:
        """As `send`, for an answer that is read later."""
        found = Asked(lambda: self._flush(found))
        if self.in_transaction():
            self._waiting.asked[len(self._waiting.statements)] = found
            self._waiting.statements.append((sql, params))
        else:
            found.cursor = self.execute_sql(sql, params)
        return found

    def _flush(self, wanted: Asked) -> None:
        if wanted not in self._waiting.asked.values():
            raise OperationalError("There is no answer: the connection broke, or the statement was taken back unsent.")
        self.execute_together([])

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        if sql.startswith(_UNANSWERED):
            return self.send(sql, params)
        if sql.startswith(_ROLLBACK_TO) and self._never_sent(sql.removeprefix(_ROLLBACK_TO)):
            return None
        if not self._waiting.statements:
            return super().execute_sql(sql, params)
        return self.execute_together([(sql, params)])[0]

    def execute_together(self, statements: Sequence[Statement]) -> list[Any]:
        """A cursor with the answer of each, for one round trip."""
        waiting = self._taken()
        with __exception_wrapper__:
            return self._together(self.cursor().connection, waiting, statements)

    def commit(self) -> None:
        """On the connection of the transaction and no other: a new one would say yes to a COMMIT of nothing."""
        waiting = self._taken()
        sent, _ = waiting
        if sent and sent[0][0] == "BEGIN" and all(sql.startswith(_UNANSWERED) for sql, _ in sent[1:]):
            return  # nothing was done
        if self.is_closed():
            raise InterfaceError("The connection is closed: nothing can be committed.")
        with __exception_wrapper__:
            [ended] = self._together(self._state.conn, waiting, [("COMMIT", None)])
        if ended.statusmessage != "COMMIT":
            raise OperationalError("The server has rolled the transaction back.")

    def rollback(self) -> None:
        sent, _ = self._taken()
        if not sent or sent[0][0] != "BEGIN":
            super().rollback()

    def _taken(self) -> tuple[list[Statement], dict[int, Asked]]:
        """What waits, to be sent or dropped."""
        waiting = self._waiting.statements, self._waiting.asked
        self._waiting.statements, self._waiting.asked = [], {}
        return waiting

    def _never_sent(self, savepoint: str) -> bool:
        """Forget what has waited since a savepoint that is rolled back; whether that was all there is of it."""
        waiting = self._waiting.statements
        start = next((at for at, (sql, _) in enumerate(waiting) if sql == f"SAVEPOINT {savepoint}"), None)
        del waiting[start or 0 :]
        self._waiting.asked = {at: one for at, one in self._waiting.asked.items() if at < len(waiting)}
        return start is not None

    def _together(
        self, connection: Any, waiting: tuple[list[Statement], dict[int, Asked]], more: Sequence[Statement]
    ) -> list[Any]:
        """Send what has waited and more in one round trip; the cursors of what is more."""
        sent, asked = waiting
        statements = [*sent, *more]
        if len(statements) == 1:
            cursors = [connection.cursor().execute(*statements[0])]
        else:
            with connection.pipeline():
                cursors = [connection.cursor().execute(sql, params or ()) for sql, params in statements]
        for at, one in asked.items():
            one.cursor = cursors[at]
        return cursors[len(sent) :]

    # ------------------------------------------------------------ connections

    def cursor(self, named_cursor: Any = None) -> Any:
        if not self.is_closed() and not self.in_transaction() and gone(self._state.conn):
            with self._same_blocks():
                self.close()
        return super().cursor(named_cursor)

    def connect(self, reuse_if_open: bool = False) -> Any:
        with self._same_blocks():
            return super().connect(reuse_if_open)

    @contextmanager
    def _same_blocks(self) -> Iterator[None]:
        """Peewee forgets at every change of connection which `with connection_context()` the thread is in."""
        blocks = self._state.ctx
        try:
            yield
        finally:
            self._state.ctx = blocks


class PatientConnection(psycopg.Connection[Any]):
    """For threads that wait long: it sleeps until the server says something.

    psycopg wakes up ten times a second to see whether Ctrl-C was pressed, which no thread but the main one hears.
    """

    def wait(self, gen: Any, interval: float = 60.0, timeout: float | None = None) -> Any:
        return super().wait(gen, interval, timeout)


def gone(connection: Any) -> bool:
    """Whether the server has hung up. An idle connection has nothing to read, so that asking costs no round trip."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        try:
            connection.execute("select 1")
        except psycopg.Error:
            return True
    return False
