"""The troublemakers: who kills, freezes, restarts and lies. Each makes one piece of trouble per call and counts it."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.proof.place import Place

DARK_LIMIT = 30.0  # seconds
LONGEST_FREEZE = 40.0  # seconds; a lease is 30
FROZEN_AT_ONCE = 3
# What the bot asks of the forge. People's own calls are not among them. The first three are hit most: done twice, or
# not at all, they would be seen.
WRITES = (("POST", r"/issues/\d+/comments$"), ("POST", r"/pulls$"), ("POST", r"/git-receive-pack$"))
BOT_CALLS = (
    *WRITES * 4,
    ("GET", r"/issues/\d+/comments"),
    ("PATCH", r"/issues/comments/\d+$"),
    ("GET", r"/pulls(/|$)"),
    ("POST", r"/statuses/"),
    ("POST", r"/reactions$"),
    ("GET", r"/repositories/\d+$"),
    ("GET", r"/permission$"),
    ("GET", r"/issues/\d+$"),
    ("GET", r"/info/refs$"),
    ("POST", r"/git-upload-pack$"),
)


def children(pid: int) -> list[int]:
    """The processes that a process has started; [] when it is gone."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def words_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
    return ""


def role_of(line: str) -> str:
    """web | control | agents | gates | postgres | "" by the command line of a child of `mosaic serve`."""
    if "app.web:create_app()" in line:
        return "web"
    if line.split(" ", 1)[0].endswith("bin/postgres") or "/postgres -D" in line:
        return "postgres"
    last = line.rpartition(" ")[2]
    return last if last in ("control", "agents", "gates", "web") else ""


def supervised(here: Place) -> Iterator[tuple[str, int]]:
    """(role, pid) of the children of `mosaic serve`, its web workers among them."""
    process = here.mosaic.process
    for pid in children(process.pid) if process else ():
        role = role_of(words_of(pid))
        if role:
            yield role, pid
        if role == "web":
            yield from (("web worker", worker) for worker in children(pid))


def everyone(here: Place) -> list[tuple[str, int]]:
    """(role, pid) of everything that may be killed or frozen at any time: all but the database."""
    mine = [(role, pid) for role, pid in supervised(here) if role != "postgres"]
    return mine + [(one.role, one.process.pid) for one in here.more if one.alive]


@dataclass
class Trouble:
    """Counts, and what is frozen now. Processes are held by pidfd: a number may belong to another one by now."""

    here: Place
    random: random.Random
    kills: dict[str, int] = field(default_factory=dict)
    freezes: int = 0
    long_freezes: int = 0
    restarts: int = 0
    frozen: dict[int, float] = field(default_factory=dict)  # pidfd -> when it is let go

    # ------------------------------------------------------------ processes

    def kill(self) -> None:
        targets = everyone(self.here)
        if targets:
            role, pid = self.random.choice(targets)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self._count(role)

    def _count(self, role: str) -> None:
        self.kills[role] = self.kills.get(role, 0) + 1

    def freeze(self) -> None:
        """Stop somebody for a while: mostly moments, sometimes longer than a lease."""
        targets = everyone(self.here)
        if len(self.frozen) >= FROZEN_AT_ONCE or not targets:
            return
        _, pid = self.random.choice(targets)
        seconds = self.random.choice(
            (self.random.uniform(0.3, 2), self.random.uniform(1, 6), self.random.uniform(31, LONGEST_FREEZE))
            if self.random.random() < 0.25
            else (self.random.uniform(0.3, 2),)
        )
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
            self.frozen[handle] = time.monotonic() + seconds
            self.freezes += 1
            self.long_freezes += seconds > 30

    def thaw(self, *, everyone: bool = False) -> None:
        """Let go whose time is over."""
        for handle, until in list(self.frozen.items()):
            if everyone or time.monotonic() >= until:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGCONT)
                os.close(handle)
                del self.frozen[handle]

    # ------------------------------------------------------------ the host and its database

    def power_cut(self) -> None:
        """The supervisor is killed with everything under it, and started again."""
        process = self.here.mosaic.process
        assert process is not None
        process.kill()
        process.wait()
        self._count("supervisor")
        self.thaw(everyone=True)
        end = time.monotonic() + DARK_LIMIT
        while self._listens() and time.monotonic() < end:
            time.sleep(0.05)  # without power all is off at once; here a process notices a moment later
        self.here.mosaic.start()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.here.mosaic.port)) == 0

    def restart_database(self) -> None:
        """An immediate shutdown, or kill -9: both are followed by crash recovery."""
        for role, pid in supervised(self.here):
            if role == "postgres":
                number = self.random.choice((signal.SIGQUIT, signal.SIGKILL))
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    self.restarts += 1
                if number == signal.SIGKILL:
                    self._count("postgres")

    # ------------------------------------------------------------ the forge

    def lie(self) -> None:
        """One of the bot's next calls to the forge goes wrong."""
        method, path = self.random.choice(BOT_CALLS)
        kind = self.random.choice(("status", "status", "rate", "stall", "cut_before", "cut_after", "cut_after"))
        knob = self.here.forge.knob
        if kind == "status":
            knob("fault", method=method, path=path, kind=kind, status=self.random.choice((500, 502, 503)))
        elif kind == "rate":
            knob("rate_limit", method=method, path=path, retry_after=self.random.choice((1, 2)))
        elif kind == "stall":
            knob("fault", method=method, path=path, kind=kind, seconds=self.random.choice((0.5, 2.0, 12.0)))
        else:
            knob("fault", method=method, path=path, kind=kind)
