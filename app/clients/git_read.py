"""The reading half of a mirror: objects, trees and differences. It changes nothing and talks to nobody.

Its one rule: names and ids are checked before they reach git, as full refs and full ids, never as options.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.clients.git_env import OUTPUT_LIMIT, Call, Output, run
from app.clients.git_errors import disk_was_full, local_failure
from app.clients.git_files import Person
from app.clients.git_halves import drop_halves
from app.clients.names import branch_name_ok, sha_ok
from app.types import Change, Permanent

_REF = re.compile(r"refs/[A-Za-z0-9][A-Za-z0-9/_.-]{0,250}")
_DIFF = ("--no-renames", "--no-ext-diff", "--no-textconv", "--no-color")
_FILE_MODES = ("100644", "100755")


@dataclass(frozen=True, slots=True)
class TreeEntry:
    mode: str  # 100644 | 100755 | 120000 (symlink) | 160000 (submodule)
    sha: str
    size: int  # bytes; 0 for a submodule
    path: str  # bytes that are not UTF-8 are shown as \xNN


class Reader:
    """Reads one bare mirror; `timeout` is the limit of each git command in seconds."""

    def __init__(self, mirror: Path, timeout: float) -> None:
        self.mirror = mirror.absolute()
        self._timeout = timeout

    def resolve(self, ref: str) -> str | None:
        """Commit id of a branch name, a full ref (`refs/...`) or a full commit id; None if it is not there."""
        full = ref if sha_ok(ref) or ref.startswith("refs/") else f"refs/heads/{ref}"
        if not sha_ok(full) and not ref_ok(full):
            return None
        args = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{full}^{{commit}}")
        return self._git(*args, ok=(0, 1)).decode().strip() or None

    def message(self, sha: str) -> str:
        """The message of a commit; "" when the mirror does not have it. Whoever made the commit chose the words."""
        if not self.exists(sha):
            return ""
        return self._git("log", "-1", "--format=%B", "--no-show-signature", checked_sha(sha)).decode("utf-8", "replace")

    def tree(self, sha: str) -> str:
        """Id of the tree of a commit: two commits of the same files have the same."""
        return self._git("rev-parse", "--verify", f"{checked_sha(sha)}^{{tree}}").decode().strip()

    def exists(self, sha: str, path: str | None = None) -> bool:
        """True if the mirror has this object, or this path in that commit."""
        if path is not None:
            return self.exists(sha) and self._entry(sha, path) is not None
        return self._run(self._call("cat-file", "-e", checked_sha(sha))).code == 0

    def read(self, sha: str, path: str, limit: int) -> bytes | None:
        """A file's bytes at a commit; None if it is absent or no plain file. Above `limit`: `Permanent` `too_large`."""
        entry = self._entry(sha, path)
        if entry is None or entry.mode not in _FILE_MODES:
            return None
        if entry.size > limit:
            raise Permanent(f"{path} has {entry.size} bytes; at most {limit} are read.", code="too_large")
        return self._git("cat-file", "blob", entry.sha)

    def list_tree(self, sha: str) -> tuple[TreeEntry, ...]:
        """Every file, symlink and submodule of a commit or tree, at any depth."""
        listing = self._git("ls-tree", "-r", "-z", "-l", "--full-tree", checked_sha(sha))
        return tuple(_entry(line) for line in listing.split(b"\0") if line)

    def changes(self, base: str, head: str) -> tuple[Change, ...]:
        """Every path that differs between two commits or trees; a rename is a D and an A."""
        raw = self._git("diff", "--raw", "-z", "--no-abbrev", *_DIFF, checked_sha(base), checked_sha(head), "--").split(
            b"\0"
        )
        return tuple(_change(about, path) for about, path in zip(raw[0::2], raw[1::2], strict=False))

    def patch(self, base: str, head: str, limit_bytes: int) -> tuple[str, bool]:
        """The diff as text, and whether it was cut off (at the end of a line) because of the limit."""
        args = ("diff", "--patch", "--full-index", *_DIFF, checked_sha(base), checked_sha(head), "--")
        output = self._run(self._call(*args, limit=limit_bytes))
        if output.truncated:
            whole, _, _ = output.out.rpartition(b"\n")
            return (whole + b"\n" if whole else b"").decode("utf-8", "replace"), True
        if output.code != 0:
            raise local_failure("diff", output)
        return output.out.decode("utf-8", "replace"), False

    def stat(self, base: str, head: str) -> tuple[int, int, int]:
        """(files, lines added, lines removed); a binary file counts as a file without lines."""
        rows = self._git("diff", "--numstat", "-z", *_DIFF, checked_sha(base), checked_sha(head), "--").split(b"\0")
        counts = [row.split(b"\t", 2)[:2] for row in rows if row]
        added, removed = (sum(int(pair[side]) for pair in counts if pair[side] != b"-") for side in (0, 1))
        return len(counts), added, removed

    def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """True if `descendant` holds `ancestor` (or is it)."""
        output = self._run(self._call("merge-base", "--is-ancestor", checked_sha(ancestor), checked_sha(descendant)))
        if output.code not in (0, 1):
            raise local_failure("merge-base", output)
        return output.code == 0

    def authors(self, base: str, head: str) -> tuple[Person, ...]:
        """(name, e-mail) of the authors of the commits in base..head, newest first, each once.

        What a commit says, not who pushed it: anybody can write any author.
        """
        args = ("log", "-z", "--no-mailmap", "--format=%an%x00%ae", f"{checked_sha(base)}..{checked_sha(head)}", "--")
        words = self._git(*args).decode("utf-8", "replace").split("\0")
        return tuple(dict.fromkeys(zip(words[0::2], words[1::2], strict=False)))

    # -------------------------------------------------------- shared

    def _entry(self, sha: str, path: str) -> TreeEntry | None:
        if not path or "\0" in path:
            return None
        literal = {"GIT_LITERAL_PATHSPECS": "1"}
        listing = self._git("ls-tree", "-z", "-l", "--full-tree", checked_sha(sha), "--", path.rstrip("/"), env=literal)
        found = (_entry(line) for line in listing.split(b"\0") if line)
        return next((entry for entry in found if entry.path == path), None)

    def _call(self, *args: str, limit: int = OUTPUT_LIMIT, keep_open: tuple[int, ...] = ()) -> Call:
        return Call(args, self.mirror, limit=limit, keep_open=keep_open)

    def _run(self, call: Call) -> Output:
        output = run(replace(call, timeout=self._timeout))
        if output.code != 0 and disk_was_full(output):
            drop_halves(self.mirror)
        return output

    def _git(
        self, *args: str, ok: Sequence[int] = (0,), stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> bytes:
        output = self._run(replace(self._call(*args), stdin=stdin, env=env or {}))
        if output.code not in ok:
            raise local_failure(args[0], output)
        return output.out


def ref_ok(ref: str) -> bool:
    """True for a full ref (`refs/...`) that is safe as an argument."""
    return _REF.fullmatch(ref) is not None and branch_name_ok(ref.removeprefix("refs/"))


def _entry(line: bytes) -> TreeEntry:
    about, path = line.split(b"\t", 1)
    mode, _, sha, size = about.decode().split()
    return TreeEntry(mode, sha, 0 if size == "-" else int(size), path.decode("utf-8", "backslashreplace"))


def _change(about: bytes, path: bytes) -> Change:
    old_mode, new_mode, old_sha, new_sha, status = about.decode().removeprefix(":").split(" ")
    return Change(path.decode("utf-8", "backslashreplace"), status, old_mode, new_mode, old_sha, new_sha)


def checked_sha(sha: str) -> str:
    """`sha`, which must be a full object id: nothing else reaches an argument list."""
    if not sha_ok(sha):
        raise Permanent(f"{sha!r} is not a full object id.", code="invalid_name")
    return sha
