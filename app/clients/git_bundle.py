"""Refs that exist in a mirror only, never on the forge: listed, packed into one file, taken from one, dropped.

One rule: only names below `refs/mosaic/` are read or written here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from app.clients.git import Git
from app.clients.git_env import Call, Output, run
from app.clients.git_errors import local_failure
from app.clients.git_read import ref_ok
from app.types import Permanent

KEPT = "refs/mosaic/"
_SECONDS = 3600.0  # a bundle holds the whole history of its refs


def kept_refs(mirror: Path) -> tuple[str, ...]:
    """The refs below `refs/mosaic/` of a mirror, sorted."""
    listing = _git(mirror, "for-each-ref", "--format=%(refname)", KEPT)
    return tuple(name for name in listing.out.decode().splitlines() if ref_ok(name))


def write_bundle(mirror: Path, refs: Sequence[str], into: Path) -> None:
    """Pack these refs with all their history: the file needs nothing else to be read."""
    _git(mirror, "bundle", "create", "--quiet", str(into), *map(_checked, refs))


def read_bundle(mirror: Path, bundle: Path) -> tuple[str, ...]:
    """Take the refs of a bundle into a mirror (made when absent); their names. Objects are checked on the way."""
    git = Git(mirror, None)
    git.ensure()
    listing = _git(mirror, "bundle", "list-heads", str(bundle)).out.decode().splitlines()
    _git(mirror, "bundle", "unbundle", str(bundle))
    names = []
    for line in listing:
        sha, _, name = line.partition(" ")
        git.keep(sha, _checked(name))
        names.append(name)
    return tuple(names)


def drop_refs(mirror: Path, refs: Sequence[str]) -> None:
    """Forget refs; their commits go at the next `tidy`."""
    git = Git(mirror, None)
    with git._lock() as lock:
        for name in refs:
            _git(mirror, "update-ref", "--no-deref", "-d", _checked(name), keep_open=(lock,))


def tidy(mirror: Path) -> None:
    """Pack what is loose and drop what no ref has held for two weeks."""
    git = Git(mirror, None)
    with git._lock() as lock:
        _git(mirror, "gc", "--quiet", "--prune=2.weeks.ago", keep_open=(lock,))


def _checked(name: str) -> str:
    if not name.startswith(KEPT) or not ref_ok(name):
        raise Permanent(f"{name!r} is not a name below {KEPT}.", code="invalid_name")
    return name


def _git(mirror: Path, *arguments: str, keep_open: tuple[int, ...] = ()) -> Output:
    output = run(Call(arguments, mirror.absolute(), timeout=_SECONDS, keep_open=keep_open))
    if output.code != 0:
        raise local_failure(arguments[0], output)
    return output


def remove_mirror(mirror: Path, unused: Callable[[], bool]) -> bool:
    """Throw a mirror away, if `unused` still says so while nobody can change it; it vanishes in one step."""
    with Git(mirror, None)._lock():
        if not unused():
            return False
        doomed = Path(tempfile.mkdtemp(prefix=f".{mirror.name}-", dir=mirror.parent))
        mirror.rename(doomed / mirror.name)
    shutil.rmtree(doomed)
    return True
