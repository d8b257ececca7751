"""Git as Mosaic uses it: a bare mirror per repository that only the control plane touches, and http(s) to the forge.

Its one rule: what changes a ref holds the mirror's lock, and a push never overwrites what it did not expect.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from app.clients.git_env import Call, Credential, Output, Remote, run
from app.clients.git_errors import local_failure, remote_failure, remote_said, said
from app.clients.git_files import MAX_TREE_BYTES, Commit, Files, Person, identity
from app.clients.git_read import Reader, TreeEntry, checked_sha, ref_ok
from app.clients.guard import Guard, unguarded
from app.clients.names import branch_name_ok, repo_name_ok
from app.types import Permanent, Transient

__all__ = ["Commit", "Credential", "Git", "TreeEntry", "branch_name_ok", "repo_name_ok"]

HEADS = ("+refs/heads/*:refs/heads/*",)
_REFSPEC = re.compile(r"\+?(refs/[A-Za-z0-9/_.-]+(?:/\*)?):(refs/[A-Za-z0-9/_.-]+(?:/\*)?)")
_KEPT = "refs/mosaic/"
# The branch is not where it was; also what a push hears whose answer was lost and which git has sent once more.
_MOVED = ("incorrect old value", "reference already exists", "but expected")


class Git(Reader):
    """One repository's mirror at `mirror` (made when absent), fetched from and pushed to `url`.

    `timeout` is the limit of each git command in seconds. Methods raise `Transient` or `Ambiguous` for the forge,
    `Permanent` for refusals and for repositories that cannot be worked on.
    """

    def __init__(
        self,
        mirror: Path,
        url: str | None,
        credential: Credential | None = None,
        *,
        ca_bundle: str | None = None,
        timeout: float = 600.0,
        guard: Guard = unguarded,
    ) -> None:
        super().__init__(mirror, timeout)
        self._guard = guard
        self._remote = Remote(url, credential, ca_bundle) if url else None

    def __repr__(self) -> str:
        return f"Git({str(self.mirror)!r}, {self._remote.url if self._remote else None!r})"

    # -------------------------------------------------------- the mirror

    def ensure(self) -> None:
        """Makes the empty bare mirror if there is none; a half-made one never appears under its name."""
        if (self.mirror / "HEAD").is_file():
            return
        with self._lock():
            if (self.mirror / "HEAD").is_file():
                return
            folder = Path(tempfile.mkdtemp(prefix=f".{self.mirror.name}-", dir=self.mirror.parent))
            try:
                output = run(Call(("init", "--bare", "--quiet", "--template="), folder, timeout=self._timeout))
                if output.code != 0:
                    raise local_failure("init", output)
                folder.rename(self.mirror)
            finally:
                shutil.rmtree(folder, ignore_errors=True)  # still there only after a failure

    def fetch(self, refspecs: Sequence[str] = HEADS) -> None:
        """Brings the mirror's refs to what the forge has now; refs that it dropped go. `refs/mosaic/*` stay."""
        for spec in refspecs:
            _check_refspec(spec)
        self.ensure()
        flags = ("--prune", "--force", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--quiet")
        with self._lock() as lock, self._guard():
            output = self._talk("fetch", *flags, "--", self._url(), *refspecs, keep_open=(lock,))
            if "File exists" in output.err and self._drop_stale_locks():
                output = self._talk("fetch", *flags, "--", self._url(), *refspecs, keep_open=(lock,))
            if output.code != 0:
                raise remote_failure("fetch", output)

    def keep(self, sha: str, ref: str) -> None:
        """Points `refs/mosaic/...` at a commit, so that pruning and gc leave it alone."""
        if not ref.startswith(_KEPT) or not ref_ok(ref):
            raise Permanent(f"{ref!r} is not a name below {_KEPT}.", code="invalid_name")
        with self._lock() as lock:
            call = self._call("update-ref", "--no-deref", ref, checked_sha(sha), keep_open=(lock,))
            output = self._run(call)
            if "File exists" in output.err and self._drop_stale_locks():
                output = self._run(call)
        if output.code != 0:
            raise local_failure("update-ref", output)

    # -------------------------------------------------------- files

    def checkout(self, sha: str, into: Path, *, exclude: Sequence[str] = (), index: Path) -> tuple[str, ...]:
        """Writes the tree of a commit or tree into `into` (absent or empty), without any `.git`.

        `exclude` holds path globs that apply at any depth and in any case (`AGENTS.md`, `.claude`); what they match
        is not written and is returned. `index` is a file outside `into` that `commit` needs again.
        """
        total = sum(entry.size for entry in self.list_tree(sha))
        if total > MAX_TREE_BYTES:
            raise Permanent(f"The files of {sha[:12]} take {total} bytes, more than allowed.", code="too_large")
        return self._files(into, index).checkout(checked_sha(sha), exclude)

    def commit(
        self,
        work: Path,
        index: Path,
        parent: str,
        message: str,
        author: Person,
        committer: Person,
        at: datetime,
        *,
        exclude: Sequence[str] = (),
    ) -> Commit | None:
        """Commits what stands in `work` on top of `parent`; None if nothing changed.

        `.gitignore` is honoured; excluded paths keep the parent's version. The same files, parent, message, people
        and time give the same sha. A path that git refuses is `Permanent` with code `policy_violation`.
        """
        who = identity(author, committer, at)
        tree = self._files(work, index).stage(checked_sha(parent), exclude)
        if tree == self.tree(parent):
            return None
        args = ("commit-tree", tree, "-p", parent, "-F", "-")
        return Commit(self._git(*args, stdin=message.encode(), env=who).decode().strip(), tree)

    def reword(self, sha: str, message: str, author: Person, committer: Person, at: datetime) -> str:
        """A commit with the files and parents of `sha` under another message; the same again gives the same id."""
        parents = self._git("rev-parse", f"{checked_sha(sha)}^@").decode().split()
        flags = [word for parent in parents for word in ("-p", parent)]
        args = ("commit-tree", self.tree(sha), *flags, "-F", "-")
        return self._git(*args, stdin=message.encode(), env=identity(author, committer, at)).decode().strip()

    def purge(self, work: Path, index: Path, patterns: Sequence[str]) -> tuple[str, ...]:
        """Removes from `work` what `patterns` name, as `exclude` names it at checkout; the paths that were there."""
        return self._files(work, index).purge(patterns)

    # -------------------------------------------------------- the forge

    def remote_head(self, branch: str) -> str | None:
        """Commit id of the branch on the forge now; None if it is not there."""
        ref = _branch_ref(branch)
        with self._guard():
            output = self._talk("ls-remote", "--refs", "--", self._url(), ref)
            if output.code != 0:
                raise remote_failure("ls-remote", output)
        rows = (line.split("\t") for line in output.out.decode().splitlines())
        return next((sha for sha, name in rows if name == ref), None)

    def push(
        self, sha: str, branch: str, expected: str | None, *, options: Sequence[str] = ()
    ) -> Literal["pushed", "same", "conflict"]:
        """Sets the branch on the forge to `sha` if it stands at `expected` there (None: if it does not exist).

        `conflict` = it stands elsewhere and was left alone. `Permanent` holds the forge's own words, e.g. for a
        protected branch; after `Ambiguous` look with `remote_head`. `options` are push options (no line breaks).
        """
        ref = _branch_ref(branch)
        lease = f"--force-with-lease={ref}:{checked_sha(expected) if expected else ''}"
        flags = ("--porcelain", "--no-verify", "--no-signed", "--recurse-submodules=no", lease)
        wishes = [f"--push-option={option}" for option in options]
        what = f"{checked_sha(sha)}:{ref}"
        with self._guard():
            return _push_result(self._talk("push", *flags, *wishes, "--", self._url(), what), ref)

    # -------------------------------------------------------- shared

    def _files(self, work: Path, index: Path) -> Files:
        work, index = work.absolute(), index.absolute()
        if index.is_relative_to(work) or self.mirror.is_relative_to(work):
            raise ValueError("index and mirror must lie outside the directory of files")
        return Files(self._run, self.mirror, work, index)

    def _talk(self, *args: str, keep_open: tuple[int, ...] = ()) -> Output:
        return self._run(replace(self._call(*args, keep_open=keep_open), remote=self._remote))

    def _url(self) -> str:
        if self._remote is None:
            raise ValueError("this mirror has no URL")
        return self._remote.url

    @contextlib.contextmanager
    def _lock(self) -> Iterator[int]:
        """The mirror's file lock. A git started with it open keeps it while it lives, even if Mosaic is killed."""
        self.mirror.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.mirror.with_name(f"{self.mirror.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + self._timeout
            while not _take(lock):
                if time.monotonic() > deadline:
                    raise Transient(f"{self.mirror.name} has been in use by another process for {self._timeout:.0f} s.")
                time.sleep(0.02)
            yield lock
        finally:
            os.close(lock)

    def _drop_stale_locks(self) -> bool:
        """Removes the ref locks of a killed git; only while holding the mirror's lock, so no live one is hit."""
        stale = [*self.mirror.glob("*.lock"), *self.mirror.glob("refs/**/*.lock")]
        for path in stale:
            path.unlink(missing_ok=True)
        return bool(stale)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _push_result(output: Output, ref: str) -> Literal["pushed", "same", "conflict"]:
    """Reads `<flag>TAB<from>:<to>TAB<summary>` of `git push --porcelain`."""
    rows = [line.split("\t") for line in output.out.decode("utf-8", "replace").splitlines()]
    found = next((row for row in rows if len(row) >= 3 and row[1].endswith(f":{ref}")), None)
    if found is None or (output.code != 0 and found[0] != "!"):
        raise remote_failure("push", output, write=True)
    flag, summary = found[0], found[2]
    if flag != "!":
        return "same" if flag == "=" else "pushed"
    if "[rejected]" in summary:
        return "conflict"
    if "[remote rejected]" not in summary:
        raise remote_failure("push", output, write=True)
    if any(word in f"{summary} {output.err}" for word in _MOVED) or "lock" in summary:
        raise Transient(f"git push: the branch moved while it was written: {said(summary)}")
    words = remote_said(output.err) or said(summary)
    raise Permanent(f"The forge refused the push to {ref}: {words}", status=403, code="forge_forbidden")


def _branch_ref(branch: str) -> str:
    if not branch_name_ok(branch):
        raise Permanent(f"{branch!r} is not an acceptable branch name.", code="invalid_name")
    return f"refs/heads/{branch}"


def _check_refspec(spec: str) -> None:
    found = _REFSPEC.fullmatch(spec)
    target = found.group(2) if found else ""
    if not found or ".." in spec or target.startswith(_KEPT) or target in ("refs/*", "refs/mosaic"):
        raise Permanent(f"{spec!r} is not an acceptable refspec.", code="invalid_name")
