"""`mosaic gc`: throws away what nobody needs any more, by hand or once a day by itself.

One rule: what an open job may touch stays, and the ledger is never shortened.

Files are judged on the machine where they lie, by what the database says of their job; rows by whoever comes first.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.clients import git_bundle
from app.clients.openclaw import OpenClaw, session_key
from app.edge import connected
from app.ledger import tidy
from app.paths import Paths
from app.queries import of_operations
from app.sandbox_host import discard
from app.settings import Settings
from app.types import MosaicError

log = logging.getLogger("mosaic.gc")
DAY = 86_400.0
LOOK_SECONDS = 600.0
CONVERSATION_DAYS = 8  # it is looked every day; what the gateway missed for so long, `mosaic gc` finds
_OF_JOB = re.compile(r"([0-9]{1,18})-[0-9].*")
_REF = re.compile(r"refs/mosaic/(?:wip/|job-)([0-9]{1,18})(?:/.*)?")


@dataclass(frozen=True, slots=True)
class Freed:
    """`bytes` is what the files or texts took; what the disk gives back may differ."""

    what: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Collector:
    """`dry`: only say what would go. The caller has the database open."""

    paths: Paths
    days: int
    dry: bool = False

    def files(self) -> Iterator[Freed]:
        """What lies in this machine's data directory."""
        yield self._trees("worktrees of ended jobs", ("worktrees", "indexes"))
        yield self._trees("gate checkouts of ended jobs", ("checkouts",))
        yield self._caches()
        yield self._refs()
        yield self._mirrors()
        yield self._leftovers()

    def rows(self) -> Iterator[Freed]:
        """What lies in the database."""
        output, bodies = of_operations.old_output(self.days), of_operations.old_bodies(self.days)
        if not self.dry:
            tidy.drop_output(self.days)
            tidy.drop_bodies(self.days)
        yield Freed("pieces of step output", output["n"], output["bytes"])
        yield Freed("webhook bodies", bodies["n"], bodies["bytes"])

    def _trees(self, what: str, folders: tuple[str, ...]) -> Freed:
        found = [(int(m[1]), path) for path in self._entries(*folders) if (m := _OF_JOB.fullmatch(path.name))]
        ended = of_operations.over([job for job, _ in found])
        return self._drop(what, (path for job, path in found if job in ended))

    def _caches(self) -> Freed:
        """Setup caches that nobody used for long. A cache is dropped under its own lock, as it is filled."""
        used, dropped = of_operations.caches_in_use(), []
        for path in self._entries("setup"):
            if path.suffix != ".lock" and path.name not in used and self._old(path):
                with _lock(path.with_name(f"{path.name}.lock")) as ours:
                    if ours:
                        dropped.append(self._drop("", [path]))
        return _sum("setup caches", dropped)

    def _refs(self) -> Freed:
        """Commits kept for jobs that ended long ago: saved work that nobody continued, and the rounds of jobs."""
        count = 0
        for mirror in self._mirror_dirs():
            refs = {name: int(m[1]) for name in git_bundle.kept_refs(mirror) if (m := _REF.fullmatch(name))}
            old = of_operations.forgotten(list(refs.values()), self.days)
            gone = [name for name, job in refs.items() if job in old]
            count += len(gone)
            if gone and not self.dry:
                git_bundle.drop_refs(mirror, gone)
                git_bundle.tidy(mirror)
        return Freed("kept commits of old jobs", count, 0)

    def _mirrors(self) -> Freed:
        """Mirrors that no job used for long; the next job of the repository fetches it again."""
        dropped = []
        for mirror in self._mirror_dirs():
            if self._unused(mirror):
                size = _size(mirror)
                if self.dry or git_bundle.remove_mirror(mirror, partial(self._unused, mirror)):
                    dropped.append(Freed("", 1, size))
        return _sum("mirrors of unused repositories", dropped)

    def _unused(self, mirror: Path) -> bool:
        return int(mirror.stem) not in of_operations.repositories_in_use(self.days) and self._old(mirror / "HEAD", 1)

    def _leftovers(self) -> Freed:
        """Half-made things of killed processes: old enough that nobody still makes them."""
        halves = [path for path in self.paths.data.glob(".backup-*") if path.is_dir()]
        halves += (self.paths.data / "mirrors").glob(".*.git-*")
        return self._drop("leftovers of killed processes", (path for path in halves if self._old(path, 1)))

    def _entries(self, *folders: str) -> list[Path]:
        places = [self.paths.data / name for name in folders]
        return [path for place in places if place.is_dir() for path in sorted(place.iterdir())]

    def _mirror_dirs(self) -> list[Path]:
        return sorted((self.paths.data / "mirrors").glob("[0-9]*.git"))

    def _old(self, path: Path, days: int | None = None) -> bool:
        with suppress(FileNotFoundError):
            return path.lstat().st_mtime < time.time() - DAY * (self.days if days is None else days)
        return False

    def _drop(self, what: str, paths: Iterable[Path]) -> Freed:
        count = size = 0
        for path in paths:
            count, size = count + 1, size + _size(path)
            if not self.dry:
                discard(path)
        return Freed(what, count, size)


def conversations(settings: Settings, days: int, *, dry: bool) -> Iterator[Freed]:
    """What the agent's gateway keeps of jobs that ended in the last `days`: conversations hold prompts and code."""
    engine, count = OpenClaw(settings.openclaw_url, settings.openclaw_token), 0
    for job, names in of_operations.conversations(days).items():
        for name in names:
            session = name if ":" in name else session_key("write", f"{job}-{name}")
            if dry:
                count += engine.describe(session) is not None
            else:
                count += engine.delete(session)
    yield Freed("conversations of ended jobs", count, 0)
    archived = [
        path
        for path in (settings.data_dir / "engine" / "agents").glob("*/sessions/*")
        if ".deleted." in path.name and path.is_file()
    ]
    size = sum(map(_size, archived))
    for path in archived if not dry else ():
        path.unlink(missing_ok=True)
    yield Freed("archived conversations", len(archived), size)


def _sum(what: str, parts: Iterable[Freed]) -> Freed:
    each = list(parts)
    return Freed(what, sum(part.count for part in each), sum(part.bytes for part in each))


def _size(path: Path) -> int:
    """Bytes of a file or of everything below a directory; links are not followed."""
    total = 0
    with suppress(FileNotFoundError):
        total = path.lstat().st_size
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


# ---------------------------------------------------------------- once a day


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether the lock of that file is ours for the block."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def once_a_day(part: str, data_dir: Path, work: Callable[[], Iterable[Freed]], *, every: float = DAY) -> bool:
    """Do the work if a day has passed since it was done on this machine and nobody else is at it; whether it was done.

    The first day begins when this is asked for the first time: a fresh start is not burdened.
    """
    stamp = data_dir / f"gc-{part}.stamp"
    with _lock(data_dir / f"gc-{part}.lock") as elected:
        if not elected:
            return False
        if not stamp.exists():
            stamp.touch(mode=0o600)
        if time.time() - stamp.stat().st_mtime < every:
            return False
        for freed in work():
            if freed.count:
                log.info("%s: %s, %s bytes", freed.what, freed.count, freed.bytes)
        os.utime(stamp)
        return True


def start(part: str, settings: Settings) -> None:
    """Collect in the background of this consumer: control its files and the database, agents the conversations."""

    def work() -> Iterator[Freed]:
        with connected():
            if part == "agents":
                yield from conversations(settings, CONVERSATION_DAYS, dry=False)
                return
            collector = Collector(Paths(settings.data_dir), settings.keep_days)
            yield from collector.files()
            yield from collector.rows()

    def turn() -> None:
        while True:
            try:
                once_a_day(part, settings.data_dir, work)
            except MosaicError as error:
                log.warning("the daily tidying broke off and is tried again: %s", error)
            except Exception:
                log.exception("the daily tidying broke off and is tried again")
            time.sleep(LOOK_SECONDS)

    threading.Thread(target=turn, name="gc", daemon=True).start()
