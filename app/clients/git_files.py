"""Between a mirror and a plain directory of files: checkout and commit, with the git dir out of the files' reach.

Its one rule: whatever stands in the directory is content. Nothing in it, `.git` included, configures git or runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from app.clients.git_env import Call, Output
from app.clients.git_errors import local_failure
from app.types import Permanent

MAX_TREE_BYTES = 8 * 1024**3  # of all files together: one small object may stand in a tree a thousand times
Person = tuple[str, str]  # name, e-mail address


@dataclass(frozen=True, slots=True)
class Commit:
    sha: str
    tree: str


@dataclass(frozen=True, slots=True)
class Files:
    """A directory of files without a git dir, and its index, which lies outside the directory."""

    ask: Callable[[Call], Output]  # runs a call in the mirror
    git_dir: Path
    work: Path
    index: Path

    def checkout(self, sha: str, exclude: Sequence[str]) -> tuple[str, ...]:
        """Writes the tree of `sha` into an absent or empty directory; gives the paths left out, sorted."""
        _require_empty(self.work)
        with self._scratch(copy=False) as files:
            files.git("read-tree", sha)
            hidden = files.paths(_pathspecs(exclude, "")) if exclude else []
            shown = sorted(set(files.paths([])) - set(hidden))
            files.git("checkout-index", "-z", "--stdin", "-u", "-q", stdin=_joined(shown))
        return tuple(sorted(path.decode("utf-8", "backslashreplace") for path in hidden))

    def stage(self, parent: str, exclude: Sequence[str]) -> str:
        """Everything below the directory on top of `parent`, as `git add -A` sees it; gives the tree's sha.

        Gitlinks leave the index while `git add` runs: it would start a git inside a changed submodule, and that one
        obeys the filters of the `.git` it finds there. Those whose directory is still empty are put back.
        """
        with self._scratch(copy=True) as files:
            files.git("read-tree", "--reset", parent)
            links = files.gitlinks()
            files.git("update-index", "-z", "--force-remove", "--stdin", stdin=_joined(list(links)))
            files.add(exclude)
            kept = [b"160000 %b\t%b" % (links[path], path) for path in links if _is_empty_dir(self.work, path)]
            files.git("update-index", "-z", "--index-info", stdin=_joined(kept))
            return files.git("write-tree").decode().strip()

    def purge(self, patterns: Sequence[str]) -> tuple[str, ...]:
        """Removes the files of the directory that a pattern names, ignored ones too; gives their paths, sorted."""
        listed = self.git("ls-files", "-z", "--cached", "--others", "--", *_pathspecs(patterns, "")).split(b"\0")
        found = sorted({path.rstrip(b"/") for path in listed if path and _is_leaf(self.work, path.rstrip(b"/"))})
        for path in found:
            os.unlink(os.path.join(os.fsencode(self.work), path))
        return tuple(path.decode("utf-8", "backslashreplace") for path in found)

    def add(self, exclude: Sequence[str]) -> None:
        output = self._ask("add", "--all", "--", ".", *_pathspecs(exclude, "exclude,"))
        if output.code != 0:
            raise local_failure("add", output, code="policy_violation")

    def git(self, *args: str, stdin: bytes = b"") -> bytes:
        output = self._ask(*args, stdin=stdin)
        if output.code != 0:
            raise local_failure(args[0], output)
        return output.out

    def paths(self, pathspecs: Sequence[str]) -> list[bytes]:
        return [path for path in self.git("ls-files", "-z", "--", *pathspecs).split(b"\0") if path]

    def gitlinks(self) -> dict[bytes, bytes]:
        """path -> commit id of every submodule in the index."""
        found = {}
        for entry in self.git("ls-files", "-z", "--stage").split(b"\0"):
            if entry.startswith(b"160000 "):
                about, path = entry.split(b"\t", 1)
                found[path] = about.split(b" ")[1]
        return found

    def _ask(self, *args: str, stdin: bytes = b"") -> Output:
        # 022: the gates run under other accounts and must be able to read the files
        return self.ask(Call(args, self.git_dir, self.work, self.index, stdin=stdin, umask=0o022))

    @contextlib.contextmanager
    def _scratch(self, *, copy: bool) -> Iterator[Files]:
        """Works on a private index and puts it in place at the end: a killed run leaves the old one, and no lock."""
        self.index.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".index-", dir=self.index.parent))
        try:
            if copy and self.index.exists():
                shutil.copy2(self.index, folder / "index")
            yield replace(self, index=folder / "index")
            os.replace(folder / "index", self.index)
        finally:
            shutil.rmtree(folder)


def identity(author: Person, committer: Person, at: datetime) -> dict[str, str]:
    """The environment that fixes who and when, so that the same change is the same commit on every try."""
    if at.tzinfo is None:
        raise ValueError("the commit's time needs a time zone")
    when = f"@{int(at.timestamp())} +0000"
    return {
        "GIT_AUTHOR_NAME": author[0],
        "GIT_AUTHOR_EMAIL": author[1],
        "GIT_AUTHOR_DATE": when,
        "GIT_COMMITTER_NAME": committer[0],
        "GIT_COMMITTER_EMAIL": committer[1],
        "GIT_COMMITTER_DATE": when,
    }


def _pathspecs(patterns: Sequence[str], magic: str) -> list[str]:
    """Each pattern at any depth, in any case, as a file and as a folder with all below it."""
    specs = []
    for pattern in patterns:
        clean = pattern.strip("/")
        if not clean or not clean.isprintable() or ".." in clean.split("/"):
            raise Permanent(f"{pattern!r} is not a usable path pattern.", code="config_invalid")
        specs += [f":(top,{magic}icase,glob)**/{clean}", f":(top,{magic}icase,glob)**/{clean}/**"]
    return specs


def _require_empty(work: Path) -> None:
    if work.is_symlink() or (work.exists() and (not work.is_dir() or any(work.iterdir()))):
        raise Permanent(f"{work} is not an empty directory: a checkout needs a fresh one.", code="not_empty")
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o755)


def _is_empty_dir(work: Path, path: bytes) -> bool:
    """True only for a real directory reached through no symlink: a link below would lead the check elsewhere."""
    place = os.path.join(os.path.realpath(os.fsencode(work)), path)
    return os.path.realpath(place) == place and os.path.isdir(place) and not os.listdir(place)


def _is_leaf(work: Path, path: bytes) -> bool:
    """A file or link that is there, in a directory reached through no symlink."""
    place = os.path.join(os.path.realpath(os.fsencode(work)), path)
    parent = os.path.dirname(place)
    there = os.path.lexists(place) and (os.path.islink(place) or not os.path.isdir(place))
    return there and os.path.realpath(parent) == parent


def _joined(items: Sequence[bytes]) -> bytes:
    return b"".join(item + b"\0" for item in items)
