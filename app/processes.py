"""The supervisor behind `mosaic serve`: starts the processes in order, keeps them alive, ends them in reverse order.

One rule: nothing that it started outlives it. Each child leads a process group of its own, which is killed with it, and
the kernel signals the child itself when the supervisor is gone (PR_SET_PDEATHSIG), even after kill -9.

One thread, one selector over the children's output, their ends (pidfd) and our signals: it sleeps until one happens.
"""

from __future__ import annotations

import ctypes
import operator
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from app.types import MosaicError

# Seconds: before the first restart, doubling up to the last; a child that lived so long starts again with the first.
BACKOFF_FIRST, BACKOFF_LAST, SETTLED = 0.1, 10.0, 30.0
HURRY = 10.0  # seconds that a child has to end in once somebody has asked twice: consumers hand back what they hold
LINE_LIMIT = 64 * 1024  # bytes of one line of output; longer ones are broken
_CONTROLS = bytes({*range(32), 127} - {9})  # a child may print what an agent wrote: it must not drive the terminal
_COLOURS = (36, 33, 35, 32, 34, 31)
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
Shape = Callable[[bytes, bytes], bytes]  # (child's name, its line) → what is written; without one, the name goes first
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Child:
    """One process to keep alive."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None  # the whole environment; None = ours
    cwd: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout: float = 30.0  # seconds from stop_signal to SIGKILL of its process group
    restart: bool = True  # False: its end stops everything, and its exit code is the supervisor's
    before: Callable[[], None] | None = None  # runs before every start; may raise MosaicError
    after: Callable[[], bool] | None = None  # asked until True before the next child is started
    ready_timeout: float = 60.0  # seconds for `after` to become True at the first start
    death_signal: signal.Signals = signal.SIGKILL  # from the kernel when the supervisor itself dies


@dataclass(slots=True)
class _Slot:
    """A child's place: its present process, if any, and when the next one is due."""

    child: Child
    prefix: bytes
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started: float = 0.0
    backoff: float = BACKOFF_FIRST
    due: float | None = None  # monotonic time of the next start
    partial: bytes = b""  # output since the last end of line


class Supervisor:
    """Runs `children`; `run()` returns when all have ended. Only `stop()` may be called from another thread."""

    def __init__(
        self, children: Sequence[Child], *, output: BinaryIO | None = None, shape: Shape | None = None
    ) -> None:
        self._output = output or sys.stdout.buffer
        self._shape, colour = shape or operator.add, self._output.isatty() and shape is None
        width = -1 if shape else max((len(child.name) for child in children), default=0)
        self._slots = [
            _Slot(child, _prefix(child.name, width, n if colour else None)) for n, child in enumerate(children)
        ]
        self._own = _prefix("mosaic", width, None)
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stops = self._code = 0

    def run(self) -> int:
        """Start all, supervise until a stop is asked for, stop all.

        Returns 0 after an asked stop (SIGTERM, SIGINT, SIGHUP, stop()), else the exit code of the `restart=False` child
        that ended, 1 for a child that did not become ready, 127 for one that could not be started at all.
        A second signal sends SIGINT, at which a child ends without waiting for its work; a third one kills. Call it
        from a thread that lives as long as the children should.
        """
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wakeups)
        with self._signals():
            try:
                self._start_all()
                while not self._stops:
                    self._turn()
            finally:
                self._stop_all()
        return self._code

    def stop(self) -> None:
        """Ask for an orderly stop, again: for a quick one, again: kill. Safe from any thread and signal handler."""
        self._stops += 1
        with suppress(BlockingIOError):  # the pipe is full: the loop is awake anyway
            os.write(self._wake_write, b"x")

    # ------------------------------------------------------------ starting

    def _start_all(self) -> None:
        for slot in self._slots:
            if self._stops:
                return
            if not self._start(slot):
                return self._give_up(127)
            if not self._await_ready(slot):
                return

    def _await_ready(self, slot: _Slot) -> bool:
        after, deadline = slot.child.after, time.monotonic() + slot.child.ready_timeout
        while after is not None and not self._stops and not after():
            if time.monotonic() > deadline:
                self._say(f"{slot.child.name} was not ready after {slot.child.ready_timeout:g} s: stopping")
                self._give_up(1)
            self._turn(0.02)
        return not self._stops

    def _start(self, slot: _Slot) -> bool:
        """False when the program could not even be started (the reason is printed)."""
        child, slot.due = slot.child, None
        try:
            if child.before is not None:
                child.before()
            process = subprocess.Popen(
                child.argv, env=child.env, cwd=child.cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, process_group=0, preexec_fn=bound_to_us(child.death_signal),
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError, MosaicError) as error:
            self._say(f"{child.name} cannot be started: {error}")
            return False
        slot.process, slot.started = process, time.monotonic()
        slot.pidfd = os.pidfd_open(process.pid)
        self._selector.register(slot.pidfd, selectors.EVENT_READ, lambda: self._ended(slot))
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, lambda: self._read(slot))
        return True

    # ------------------------------------------------------------ the loop

    def _turn(self, limit: float | None = None) -> None:
        """Sleep until something happens (at most `limit` seconds), then deal with it and with restarts that are due."""
        now = time.monotonic()
        waits = [slot.due - now for slot in self._slots if slot.due is not None] + ([] if limit is None else [limit])
        for key, _ in self._selector.select(max(0.0, min(waits)) if waits else None):
            if key.fd in self._selector.get_map():  # an earlier event of this round may have closed it
                key.data()
        for slot in self._slots:
            if slot.due is not None and slot.due <= time.monotonic() and not self._stops and not self._start(slot):
                self._schedule(slot)

    def _ended(self, slot: _Slot) -> None:
        code = self._reap(slot)
        if self._stops:
            return
        if not slot.child.restart:
            self._say(f"{slot.child.name} ended ({_ending(code)}): stopping")
            return self._give_up(code if code >= 0 else 128 - code)
        if time.monotonic() - slot.started >= SETTLED:
            slot.backoff = BACKOFF_FIRST
        self._say(f"{slot.child.name} ended ({_ending(code)}): starting it again in {slot.backoff:g} s")
        self._schedule(slot)

    def _schedule(self, slot: _Slot) -> None:
        slot.due = time.monotonic() + slot.backoff
        slot.backoff = min(slot.backoff * 2, BACKOFF_LAST)

    def _reap(self, slot: _Slot) -> int:
        """Take what is left of an ended child: its group first, while its pid cannot belong to anyone else."""
        process = slot.process
        assert process is not None and process.stdout is not None
        _kill_group(process)
        code = process.wait()
        self._read(slot)
        self._flush(slot)
        self._unlisten(process.stdout)
        self._selector.unregister(slot.pidfd)
        os.close(slot.pidfd)
        process.stdout.close()
        slot.process = None
        return code

    # ------------------------------------------------------------ stopping

    def _give_up(self, code: int) -> None:
        self._code = code
        self.stop()

    def _stop_all(self) -> None:
        self._stops = max(self._stops, 1)  # whatever ends from here on is not started again
        for slot in reversed(self._slots):
            slot.due = None
            self._stop_one(slot)
        self._selector.close()  # the wake-up pipe stays open: another thread may still call stop()

    def _stop_one(self, slot: _Slot) -> None:
        child, process = slot.child, slot.process
        if process is None:
            return
        self._ask(slot, child.stop_signal, child.stop_timeout, 2)
        if self._stops > 1:
            self._ask(slot, signal.SIGINT, min(child.stop_timeout, HURRY), 3)
        if slot.process is process:
            self._say(f"{child.name} did not end in time: killed")
            _kill_group(process)
            self._reap(slot)

    def _ask(self, slot: _Slot, number: signal.Signals, seconds: float, enough: int) -> None:
        """Send the signal to a child and wait for its end, so long or until `enough` stops have been asked for."""
        process, deadline = slot.process, time.monotonic() + seconds
        if process is None:
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(slot.pidfd, number)
        while slot.process is process and time.monotonic() < deadline and self._stops < enough:
            self._turn(max(0.0, deadline - time.monotonic()))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals become stop(); outside the main thread Python cannot take them, so only stop() counts there."""
        try:
            before = {number: signal.signal(number, lambda *_: self.stop()) for number in _STOP_SIGNALS}
        except ValueError:
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ------------------------------------------------------------ output

    def _read(self, slot: _Slot) -> None:
        """Pass on the whole lines that are there; an end of file only ends the listening, not the child."""
        process = slot.process
        assert process is not None and process.stdout is not None
        try:
            while data := os.read(process.stdout.fileno(), LINE_LIMIT):
                *lines, slot.partial = (slot.partial + data).split(b"\n")
                self._write(slot.prefix, lines)
                if len(slot.partial) >= LINE_LIMIT:
                    self._flush(slot)
        except BlockingIOError:
            return
        self._unlisten(process.stdout)

    def _unlisten(self, pipe: IO[bytes]) -> None:
        with suppress(KeyError):  # at its end of file already
            self._selector.unregister(pipe)

    def _flush(self, slot: _Slot) -> None:
        if slot.partial:
            self._write(slot.prefix, [slot.partial])
            slot.partial = b""

    def _say(self, text: str) -> None:
        self._write(self._own, [text.encode()])

    def _write(self, prefix: bytes, lines: Sequence[bytes]) -> None:
        try:
            self._output.write(b"".join(self._shape(prefix, line.translate(None, _CONTROLS)) + b"\n" for line in lines))
            self._output.flush()
        except BrokenPipeError:  # whoever read our output is gone; the children still do their work
            self._output = open(os.devnull, "wb")  # noqa: SIM115
        except OSError:
            pass  # the disk of the output is full: what could not be written stays in the buffer, or is left out

    def _drain_wakeups(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wake_read, 512):
                pass


def _prefix(name: str, width: int, number: int | None) -> bytes:
    """`name | `, padded; in a colour of its own when `number` is given; the name alone when `width` is negative."""
    text = f"{name:<{max(width, len('mosaic'))}} | " if width >= 0 else name
    return (text if number is None else f"\x1b[{_COLOURS[number % len(_COLOURS)]}m{text}\x1b[0m").encode()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's process group. The child must not have been waited for yet."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def bound_to_us(death_signal: signal.Signals) -> Callable[[], None]:
    """What the new process does before its program starts: ask the kernel for `death_signal` when we die."""
    supervisor = os.getpid()

    def bind() -> None:
        if _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0 or os.getppid() != supervisor:
            os._exit(1)  # we died before the kernel could be asked

    return bind
