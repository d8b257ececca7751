"""Knobs for stories: answers that fail, stall or are cut off, and the version the server claims to be.

Rule: a fault is used up by the request that it hits; nothing else changes.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What happens to the next `times` requests whose method and path match.

    kind: status (answered without reaching the API), status_after (everything was done, then this answer), stall
    (waits `seconds`, then goes on), cut_before (the connection ends, nothing was done), cut_after (everything was
    done, then the connection ends without an answer), cut_body (the same, in the middle of the answer's body).
    """

    method: str
    path: str
    kind: str
    times: int = 1
    status: int = 500
    message: str = ""
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        return re.fullmatch(self.method, method) is not None and re.search(self.path, path) is not None


class Faults:
    """The rules in force, oldest first."""

    KINDS = frozenset({"status", "status_after", "stall", "cut_before", "cut_after", "cut_body"})

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Fault] = []
        self.hit = 0  # requests that were hit so far

    def add(self, fault: Fault) -> None:
        if fault.kind not in self.KINDS:
            raise ValueError(f"unknown kind of fault {fault.kind!r}: use one of {sorted(self.KINDS)}")
        re.compile(fault.method)
        re.compile(fault.path)
        with self._lock:
            self._rules.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The first rule that matches, one use of it spent."""
        with self._lock:
            for rule in self._rules:
                if rule.matches(method, path):
                    rule.hits += 1
                    self.hit += 1
                    if rule.hits >= rule.times:
                        self._rules.remove(rule)
                    return rule
        return None
