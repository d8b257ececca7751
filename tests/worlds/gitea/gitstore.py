"""Bare git repositories on disk, and the few questions and writes the API needs, all answered by the real git.

Rule: this module knows no users and no events.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

# What a pre-receive hook says is decided for each push by the server, through these variables.
PRE_RECEIVE = """#!/bin/sh
if [ -n "$PRACTICE_DENY" ]; then echo "$PRACTICE_DENY" >&2; exit 1; fi
while read -r old new ref; do
  for rule in $PRACTICE_PROTECTED; do
    case "${ref#refs/heads/}" in
      $rule) echo "Gitea: Not allowed to push to protected branch ${ref#refs/heads/}" >&2; exit 1 ;;
    esac
  done
done
"""


@dataclass(frozen=True)
class Person:
    name: str
    email: str


@dataclass
class Commit:
    sha: str
    tree: str
    parents: list[str]
    author: Person
    committer: Person
    date: str
    message: str
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    modified: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """One line of a tree."""

    mode: str
    type: str
    sha: str
    size: int
    path: str


class GitStore:
    """All repositories, by their number: a rename moves nothing on disk."""

    def __init__(self, data: Path) -> None:
        self.root = data / "git"
        self.hooks = data / "hooks"
        self.root.mkdir(parents=True, exist_ok=True)
        self.hooks.mkdir(exist_ok=True)
        hook = self.hooks / "pre-receive"
        hook.write_text(PRE_RECEIVE)
        hook.chmod(0o755)
        self._commits: dict[tuple[int, str], Commit] = {}
        self._counts: dict[tuple[int, str, str], tuple[int, int, int]] = {}

    def path(self, repo_id: int) -> Path:
        return self.root / f"{repo_id}.git"

    def env(self) -> dict[str, str]:
        """An environment in which git reads no configuration of the machine or of the user."""
        config = {
            "core.hooksPath": str(self.hooks),
            "safe.directory": "*",
            "http.receivepack": "true",
            "receive.hideRefs": "refs/pull",
            "uploadpack.allowReachableSHA1InWant": "true",
            "gc.auto": "0",
        }
        keys = {f"GIT_CONFIG_KEY_{n}": key for n, key in enumerate(config)}
        values = {f"GIT_CONFIG_VALUE_{n}": value for n, value in enumerate(config.values())}
        base = {"PATH": os.environ["PATH"], "HOME": str(self.root), "LC_ALL": "C"}
        quiet = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_COUNT": str(len(config))}
        return base | quiet | keys | values

    def run(self, repo_id: int, *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """One git command; the caller looks at the exit status."""
        command = ["git", "--git-dir", str(self.path(repo_id)), *args]
        return subprocess.run(command, input=stdin, capture_output=True, env=self.env(), check=False)

    def text(self, repo_id: int, *args: str, stdin: bytes = b"") -> str:
        """The output of a git command that must succeed."""
        done = self.run(repo_id, *args, stdin=stdin)
        if done.returncode:
            raise RuntimeError(f"git {' '.join(args)} failed: {done.stderr.decode(errors='replace')}")
        return done.stdout.decode(errors="replace")

    # ------------------------------------------------------------ repositories

    def create(self, repo_id: int, default_branch: str) -> None:
        command = ["git", "init", "-q", "--bare", "--template=", f"--initial-branch={default_branch}"]
        subprocess.run([*command, str(self.path(repo_id))], env=self.env(), check=True, capture_output=True)

    def delete(self, repo_id: int) -> None:
        shutil.rmtree(self.path(repo_id))

    def set_default_branch(self, repo_id: int, branch: str) -> None:
        self.text(repo_id, "symbolic-ref", "HEAD", f"refs/heads/{branch}")

    # ------------------------------------------------------------ refs

    def refs(self, repo_id: int) -> dict[str, str]:
        """Branches and tags with what they point at."""
        out = self.text(repo_id, "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags")
        return {ref: sha for sha, ref in (line.split(" ", 1) for line in out.splitlines())}

    def resolve(self, repo_id: int, ref: str) -> str | None:
        """The full sha of the commit that a branch, tag or (short) sha names."""
        if not ref or ref.startswith("-"):
            return None
        done = self.run(repo_id, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
        return done.stdout.decode().strip() or None if not done.returncode else None

    def set_ref(self, repo_id: int, ref: str, sha: str | None) -> None:
        """Points a ref at a commit; None deletes it."""
        self.text(repo_id, "update-ref", *(["-d", ref] if sha is None else [ref, sha]))

    def valid_branch(self, name: str) -> bool:
        done = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True, check=False)
        return done.returncode == 0

    # ------------------------------------------------------------ history

    def commit(self, repo_id: int, sha: str) -> Commit:
        """One commit with the names of the files that it touched."""
        known = self._commits.get((repo_id, sha))
        if known is None:
            known = self._commits[(repo_id, sha)] = self._read_commit(repo_id, sha)
        return known

    def _read_commit(self, repo_id: int, sha: str) -> Commit:
        form = "%H%x00%T%x00%P%x00%an%x00%ae%x00%cn%x00%ce%x00%cI%x00%B%x00"
        args = ["--first-parent", "-m", "--no-renames", "--name-status", "-z", f"--format={form}", sha]
        out = self.text(repo_id, "log", "-1", *args).split("\0")
        author, committer = Person(out[3], out[4]), Person(out[5], out[6])
        commit = Commit(out[0], out[1], out[2].split(), author, committer, out[7], out[8])
        names = [part for part in (part.strip("\n") for part in out[9:]) if part]
        for status, path in zip(names[::2], names[1::2], strict=False):
            {"A": commit.added, "D": commit.removed}.get(status[:1], commit.modified).append(path)
        return commit

    def rev_list(self, repo_id: int, *revisions: str, limit: int = 0) -> list[str]:
        """Commits, newest first."""
        cap = [f"--max-count={limit}"] if limit else []
        return self.text(repo_id, "rev-list", *cap, *revisions).split()

    def merge_base(self, repo_id: int, one: str, two: str) -> str:
        return self.run(repo_id, "merge-base", one, two).stdout.decode().strip()

    def diff(self, repo_id: int, base: str, head: str) -> str:
        return self.text(repo_id, "diff", base, head)

    def counts(self, repo_id: int, base: str, head: str) -> tuple[int, int, int]:
        """Changed files, additions, deletions between two commits."""
        key = (repo_id, base, head)
        if key not in self._counts:
            rows = [line.split("\t") for line in self.text(repo_id, "diff", "--numstat", base, head).splitlines()]
            added, deleted = (sum(int(row[i]) for row in rows if row[i] != "-") for i in (0, 1))
            self._counts[key] = (len(rows), added, deleted)
        return self._counts[key]

    def merge_tree(self, repo_id: int, base: str, head: str) -> str | None:
        """The tree of a clean merge, or None when there is a conflict."""
        done = self.run(repo_id, "merge-tree", "--write-tree", base, head)
        return done.stdout.decode().split("\n")[0] if done.returncode == 0 else None

    def commit_tree(self, repo_id: int, tree: str, parents: list[str], message: str, who: Person) -> str:
        flags = [part for parent in parents for part in ("-p", parent)]
        author = ["-c", f"user.name={who.name}", "-c", f"user.email={who.email}"]
        command = ["git", *author, "--git-dir", str(self.path(repo_id)), "commit-tree", tree, *flags]
        done = subprocess.run(command, input=message.encode(), capture_output=True, env=self.env(), check=True)
        return done.stdout.decode().strip()

    # ------------------------------------------------------------ files

    def file(self, repo_id: int, ref: str, path: str) -> tuple[str, str, bytes] | None:
        """(sha, type, content) of a path at a commit, or None."""
        if "\n" in path:
            return None
        out = self.run(repo_id, "cat-file", "--batch", stdin=f"{ref}:{path}\n".encode()).stdout
        head, _, rest = out.partition(b"\n")
        words = head.decode(errors="replace").split(" ")
        if words[-1] == "missing" or len(words) != 3:
            return None
        return words[0], words[1], rest[: int(words[2])]

    def tree(self, repo_id: int, ref: str, path: str) -> list[Entry]:
        """The entries of a directory."""
        where = f"{ref}:{path}" if path else ref
        rows = self.text(repo_id, "ls-tree", "-l", "-z", where).split("\0")
        entries = []
        for row in filter(None, rows):
            meta, _, name = row.partition("\t")
            mode, kind, sha, size = meta.split()
            entries.append(Entry(mode, kind, sha, 0 if size == "-" else int(size), f"{path}/{name}".strip("/")))
        return entries

    def write(
        self, repo_id: int, branch: str, parent: str | None, message: str, who: Person, files: dict[str, bytes | None]
    ) -> str:
        """Commits contents (None deletes the path) to a branch; returns the new commit's sha."""
        stamp = f"{who.name} <{who.email}> now"
        text = message.encode()
        lines = [f"commit refs/heads/{branch}\ncommitter {stamp}\ndata {len(text)}\n".encode(), text, b"\n"]
        if parent:
            lines.append(f"from {parent}\n".encode())
        for path, content in files.items():
            quoted = '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
            if content is None:
                lines.append(f"D {quoted}\n".encode())
            else:
                lines += [f"M 100644 inline {quoted}\ndata {len(content)}\n".encode(), content, b"\n"]
        self.text(repo_id, "fast-import", "--quiet", "--date-format=now", stdin=b"".join(lines))
        return self.text(repo_id, "rev-parse", f"refs/heads/{branch}").strip()
