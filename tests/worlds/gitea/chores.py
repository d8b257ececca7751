"""Work that Gitea does after it has answered: one background thread, in the order of due times.

Rule: a chore that raises is a fault of the practice world and is kept for the test to see.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import traceback
from collections.abc import Callable


class Chores:
    """`later(seconds, work)` runs `work` once; `idle` waits until none is left."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._state = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._busy = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._state:
            self._stopped = True
            self._state.notify_all()
        self._thread.join()

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        with self._state:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._count), work))
            self._state.notify_all()

    def idle(self, timeout: float) -> bool:
        with self._state:
            return self._state.wait_for(lambda: not self._due and not self._busy, timeout)

    def _next(self) -> Callable[[], None] | None:
        with self._state:
            while not self._stopped:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    self._busy = True
                    return heapq.heappop(self._due)[2]
                self._state.wait(wait)
        return None

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:  # noqa: BLE001 - reported, and the test that looks at `errors` fails
                self._report(traceback.format_exc())
            finally:
                with self._state:
                    self._busy = False
                    self._state.notify_all()
