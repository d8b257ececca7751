"""The host's side of a sandboxed run: an unprivileged account, a stage it can reach, control groups.

One rule: the host is left as it was found, also when the run is killed half-way.
"""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from app.sandbox_profile import Limits, Mount, SandboxUnavailable, program
from app.types import MosaicError

_STAGES = ("/mnt", "/media", "/srv", "/opt", "/run")
_CGROUPS = Path("/sys/fs/cgroup")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Account:
    """Who the command is on the host when Mosaic runs as root. The default belongs to nobody on a common Linux system
    (systemd leaves 65520 to 65533 unused), so that no daemon shares it."""

    uid: int = 65530
    gid: int = 65530


# ---------------------------------------------------------------- ownership


@contextmanager
def lent(work: Path, account: Account | None) -> Iterator[None]:
    """The tree belongs to `account` meanwhile, and afterwards all of it to whoever owned its root before.

    chown(1) is used because it walks trees of any depth without following links; it also drops setuid bits.
    """
    if account is None:
        yield
        return
    before = work.lstat()
    _chown(work, account.uid, account.gid)
    try:
        yield
    finally:
        _chown(work, before.st_uid, before.st_gid)


def _chown(tree: Path, uid: int, gid: int) -> None:
    complaint = _quietly(["chown", "--no-dereference", "-R", "-P", f"{uid}:{gid}", "--", str(tree)])
    if complaint:
        raise MosaicError(f"The owner of the work tree could not be changed to {uid}:{gid}: {complaint}")


def discard(tree: Path) -> None:
    """Remove a work tree whatever a command left in it: locked directories, endless depth. Missing is fine."""
    if not os.path.lexists(tree):
        return
    if os.geteuid() != 0 and tree.is_dir() and not tree.is_symlink():
        _quietly(["chmod", "-R", "u+rwX", "--", str(tree)])
    complaint = _quietly(["rm", "-rf", "--one-file-system", "--", str(tree)])
    if complaint:
        raise MosaicError(f"The work tree {tree} could not be removed: {complaint}")


def _quietly(argv: Sequence[str]) -> str:
    """Run a system program with an empty environment; what it complained about when it failed."""
    done = subprocess.run(
        [program(argv[0]), *argv[1:]],
        env={}, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stderr.strip()[-300:] or f"{argv[0]} ended with {done.returncode}"


# ---------------------------------------------------------------- stage


def staged(mounts: Sequence[Mount]) -> tuple[list[Mount], list[str]]:
    """For root: the same mounts seen from a stage that the unprivileged account can reach.

    The stage is a small tmpfs over a system directory, in a mount namespace of its own: nothing shows outside and
    nothing is left when the process dies. Returns the mounts with their sources on it, and the shell lines for it.
    """
    sources = [mount.source for mount in mounts]
    stage = next((path for path in _STAGES if _free(Path(path), sources)), None)
    if stage is None:
        raise SandboxUnavailable(f"none of {', '.join(_STAGES)} can serve as a stage for the mounts")
    mount = shlex.quote(program("mount"))
    lines = [f"{mount} -n -t tmpfs -o mode=0755,size=1m,nosuid,nodev mosaic {stage}"]
    moved = []
    for number, item in enumerate(mounts):
        at = f"{stage}/{number}"
        lines.append(f"mkdir {at}" if item.source.is_dir() else f": >{at}")
        lines.append(f"{mount} -n --bind {shlex.quote(str(item.source))} {at}")
        moved.append(replace(item, source=Path(at)))
    return moved, lines


def _free(path: Path, sources: Sequence[Path]) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(source.is_relative_to(path) for source in sources)


def readable_by_others(mounts: Sequence[Mount]) -> None:
    """Refuse early what the unprivileged account could not read: only the work tree is lent to it."""
    for mount in mounts:
        need = 0o005 if mount.source.is_dir() else 0o004
        if not mount.writable and mount.source.stat().st_mode & need != need:
            raise MosaicError(f"`{mount.source}` is mounted in the sandbox but others may not read it: chmod o+rX it.")


# ---------------------------------------------------------------- control groups


@contextmanager
def cgroups(limits: Limits) -> Iterator[tuple[Path, ...]]:
    """Groups that bound memory and number of processes of the whole tree, as far as this machine lets us make them.

    Best effort: version 1 hierarchies that we may write to, or a delegated version 2 group (systemd: `Delegate=yes`
    with `DelegateSubgroup=`). Yields the `cgroup.procs` files to enter; none where that is impossible.
    """
    made: list[Path] = []
    try:
        for parent, settings in _controllers(limits):
            _sweep(parent)
            group = _made(parent, settings)
            if group is not None:
                made.append(group)
        yield tuple(group / "cgroup.procs" for group in made)
    finally:
        for group in made:
            _remove(group)


def _controllers(limits: Limits) -> Iterator[tuple[Path, dict[str, str]]]:
    memory, processes = str(limits.memory_mb * 1024 * 1024), str(limits.processes + 8)
    version2 = {"memory.max": memory, "memory.swap.max": "0", "pids.max": processes}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, own = line.split(":", 2)
        if names == "memory":
            yield (
                _CGROUPS / "memory" / own.lstrip("/"),
                {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory},
            )
        elif names == "pids":
            yield _CGROUPS / "pids" / own.lstrip("/"), {"pids.max": processes}
        elif names == "" and own != "/" and (_CGROUPS / "cgroup.controllers").exists():
            # A group that holds processes cannot hand controllers down, so ours must be a sibling of the worker's own.
            yield _CGROUPS / own.strip("/").rpartition("/")[0], version2


def _made(parent: Path, settings: dict[str, str]) -> Path | None:
    """A group below `parent` with the settings it offers; None when it offers none or we may not."""
    group = parent / f"mosaic-{os.getpid()}-{next(_numbers)}"
    try:
        group.mkdir()
    except OSError:
        return None
    applied = [name for name, value in settings.items() if _write(group / name, value)]
    if not applied or not os.access(group / "cgroup.procs", os.W_OK):
        _remove(group)
        return None
    return group


def _write(path: Path, value: str) -> bool:
    try:
        with open(path, "r+") as file:  # never creates: a missing setting is a controller that is not there
            file.write(value)
    except OSError:
        return False
    return True


def _sweep(parent: Path) -> None:
    """Remove the groups of workers that were killed; the kernel keeps those that still hold a process."""
    for group in parent.glob("mosaic-*-*"):
        if not Path("/proc", group.name.split("-")[1]).exists():
            _remove(group)


def _remove(group: Path) -> None:
    try:
        group.rmdir()
    except OSError:
        return  # still draining: an empty group costs nothing and has no name that is used again
