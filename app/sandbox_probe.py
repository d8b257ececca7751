"""Prove that the sandbox of this machine holds, by trying to break out of it.

One rule: an assertion that could not be tried counts as failed.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from app import sandbox
from app.sandbox_profile import find_bwrap

_LIMITS = sandbox.Limits(seconds=60, processes=64, tmp_mb=16, file_mb=16)
_SLEEPER = "import sys; sys.stdin.read()"  # ends with its parent, which holds the other end

# Runs inside. argv: port, abstract socket name, canary file, canary value. Prints {name: problem or null}.
_ATTEMPTS = r"""
import ctypes, errno, fcntl, glob, json, os, signal, socket, sys
port, abstract, canary_file, canary = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4].encode()

def network():
    inet, unix = socket.AF_INET, socket.AF_UNIX
    for family, address in [(inet, ("127.0.0.1", port)), (unix, "\0" + abstract), (inet, ("192.0.2.1", 80))]:
        with socket.socket(family, socket.SOCK_STREAM) as it:
            it.settimeout(3)
            try:
                it.connect(address)
            except OSError as error:
                if error.errno not in (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH):
                    return f"connecting to {address!r} gave {error!r}, not a refusal"
            else:
                return f"a connection to {address!r} on the host succeeded"
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    return f"network interfaces other than loopback: {others}" if others else None

def canary_file_unreadable():
    try:
        open(canary_file).close()
    except OSError:
        return None
    return "a file of the host outside the work tree could be opened"

def environment():
    expected = {b"PWD", b"OLDPWD", b"SHLVL", b"_", b"PATH", b"HOME", b"TMPDIR", b"LANG", b"TERM", b"CI", b"LC_CTYPE"}
    for name in glob.glob("/proc/[0-9]*/environ"):
        try:
            block = open(name, "rb").read()
        except OSError:
            continue
        names = {part.split(b"=")[0] for part in block.split(b"\0") if part}
        if canary in block or names - expected:
            return f"{name} shows the host's environment: {sorted(names - expected)}"
    return None

def system_read_only():
    for where in ("/usr", "/etc", "/dev", "/"):
        path = os.path.join(where, "mosaic-probe")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except OSError:
            continue
        os.unlink(path)
        return f"a file could be created in {where}"
    return None

def nested_namespaces():
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0:
        return "another user namespace could be made inside"
    return None

def leave_a_child():
    ready, told = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        fcntl.flock(os.open("lock", os.O_RDWR), fcntl.LOCK_EX)
        os.write(told, b"1")
        signal.alarm(60)  # without a sandbox nobody else would end it
        signal.pause()
    os.wait()
    return None if os.read(ready, 1) else "the detached child did not start"

def tried(attempt):
    try:
        return attempt()
    except Exception as error:
        return f"could not be tried: {error!r}"

checks = (network, canary_file_unreadable, environment, system_read_only, nested_namespaces, leave_a_child)
print("\nMOSAIC-PROBE " + json.dumps({check.__name__: tried(check) for check in checks}))
"""
_NAMES = {
    "network": "the host's network is out of reach",
    "canary_file_unreadable": "files of the host cannot be read",
    "environment": "the launcher's environment cannot be read",
    "system_read_only": "the system is read-only",
    "nested_namespaces": "no namespace can be nested",
    "leave_a_child": "a detached child dies with the run",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """`failures`: one sentence per assertion that does not hold; empty exactly when `ok`."""

    ok: bool
    backend: str
    version: str
    failures: tuple[str, ...]


def probe(run: Callable[..., sandbox.Ran] = sandbox.run) -> Probe:
    """Six attempts to break out, in about a tenth of a second; `run` is the sandbox under test.

    A sandbox that cannot start at all is a failed probe, not an exception.
    """
    try:
        version = find_bwrap().version
        failures = _failures(run)
    except sandbox.SandboxUnavailable as error:
        return Probe(False, "bubblewrap", "", (str(error),))
    return Probe(not failures, "bubblewrap", version, failures)


def require() -> Probe:
    """The probe, or SandboxUnavailable naming what does not hold."""
    done = probe()
    if not done.ok:
        raise sandbox.SandboxUnavailable("; ".join(done.failures))
    return done


def _failures(run: Callable[..., sandbox.Ran]) -> tuple[str, ...]:
    canary = secrets.token_hex(16)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mosaic-probe-")))
        place.chmod(0o755)
        work, outside = place / "work", place / "canary"
        work.mkdir()
        lock = work / "lock"
        lock.touch()
        lock.chmod(0o666)
        outside.write_text(canary)
        port, abstract = stack.enter_context(_listeners())
        stack.enter_context(_bystander(canary))
        arguments = [str(port), abstract, str(outside), canary]
        ran = run(_command(work, arguments), work=work, limits=_LIMITS, tools=_interpreter())
        problems = _reported(ran)
        if not _unlocked(lock):
            problems["leave_a_child"] = "a child that left its session still runs"
    return tuple(f"not true here: {_NAMES[name]} ({problem})" for name, problem in problems.items() if problem)


def _command(work: Path, arguments: Sequence[str]) -> str:
    (work / "probe.py").write_text(_ATTEMPTS)
    python = os.path.realpath(sys.executable)
    return " ".join([f"'{python}' -I -S probe.py", *arguments])


def _interpreter() -> list[Path]:
    """Our own Python, unless the system's directories hold it anyway."""
    home = Path(os.path.realpath(sys.base_prefix))
    return [] if home == Path("/usr") or home.is_relative_to("/usr") else [home]


def _reported(ran: sandbox.Ran) -> dict[str, str | None]:
    """What each attempt said; an attempt without an answer is a problem."""
    said = [line.partition(" ")[2] for line in ran.output.splitlines() if line.startswith("MOSAIC-PROBE ")]
    answers = json.loads(said[-1]) if said else {}
    silent = f"no answer, exit code {ran.exit_code}: {ran.output.strip()[-200:]}"
    return {name: answers.get(name, silent) for name in _NAMES}


@contextmanager
def _listeners() -> Iterator[tuple[int, str]]:
    """A TCP port and an abstract unix socket of the host, both of which would accept."""
    abstract = f"mosaic-probe-{secrets.token_hex(8)}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        unix.bind(f"\0{abstract}")
        tcp.listen()
        unix.listen()
        yield tcp.getsockname()[1], abstract


@contextmanager
def _bystander(canary: str) -> Iterator[None]:
    """A process of the host whose environment holds the canary."""
    argv = [sys.executable, "-I", "-S", "-c", _SLEEPER]
    with subprocess.Popen(
        argv, env={"MOSAIC_CANARY": canary}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as child:
        try:
            yield
        finally:
            child.kill()


def _unlocked(path: Path) -> bool:
    """Whether the process that held the lock is dead: the kernel drops a lock with its last holder."""
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
