"""A running process tree: start it, know when all of it is gone, kill it.

One rule: nothing of the tree outlives `close`, not even a child that left its session and process group.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from app.sandbox_profile import Options
from app.types import MosaicError

_START_SECONDS = 30.0
_DEATH_SECONDS = 10.0
# The command starts on a word from us and not before: a worker that dies earlier leaves nothing running.
_ON_WORD = 'read -r go && [ "$go" = go ] && exec "$@" </dev/null'


class Tree(Protocol):
    output: IO[bytes]
    ended: int  # a file descriptor that becomes readable when the command has ended

    def close(self) -> int | None:
        """Kill what is left and wait until all of it is gone.

        The command's exit code (128 + signal when one ended it); None when it never ran, and the output says why.
        """


def _popen(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: str, fds: Iterable[int] = ()
) -> subprocess.Popen[bytes]:
    """Started with exactly this environment: what a launcher inherits can be read at /proc/1/environ in the sandbox."""
    return subprocess.Popen(
        argv, env=dict(env), cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, pass_fds=tuple(fds), bufsize=0,
    )  # fmt: skip


def _word(item: str | bytes, fds: list[int]) -> str:
    """The option as bwrap takes it; a content becomes the number of a file that is added to `fds`."""
    if isinstance(item, str):
        return item
    fds.append(_memory_file(item))
    return str(fds[-1])


def _memory_file(content: bytes) -> int:
    """A file descriptor, at its start, that holds `content` and has no name."""
    fd = os.memfd_create("mosaic", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _wait_readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _say_go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(b"go\n")


class BwrapTree:
    """bwrap, its first process inside, and all below. When that first one is gone, the kernel has killed the rest."""

    def __init__(self, launcher: Sequence[str], told: Options, command: Sequence[str]) -> None:
        """`launcher`: words that end where bwrap's own options begin.

        The options go over a file descriptor: host paths must not show in /proc/1/cmdline inside.
        """
        status, writer = os.pipe()
        fds = [writer]
        try:
            words = [_word(item, fds) for item in ["--json-status-fd", str(writer), *told]]
            fds.append(_memory_file("".join(f"{word}\0" for word in words).encode()))
            argv = [*launcher, "--args", str(fds[-1]), "--", "/bin/sh", "-c", _ON_WORD, "sh", *command]
            self._process = _popen(argv, env={}, cwd="/", fds=fds)
        except BaseException:
            os.close(status)
            raise
        finally:
            for fd in fds:
                os.close(fd)
        assert self._process.stdout is not None
        self.output = self._process.stdout
        self._status = os.fdopen(status, "rb", buffering=0)
        self.ended = os.pidfd_open(self._process.pid)
        self._init: int | None = None  # pidfd of the first process inside
        try:
            self._release()
        except BaseException:
            self._kill()
            raise

    def _release(self) -> None:
        """Take hold of the first process inside, then let the command start. When that fails, `close` says so."""
        first = self._status_line()
        if not first:
            return self._kill()
        with suppress(ProcessLookupError, BrokenPipeError):  # it is gone already
            self._init = os.pidfd_open(json.loads(first)["child-pid"])
            _say_go(self._process)

    def _status_line(self) -> bytes:
        line, deadline = b"", time.monotonic() + _START_SECONDS
        while not line.endswith(b"\n") and _wait_readable(self._status.fileno(), deadline - time.monotonic()):
            part = self._status.read(1)
            if not part:
                return b""
            line += part
        return line if line.endswith(b"\n") else b""

    def close(self) -> int | None:
        killed = not _wait_readable(self.ended, 0)
        try:
            self._kill()
            returncode = self._process.wait(_DEATH_SECONDS)
            ran = self._init is not None and b"exit-code" in (self._status.read(65536) or b"")
            if self._init is None or not (ran or killed or returncode < 0):
                return None
            return _exit_code(returncode)
        finally:
            for closing in (self._status, self._process.stdin):
                if closing is not None:
                    closing.close()
            for fd in (self.ended, self._init):
                if fd is not None:
                    os.close(fd)

    def _kill(self) -> None:
        for fd in (self._init, self.ended):
            if fd is None:
                continue
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            except ProcessLookupError:
                continue
            if not _wait_readable(fd, _DEATH_SECONDS):
                raise MosaicError(
                    "A sandboxed process could not be killed: it hangs in the kernel (disk or network mount)."
                )


class BareTree:
    """The typed choice to run without a sandbox: own session, a mark in the environment by which strays are found."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], work: Path) -> None:
        self._mark = f"MOSAIC_RUN={secrets.token_hex(16)}"
        name, value = self._mark.split("=")
        argv = ["/bin/sh", "-c", _ON_WORD, "sh", *command]
        self._process = _popen(argv, env={**env, name: value}, cwd=str(work))
        assert self._process.stdout is not None
        self.output = self._process.stdout
        self.ended = os.pidfd_open(self._process.pid)
        _say_go(self._process)

    def close(self) -> int | None:
        """As the protocol says. A child that cleared its environment *and* left the session is not found."""
        deadline = time.monotonic() + _DEATH_SECONDS
        try:
            while self._sweep():
                if time.monotonic() > deadline:
                    raise MosaicError(
                        "The command's processes multiply faster than they can be killed without a sandbox."
                    )
            return _exit_code(self._process.wait(_DEATH_SECONDS))
        finally:
            os.close(self.ended)

    def _sweep(self) -> bool:
        """Kill the process group (its leader is not reaped yet: the number is still ours) and every marked process."""
        with suppress(ProcessLookupError):  # no one is left in the group; strays may be
            os.killpg(self._process.pid, signal.SIGKILL)
        strays = [
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _marked(pid, self._mark.encode())
        ]
        for pid in strays:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(strays)


def _marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False  # gone, or somebody else's
