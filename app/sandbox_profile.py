"""The command line of one sandboxed run: what bubblewrap mounts, hides and limits.

One rule: whatever is not listed here is absent inside; a new mount needs a reason.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from app.types import MosaicError

WORK = PurePosixPath("/work")  # where the work tree always is, so that a venv made by setup works in the gates too
INNER_UID = 1000  # what the command believes to be
_TMP = "/tmp"  # noqa: S108  inside: a fresh tmpfs of its own
_SHM = "/dev/shm"  # noqa: S108  likewise
HOME = f"{_TMP}/home"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RESERVED = ("/proc", "/dev", "/usr", "/etc", _TMP, "/bin", "/sbin", "/lib", "/lib64")
_MIB = 1024 * 1024
_USERNS_HINT = (
    "Install bubblewrap (`apt-get install bubblewrap`) and let it create user namespaces: on Ubuntu give bwrap an "
    "AppArmor profile with `userns,`; in a container allow `unshare` and `mount`. Then run `mosaic doctor`."
)


class SandboxUnavailable(MosaicError):
    """Nothing was run, because it could not have been contained."""

    code = "sandbox_unavailable"

    def __init__(self, cause: str) -> None:
        super().__init__(f"The sandbox does not work here: {cause.strip().rstrip('.')}. {_USERNS_HINT}")
        self.cause = cause.strip()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use. `memory_mb` bounds the data of each process always, the whole tree where cgroups allow."""

    seconds: float
    memory_mb: int = 4096
    processes: int = 512
    file_mb: int = 1024
    tmp_mb: int = 512
    output_bytes: int = 1_000_000
    disk_mb: int = 8192  # size of the work tree beyond which the run is stopped
    files: int = 4096  # open files of one process
    address_space_mb: int = 0  # RLIMIT_AS; 0 = off, since Node, Go and Java reserve far more than they use


@dataclass(frozen=True, slots=True)
class Bwrap:
    path: str
    version: str
    options: frozenset[str]


@dataclass(frozen=True, slots=True)
class Mount:
    source: Path
    target: PurePosixPath
    writable: bool = False


# Options for bwrap. A bytes element is the content of a file, passed by number: `--ro-bind-data <fd> <target>`.
Options = list[str | bytes]


def program(name: str) -> str:
    """The absolute path of a system program; SandboxUnavailable when it is missing."""
    found = shutil.which(name, path=_SYSTEM_PATH)
    if found is None:
        raise SandboxUnavailable(f"the program `{name}` was not found")
    return found


@lru_cache(maxsize=4)
def _inspect(path: str, _changed: int) -> Bwrap:
    said = [
        subprocess.run(
            [path, flag], env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
        ).stdout
        for flag in ("--version", "--help")
    ]
    return Bwrap(path, said[0].split()[-1] if said[0].split() else "", frozenset(re.findall(r"--[a-z0-9-]+", said[1])))


def find_bwrap() -> Bwrap:
    """The installed bubblewrap and the options it knows."""
    path = program("bwrap")
    try:
        return _inspect(path, os.stat(path).st_mtime_ns)
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxUnavailable(f"`bwrap --version` failed: {error}") from error


def environment(env: Mapping[str, str], path: Sequence[str], home: str = HOME) -> dict[str, str]:
    """All variables the command sees: a fixed few, then the caller's."""
    fixed = {
        "PATH": ":".join([*path, _SYSTEM_PATH]),
        "HOME": home,
        "TMPDIR": _TMP if home == HOME else home,
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "CI": "true",
    }
    for name, value in env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
            raise MosaicError(
                f"The environment variable {name!r} cannot be passed to the sandbox: name or value is malformed."
            )
    return fixed | dict(env)


def limited(command: str, limits: Limits) -> list[str]:
    """`/bin/sh -c command` behind rlimits. Set inside, RLIMIT_NPROC counts this sandbox alone (from Linux 5.14 on)."""
    cpu = int(limits.seconds * (os.cpu_count() or 1)) + 1
    asked = {
        "core": (resource.RLIMIT_CORE, 0),
        "fsize": (resource.RLIMIT_FSIZE, limits.file_mb * _MIB),
        "cpu": (resource.RLIMIT_CPU, cpu),
        "nofile": (resource.RLIMIT_NOFILE, limits.files),
        "nproc": (resource.RLIMIT_NPROC, limits.processes),
        "data": (resource.RLIMIT_DATA, limits.memory_mb * _MIB),
    }
    if limits.address_space_mb:
        asked["as"] = (resource.RLIMIT_AS, limits.address_space_mb * _MIB)
    flags = [f"--{name}={_allowed(which, value)}" for name, (which, value) in asked.items()]
    return [program("prlimit"), *flags, "--", "/bin/sh", "-c", command]


def _allowed(which: int, value: int) -> str:
    """soft:hard, never above the hard limit that we have ourselves: raising it needs a right we may lack."""
    hard = resource.getrlimit(which)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    return f"{bound}:{bound}"


# ---------------------------------------------------------------- mounts


def checked_mounts(work: Path, read_only: Mapping[str, Path], tools: Sequence[Path]) -> list[Mount]:
    """The work tree and what is laid over it, each source a real file or directory.

    A target inside the work tree must not pass through a symbolic link: the tree's author could point it anywhere.
    Raises MosaicError naming the path that cannot be mounted.
    """
    mounts = [Mount(_real(work, only_directory=True), WORK, writable=True)]
    wanted = {**{str(tool): tool for tool in tools}, **read_only}
    laid = [Mount(_real(source), _target(target)) for target, source in wanted.items()]
    for mount in laid:
        if mount.target.is_relative_to(WORK):
            _no_links(work, mount.target.relative_to(WORK))
    return [*mounts, *_pinned(work, laid), *laid]


def _pinned(work: Path, laid: Sequence[Mount]) -> Iterator[Mount]:
    """The directories above a target, each mounted on itself: a mount point cannot be renamed away."""
    parents = {
        parent for mount in laid for parent in mount.target.parents if parent != WORK and parent.is_relative_to(WORK)
    }
    for parent in sorted(parents):
        source = work / parent.relative_to(WORK)
        if not source.exists():
            source.mkdir()
        yield Mount(_real(source, only_directory=True), parent, writable=True)


def _target(text: str) -> PurePosixPath:
    at = WORK / text  # an absolute text stays what it is
    within_reserved = any(str(at) == root for root in _RESERVED) or at.parts[:2] in (("/", "proc"), ("/", "dev"))
    if ".." in at.parts or "\0" in text or at in (WORK, PurePosixPath("/")) or within_reserved:
        raise MosaicError(
            f"Nothing can be mounted at `{text}` in the sandbox: name a path below the work tree or a tool's own."
        )
    return at


def _real(source: Path, *, only_directory: bool = False) -> Path:
    if source.is_symlink() or not (source.is_dir() or (source.is_file() and not only_directory)):
        raise MosaicError(
            f"`{source}` cannot be mounted in the sandbox: it is missing, a symbolic link or a special file."
        )
    return source.resolve(strict=True)


def _no_links(work: Path, inside: PurePosixPath) -> None:
    at = work
    for part in inside.parts:
        at = at / part
        if at.is_symlink():
            raise MosaicError(
                f"`{inside}` cannot be protected in the work tree: `{at.relative_to(work)}` is a symbolic link."
            )


# ---------------------------------------------------------------- profile


def profile(bwrap: Bwrap, mounts: Sequence[Mount], env: Mapping[str, str], limits: Limits, *, network: bool) -> Options:
    """Everything bwrap is told but the command. `mounts[0]` is the work tree; sources are paths bwrap can reach."""
    told: Options = ["--unshare-all", "--unshare-user", *(["--share-net"] if network else [])]
    told += ["--disable-userns"] if "--disable-userns" in bwrap.options else []
    told += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "gate"]
    told += ["--uid", str(INNER_UID), "--gid", str(INNER_UID), "--clearenv"]
    for name, value in env.items():
        told += ["--setenv", name, value]
    told += [*_system(), *_etc(network=network), "--proc", "/proc", "--dev", "/dev"]
    size = ["--size", str(limits.tmp_mb * _MIB)] if "--size" in bwrap.options else []
    told += ["--perms", "1777", *size, "--tmpfs", _SHM, "--remount-ro", "/dev"]
    told += ["--perms", "1777", *size, "--tmpfs", _TMP, "--dir", HOME]
    return [*told, *_mounted(mounts), "--chdir", str(WORK), "--remount-ro", "/"]


def _system() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        root = Path("/") / name
        if root.is_symlink():
            yield from ("--symlink", os.readlink(root), str(root))
        elif root.is_dir():
            yield from ("--ro-bind", str(root), str(root))


def _etc(*, network: bool) -> Iterator[str | bytes]:
    name = f"gate:x:{INNER_UID}:"
    hosts = "127.0.0.1 localhost gate\n::1 localhost\n"
    texts = {
        "/etc/passwd": f"root:x:0:0:root:/nonexistent:/bin/false\n{name}{INNER_UID}:gate:{HOME}:/bin/sh\n",
        "/etc/group": f"root:x:0:\n{name}\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "/etc/hosts": _text("/etc/hosts") + hosts if network else hosts,
    }
    if network:
        texts["/etc/resolv.conf"] = _text("/etc/resolv.conf")
    for target, text in texts.items():
        yield from ("--perms", "0444", "--ro-bind-data", text.encode(), target)
    shared = ["/etc/ld.so.cache", "/etc/alternatives"]
    shared += ["/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs", "/etc/pki/ca-trust"] if network else []
    for path in shared:
        yield from ("--ro-bind-try", path, path)


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _mounted(mounts: Sequence[Mount]) -> Iterator[str]:
    for mount in mounts:
        yield from ("--bind" if mount.writable else "--ro-bind", str(mount.source), str(mount.target))
