"""Run one command on a work tree so that it can harm nothing else: quality gates and setup.

One rule: without a sandbox that works nothing runs, unless the operator typed that choice.
"""

from __future__ import annotations

import codecs
import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.sandbox_host import Account, cgroups, discard, lent, readable_by_others, staged
from app.sandbox_profile import (
    Limits,
    SandboxUnavailable,
    checked_mounts,
    environment,
    find_bwrap,
    limited,
    profile,
    program,
)
from app.sandbox_tree import BareTree, BwrapTree, Tree

__all__ = ["Account", "Limits", "Ran", "SandboxUnavailable", "discard", "run"]

_LOOK_SECONDS = 0.2  # how often cancellation and the disk are looked at
_DISK_STEP = 64 * 1024 * 1024
_DISK_RESERVE = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of it. `exit_code` is None when it was stopped by us; 128 + n when signal n ended it."""

    exit_code: int | None
    seconds: float
    output: str  # stdout and stderr as they came; head and tail when it was too long
    truncated: bool
    timed_out: bool
    cancelled: bool
    disk_full: bool = False  # it used more than it may
    no_room: bool = False  # it used less than it may, and the disk of the machine has no room left


def run(
    command: str,
    *,
    work: Path,
    limits: Limits,
    read_only: Mapping[str, Path] | None = None,
    env: Mapping[str, str] | None = None,
    network: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
    on_output: Callable[[str], None] | None = None,
    tools: Sequence[Path] = (),
    path: Sequence[str] = (),
    account: Account | None = None,
    insecure: bool = False,
) -> Ran:
    """Run `/bin/sh -c command` in `work`, which it sees as `/work`, and kill every process it left.

    read_only: target (relative to the work tree, or absolute) -> file or directory that is laid over it, unwritable.
    tools: host directories, visible at their own path, unwritable; path: directories put before the usual PATH.
    network: shares the host's network; else the command has a loopback of its own and nothing more.
    cancelled: asked about five times a second. on_output: gets the output as it comes, decoded, not redacted.
    account: who it is on the host when we are root (the tree is lent to it and given back); ignored otherwise.
    insecure: no sandbox at all (the operator typed `--insecure-no-sandbox`): own session, resource limits, clean
    environment and the kill remain; the tree stays at its own path, nothing is read-only, the network is open.
    Raises SandboxUnavailable (nothing was run) or MosaicError (a path that cannot be mounted).
    """
    asked = _Asked(command, work, limits, read_only or {}, env or {}, network, tools, path, account)
    with (_bare if insecure else _contained)(asked) as start:
        return _supervised(start, work, limits, cancelled, on_output)


# ---------------------------------------------------------------- start


@dataclass(frozen=True, slots=True)
class _Asked:
    """What `run` was asked for, in its words."""

    command: str
    work: Path
    limits: Limits
    read_only: Mapping[str, Path]
    env: Mapping[str, str]
    network: bool
    tools: Sequence[Path]
    path: Sequence[str]
    account: Account | None


@contextmanager
def _contained(asked: _Asked) -> Iterator[Callable[[], Tree]]:
    """Everything around the tree: ownership, control groups, stage. Yields what starts it."""
    bwrap = find_bwrap()
    mounts = checked_mounts(asked.work, asked.read_only, asked.tools)
    who: Account | None = None
    lines: list[str] = []
    if os.geteuid() == 0:
        who = asked.account or Account()
        readable_by_others(mounts)
        mounts, lines = staged(mounts)
    env = environment(asked.env, asked.path)
    with lent(asked.work, who), cgroups(asked.limits) as groups:
        told = profile(bwrap, mounts, env, asked.limits, network=asked.network)
        entered = [f"echo $$ >{shlex.quote(str(group))}" for group in groups]
        launcher = _launcher(bwrap.path, who, [*entered, *lines])
        yield lambda: BwrapTree(launcher, told, limited(asked.command, asked.limits))


def _launcher(bwrap: str, who: Account | None, lines: Sequence[str]) -> list[str]:
    """bwrap, after `lines` of shell; for root in a mount namespace of its own and as an unprivileged account."""
    if who is not None:
        ids = [f"--reuid={who.uid}", f"--regid={who.gid}", "--clear-groups", "--inh-caps=-all"]
        drop = shlex.join([program("setpriv"), *ids, "--", bwrap])
        script = "\n".join(["set -eu", "umask 022", *lines, f'exec {drop} "$@"'])
        return [program("unshare"), "--mount", "--propagation", "private", "--", "/bin/sh", "-c", script, "sh"]
    if lines:
        script = "\n".join(["set -eu", *lines, f'exec {shlex.quote(bwrap)} "$@"'])
        return ["/bin/sh", "-c", script, "sh"]
    return [bwrap]


@contextmanager
def _bare(asked: _Asked) -> Iterator[Callable[[], Tree]]:
    home = tempfile.mkdtemp(prefix="mosaic-home-")
    try:
        env = environment(asked.env, asked.path, home)
        yield lambda: BareTree(limited(asked.command, asked.limits), env, asked.work)
    finally:
        shutil.rmtree(home)


# ---------------------------------------------------------------- supervision


def _supervised(
    start: Callable[[], Tree],
    work: Path,
    limits: Limits,
    cancelled: Callable[[], bool],
    on_output: Callable[[str], None] | None,
) -> Ran:
    began = time.monotonic()
    kept = _Kept(limits.output_bytes, on_output)
    disk = _Disk(work, limits.disk_mb * 1024 * 1024)
    tree = start()
    try:
        stopped = _follow(tree, kept, began + limits.seconds, cancelled, disk)
    finally:
        code = tree.close()
        with tree.output:
            _drain(tree, kept)
    kept.finish()
    if code is None:
        raise SandboxUnavailable((kept.text().strip().splitlines() or ["bwrap gave no reason"])[-1][:500])
    return Ran(
        exit_code=None if stopped else code,
        seconds=time.monotonic() - began,
        output=kept.text(),
        truncated=kept.truncated,
        timed_out=stopped == "timeout",
        cancelled=stopped == "cancel",
        disk_full=stopped == "disk",
        no_room=stopped == "room",
    )


def _follow(tree: Tree, kept: _Kept, deadline: float, cancelled: Callable[[], bool], disk: _Disk) -> str:
    """Take the output until the command ends ("") or has to be stopped ("timeout", "cancel", "disk", "room")."""
    out = tree.output.fileno()
    poll = select.poll()
    poll.register(out, select.POLLIN)
    poll.register(tree.ended, select.POLLIN)
    look = 0.0
    while True:
        now = time.monotonic()
        if now >= deadline:
            return "timeout"
        if now >= look:
            if cancelled():
                return "cancel"
            exhausted = disk.exhausted()
            if exhausted:
                return exhausted
            look = time.monotonic() + _LOOK_SECONDS
        ready = {fd for fd, _ in poll.poll(max(0.0, min(look, deadline) - time.monotonic()) * 1000)}
        if tree.ended in ready:
            return ""
        if out in ready and not kept.read(out):
            poll.unregister(out)  # it closed its output; it may well work on


def _drain(tree: Tree, kept: _Kept) -> None:
    """What the dead tree left in the pipe. Never waits: a stray of an unsandboxed run may still hold the other end."""
    os.set_blocking(tree.output.fileno(), False)
    try:
        while kept.read(tree.output.fileno()):
            pass
    except BlockingIOError:
        return


class _Kept:
    """The first quarter and the last three quarters of the allowed output: the end says what went wrong."""

    def __init__(self, limit: int, on_output: Callable[[str], None] | None) -> None:
        self._head_limit = limit // 4
        self._tail_limit = limit - self._head_limit
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._left_out = 0
        self._on_output = on_output
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def truncated(self) -> bool:
        return self._left_out > 0

    def read(self, fd: int) -> bool:
        """One read; False at the end."""
        data = os.read(fd, 65536)
        room = self._head_limit - len(self._head)
        self._head += data[:room]
        self._tail.append(data[room:])
        self._tail_size += len(data[room:])
        while self._tail_size > self._tail_limit:
            first = self._tail.popleft()
            cut = min(len(first), self._tail_size - self._tail_limit)
            if cut < len(first):
                self._tail.appendleft(first[cut:])
            self._tail_size -= cut
            self._left_out += cut
        self._tell(self._decoder.decode(data))
        return bool(data)

    def finish(self) -> None:
        self._tell(self._decoder.decode(b"", final=True))

    def _tell(self, text: str) -> None:
        if text and self._on_output is not None:
            self._on_output(text)

    def text(self) -> str:
        gap = f"\n[... {self._left_out} bytes left out ...]\n" if self._left_out else ""
        tail = b"".join(self._tail)
        if not gap:
            return (bytes(self._head) + tail).decode("utf-8", "replace")
        return self._head.decode("utf-8", "replace") + gap + tail.decode("utf-8", "replace")


class _Disk:
    """Keeps a run from filling the disk: looks closer only after the free space fell noticeably."""

    def __init__(self, work: Path, limit: int) -> None:
        self._work = work
        self._limit = limit
        self._free = self._start = shutil.disk_usage(work).free

    def exhausted(self) -> str:
        """ "disk" when the run has used more than it may, "room" when the disk has no more to give, else ""."""
        free = shutil.disk_usage(self._work).free
        if self._free - free < _DISK_STEP:
            return ""
        self._free = free
        if self._start - free > 2 * self._limit or self._size() > self._limit:
            return "disk"
        return "room" if free < _DISK_RESERVE else ""

    def _size(self) -> int:
        argv = [program("du"), "-s", "-x", "-B1", "--", str(self._work)]
        said = subprocess.run(
            argv, env={}, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        return int((said.stdout.split() or ["0"])[0])
