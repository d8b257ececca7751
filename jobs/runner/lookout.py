"""The thread of a control worker that looks for lost mentions: at start, every minute, the notifications more often.

One worker of a database looks at a time, under a lease that it renews before each request; two that do for a moment
only ask twice. The forge being away makes it wait, never skip.
"""

from __future__ import annotations

import logging
import threading
import time

from app.context import Clients
from app.edge import UNAVAILABLE, connected
from app.gitea_polled import Place
from app.ledger import reconcile as ledger
from app.queries import self_id
from app.types import MosaicError
from jobs.runner.admit import introduce
from jobs.runner.reconcile import LISTS, Reconciler, Stopped

log = logging.getLogger("mosaic.reconcile")
LEASE_SECONDS = 30.0
RENEW_SECONDS = 5.0
IDLE_SECONDS = 10.0  # the longest pause: the lease must not lapse in it
DISCOVER_ROUNDS = 10  # how many rounds one look at the list of repositories serves
MOST_FAILURES = 3  # of one repository in a round, before the round goes on without it


class Lookout:
    def __init__(self, clients: Clients) -> None:
        assert clients.forge is not None
        self._clients, self._worker = clients, clients.worker
        self._reconciler = Reconciler(clients.forge, clients.server, keep=self._keep)
        self._pace = clients.server.reconcile
        self._queue: list[Place] | None = None  # what this round still has to look at; None between rounds
        self._failed: dict[int, int] = {}
        self._renewed = 0.0
        self._discover_at = self._notify_at = self._round_at = 0.0  # monotonic: all of it at once when it starts
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="lookout", daemon=True)

    def start(self) -> Lookout:
        self.thread.start()
        return self

    def _run(self) -> None:
        pause = 0.0
        while not self.over.wait(pause):
            try:
                pause = self._turn()
            except UNAVAILABLE as error:
                log.warning("looking for lost mentions waits for the database: %s", error)
                pause = IDLE_SECONDS
            except Exception:
                log.exception("looking for lost mentions failed; it goes on")
                pause = IDLE_SECONDS

    def _turn(self) -> float:
        """One piece of work, if it is ours to do; seconds until the next one."""
        if self._worker.draining:
            self._resign()
            return IDLE_SECONDS
        if not self._in_office():
            if not self._still_ours():
                self._queue = None  # whoever looks now goes through all of them
            return IDLE_SECONDS
        try:
            pause = self._work()
        except Stopped:
            return 1.0
        except MosaicError as error:
            self._trouble(error)
            return 1.0
        return pause

    def _in_office(self) -> bool:
        with connected():
            held = ledger.take_office(self._worker.id, LEASE_SECONDS)
        self._renewed = time.monotonic()
        return held

    def _still_ours(self) -> bool:
        """While we wait for the forge, a round that has begun is kept: else its first place would always come first."""
        with connected():
            return ledger.in_office(self._worker.id)

    def _resign(self) -> None:
        with connected():
            ledger.leave_office(self._worker.id)

    def _keep(self) -> None:
        """Before each request: still ours, and the lease is good for a while."""
        if self._worker.draining or self.over.is_set():
            raise Stopped
        if time.monotonic() - self._renewed > RENEW_SECONDS and not self._in_office():
            raise Stopped

    # ------------------------------------------------------------ work

    def _work(self) -> float:
        """A list of the forge's that fails does not keep the repositories waiting, unless the forge asks us to wait."""
        now, failed = time.monotonic(), None
        try:
            self._lists(now)
        except MosaicError as error:
            if getattr(error, "retry_after", None):
                raise
            failed = error
        if self._queue is None and now >= self._round_at:
            self._begin(now)
        if self._queue:
            self._visit(self._queue)
        if self._queue == []:
            self._complete()
        if failed:
            raise failed
        if self._queue:
            return 0.0
        return max(0.0, min(self._notify_at, self._round_at, now + IDLE_SECONDS) - time.monotonic())

    def _lists(self, now: float) -> None:
        if now >= self._discover_at:
            self._know_ourselves()
            self._reconciler.discover()
            self._discover_at = now + DISCOVER_ROUNDS * self._pace.seconds
        if now >= self._notify_at:
            self._reconciler.notifications()
            self._notify_at = now + self._pace.notification_seconds

    def _know_ourselves(self) -> None:
        with connected():
            known = self_id() is not None
        if not known:
            introduce(self._clients)

    def _begin(self, now: float) -> None:
        self._round_at = now + self._pace.seconds
        self._failed.clear()
        with connected():
            ledger.begin_round()
        self._queue = self._reconciler.places()

    def _complete(self) -> None:
        self._queue = None
        with connected():
            ledger.complete_round()

    def _visit(self, queue: list[Place]) -> None:
        """Look at the next repository. One that always fails does not stand in the way of the others."""
        try:
            self._reconciler.visit(queue[0])
        except MosaicError as error:
            place = queue[0]
            self._failed[place.repository_id] = self._failed.get(place.repository_id, 0) + 1
            if self._failed[place.repository_id] < MOST_FAILURES:
                queue.append(place)
            else:
                with connected():
                    ledger.refused(place.repository_id, LISTS, str(error))
            queue.pop(0)
            raise
        queue.pop(0)

    def _trouble(self, error: MosaicError) -> None:
        log.warning("looking for lost mentions waits: %s", error)
        with connected():
            ledger.back_off(str(error), getattr(error, "retry_after", None))


def look_out(clients: Clients) -> Lookout:
    """Begin to look for lost mentions in this process."""
    return Lookout(clients).start()
