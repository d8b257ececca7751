"""Processes that a killed predecessor left at work in a directory of ours.

One rule: a process is ours only when the kernel says that it works there; a pid from a file may be anyone's by now.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path


def works_in(pid: int, directory: Path) -> bool:
    """Whether process `pid` has `directory`, or one below it, as its current directory."""
    try:
        current = Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:  # gone, a zombie, or another account's: not ours
        return False
    return current == directory or directory in current.parents


def at_work(directory: Path) -> list[int]:
    """The pids of all processes that work in or below `directory` and that we may look at, but for ourselves."""
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return [pid for pid in pids if pid != os.getpid() and works_in(pid, directory)]


def send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def gone(directory: Path, patience: float) -> bool:
    """Wait until nobody works in `directory`, at most `patience` seconds; False when somebody still does."""
    deadline = time.monotonic() + patience
    while at_work(directory):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
