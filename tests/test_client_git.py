"""The git client against real git: real mirrors, and a real `git http-backend` behind HTTP with Basic auth.

The forge of these tests checks every request's credential and can be told to hang, to redirect, to fail or to lose
the answer of a push that it has carried out.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.clients.git import Commit, Credential, Git, branch_name_ok, repo_name_ok
from app.clients.git_env import Call, Remote, run
from app.types import Ambiguous, Misconfigured, MosaicError, Permanent, Transient

TOKEN = "5ecr3t-f0rge-token-0123456789"
BASIC = base64.b64encode(f"mosaic:{TOKEN}".encode()).decode()
CREDENTIAL = Credential("mosaic", TOKEN)
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BOT = ("mosaic", "mosaic@example.org")
PERSON = ("Ada L", "ada@example.org")
_PERSON = {"NAME": "Ada L", "EMAIL": "ada@example.org", "DATE": "@1700000000 +0000"}


def git(*args: str, cwd: Path, **env: str) -> str:
    """Plain git, as a person at a keyboard would use it."""
    base = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    who = {f"GIT_{role}_{part}": value for role in ("AUTHOR", "COMMITTER") for part, value in _PERSON.items()}
    command = ["git", "-c", "init.defaultBranch=main", *args]
    return subprocess.run(command, cwd=cwd, env=base | who | env, check=True, capture_output=True, text=True).stdout


# ---------------------------------------------------------------- a forge that speaks git over HTTP


@dataclass
class Forge:
    root: Path
    url: str = ""
    refuse_hook: str = ""
    answer: int = 0  # this status to every request
    location: str = ""
    lose_push: bool = False  # carry the push out, then close the connection
    hang: threading.Event | None = None  # requests wait for it
    hang_on: str = ""  # only those whose path ends so
    drip: bool = False
    waiting: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    unauthorised: int = 0

    @property
    def bare(self) -> Path:
        return self.root / "acme" / "app.git"

    def head(self, branch: str) -> str:
        return git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}", cwd=self.bare).strip()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    forge: Forge

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _serve(self, body: bytes) -> None:
        forge = self.forge
        forge.requests.append(f"{self.command} {self.path}")
        if forge.hang and self.path.endswith(forge.hang_on):
            forge.waiting.set()
            return self._hang(forge.hang)
        if self.headers.get("Authorization") != f"Basic {BASIC}":
            forge.unauthorised += 1
            return self._say(401, {"WWW-Authenticate": 'Basic realm="Gitea"'}, b"")
        if forge.answer:
            return self._say(forge.answer, {"Location": forge.location} if forge.location else {}, b"")
        self._backend(body)

    def _hang(self, until: threading.Event) -> None:
        """Says nothing, or (`drip`) a byte now and then, which never trips a limit on silence."""
        self.close_connection = True
        if self.forge.drip:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            while not until.wait(0.1):
                self.wfile.write(b"x")
        until.wait(30)

    def _backend(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.forge.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "HOME": "/nonexistent",
            "REMOTE_USER": "mosaic",
            "REMOTE_ADDR": "127.0.0.1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False)
        if self.forge.lose_push and path.endswith("git-receive-pack") and self.command == "POST" and len(body) > 4:
            self.close_connection = True
            return
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        status = int(headers.pop("Status", "200").split()[0])
        self._say(status, headers, content)

    def _say(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        pass  # a client that went away is what some of these tests are about


def serve(state: Forge) -> _Server:
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"forge": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}/acme/app.git"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@pytest.fixture
def forge(tmp_path: Path, template: Path) -> Iterator[Forge]:
    """A forge whose `acme/app` holds the template's `main`."""
    shutil.copytree(template / "forge", tmp_path / "forge", symlinks=True)
    state = Forge(tmp_path / "forge")
    server = serve(state)
    yield state
    if state.hang:
        state.hang.set()
    server.shutdown()
    server.server_close()


FILES = {
    "README.md": "hello\n",
    "AGENTS.md": "root rules\n",
    "src/main.py": "print(1)\n",
    "src/agents.md": "nested rules\n",
    ".claude/settings.json": "{}\n",
    ".gitignore": "*.log\nbuild/\n",
}


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, copied for each test: a forge with FILES, an executable and a symlink on `main`, and its clone."""
    root = tmp_path_factory.mktemp("template")
    forge = Forge(root / "forge")
    forge.bare.mkdir(parents=True)
    git("init", "--bare", "--quiet", cwd=forge.bare)
    git("config", "http.receivepack", "true", cwd=forge.bare)
    git("config", "receive.advertisePushOptions", "true", cwd=forge.bare)
    work = root / "seed"
    work.mkdir()
    git("init", "--quiet", cwd=work)
    write(work, FILES)
    (work / "run.sh").write_text("#!/bin/sh\n")
    (work / "run.sh").chmod(0o755)
    (work / "link").symlink_to("README.md")
    publish(work, forge)
    return root


@pytest.fixture
def seed(tmp_path: Path, template: Path) -> str:
    """The commit of `main`; its clone, as a person has it, is `tmp_path / "seed"`."""
    shutil.copytree(template / "seed", tmp_path / "seed", symlinks=True)
    return git("rev-parse", "HEAD", cwd=tmp_path / "seed").strip()


def write(work: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)


def publish(work: Path, forge: Forge, branch: str = "main") -> str:
    """Commits everything in `work` as a person and puts it on the forge, past HTTP."""
    git("add", "--all", cwd=work)
    git("commit", "--quiet", "--allow-empty", "-m", "by hand", cwd=work)
    git("push", "--quiet", str(forge.bare), f"HEAD:refs/heads/{branch}", cwd=work)
    return git("rev-parse", "HEAD", cwd=work).strip()


@pytest.fixture
def mirror(forge: Forge, seed: str, tmp_path: Path) -> Git:
    """A mirror that has fetched the forge's `main`."""
    client = Git(tmp_path / "repos" / "1.git", forge.url, CREDENTIAL, timeout=20)
    client.fetch()
    return client


def names(work: Path) -> set[str]:
    return {str(path.relative_to(work)) for path in work.rglob("*") if path.is_symlink() or path.is_file()}


def commit(client: Git, work: Path, parent: str, **more: Any) -> Commit | None:
    return client.commit(work, work.with_suffix(".index"), parent, "Change\n", PERSON, BOT, WHEN, **more)


def change(client: Git, base: str, work: Path, files: dict[str, str]) -> Commit:
    """A checkout of `base` with `files` written over it, committed."""
    client.checkout(base, work, index=work.with_suffix(".index"))
    write(work, files)
    made = commit(client, work, base)
    assert made
    return made


def leaked(error: BaseException) -> bool:
    """True if the credential shows anywhere in an error: text, repr, or what it wraps."""
    seen: BaseException | None = error
    while seen:
        if any(secret in text for secret in (TOKEN, BASIC) for text in (str(seen), repr(seen), repr(seen.args))):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


# ---------------------------------------------------------------- mirror


def test_fetch_mirrors_all_heads_and_prunes_but_leaves_kept_refs(forge: Forge, mirror: Git, seed: str) -> None:
    git("branch", "topic/a", "main", cwd=forge.bare)
    mirror.fetch()
    assert mirror.resolve("main") == mirror.resolve("topic/a") == mirror.resolve(seed) == seed
    mirror.keep(seed, "refs/mosaic/job-7/base")
    git("branch", "-D", "topic/a", cwd=forge.bare)
    git("branch", "topic", "main", cwd=forge.bare)  # a branch may take the name of a former folder
    mirror.fetch()
    assert mirror.resolve("topic/a") is None
    assert mirror.resolve("topic") == seed
    assert mirror.resolve("refs/mosaic/job-7/base") == seed


def test_a_rewritten_branch_is_followed(forge: Forge, mirror: Git, seed: str, tmp_path: Path) -> None:
    work = tmp_path / "seed"
    git("checkout", "--quiet", "--orphan", "fresh", cwd=work)
    write(work, {"README.md": "another history\n"})
    new = publish(work, forge, "other")
    git("update-ref", "refs/heads/main", new, cwd=forge.bare)
    mirror.fetch()
    assert mirror.resolve("main") == new != seed


def test_an_empty_repository_has_no_branch(forge: Forge, tmp_path: Path) -> None:
    git("update-ref", "-d", "refs/heads/main", cwd=forge.bare)
    client = Git(tmp_path / "2.git", forge.url, CREDENTIAL, timeout=20)
    client.fetch()
    assert client.resolve("main") is None
    assert client.remote_head("main") is None


def test_a_lock_left_by_a_killed_git_does_not_stop_the_next_fetch(forge: Forge, mirror: Git, tmp_path: Path) -> None:
    (mirror.mirror / "refs/heads/main.lock").touch()
    write(tmp_path / "seed", {"new.txt": "x"})
    new = publish(tmp_path / "seed", forge)
    mirror.fetch()
    assert mirror.resolve("main") == new
    (mirror.mirror / "refs/mosaic").mkdir(parents=True, exist_ok=True)
    (mirror.mirror / "refs/mosaic/base.lock").touch()
    mirror.keep(new, "refs/mosaic/base")
    assert mirror.resolve("refs/mosaic/base") == new


def test_a_git_that_outlives_its_killed_parent_still_holds_the_lock(forge: Forge, mirror: Git) -> None:
    """The descriptor goes to git, so a second worker cannot enter while an orphan still writes."""
    forge.hang = threading.Event()
    script = (
        "from pathlib import Path; from app.clients.git import Git; "
        f"Git(Path({str(mirror.mirror)!r}), {forge.url!r}).fetch()"
    )
    python = [sys.executable, "-c", script]
    worker = subprocess.Popen(python, cwd=Path(__file__).parents[1])
    assert forge.waiting.wait(20)
    worker.kill()
    worker.wait()
    impatient = Git(mirror.mirror, forge.url, CREDENTIAL, timeout=0.3)
    with pytest.raises(Transient, match="in use by another process"):
        impatient.fetch()
    forge.hang.set()
    forge.hang = None
    mirror.fetch()


def test_two_fetches_at_once_both_succeed(forge: Forge, mirror: Git, tmp_path: Path) -> None:
    for number in range(5):
        git("branch", f"b{number}", "main", cwd=forge.bare)
    failures: list[Exception] = []

    def fetch() -> None:
        try:
            mirror.fetch()
        except MosaicError as error:
            failures.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert mirror.resolve("b4")


def refused(act: Callable[[], object], code: str = "invalid_name") -> bool:
    with pytest.raises(Permanent) as caught:
        act()
    return caught.value.code == code


def test_a_refspec_that_could_touch_kept_refs_is_refused(mirror: Git) -> None:
    for spec in ("refs/heads/*:refs/mosaic/*", "+refs/*:refs/*", "--upload-pack=x", "main:main", "refs/a:refs/../b"):
        assert refused(lambda spec=spec: mirror.fetch([spec])), spec


def test_reading(mirror: Git, seed: str) -> None:
    assert mirror.read(seed, "README.md", 100) == b"hello\n"
    assert mirror.read(seed, "absent", 100) is None
    assert mirror.read(seed, "src", 100) is None
    assert mirror.read(seed, "link", 100) is None  # a symlink is not followed and not taken for a file
    assert mirror.read(seed, "*.md", 100) is None  # a path is a path, not a pattern
    assert mirror.read(seed, "--help", 100) is None
    assert mirror.read(seed, "README.md/", 100) is None
    with pytest.raises(Permanent) as caught:
        mirror.read(seed, "README.md", 3)
    assert caught.value.code == "too_large"
    assert mirror.exists(seed) and not mirror.exists("0" * 39 + "1")
    assert mirror.exists(seed, "src/main.py") and not mirror.exists(seed, "src/none.py")
    tree = {entry.path: (entry.mode, entry.size) for entry in mirror.list_tree(seed)}
    assert tree["README.md"] == ("100644", 6)
    assert tree["run.sh"][0] == "100755"
    assert tree["link"][0] == "120000"
    assert set(tree) == {*FILES, "run.sh", "link"}


def test_odd_revisions_resolve_to_nothing(mirror: Git) -> None:
    for ref in ("--help", "main@{1}", ":/by", "main..main", "refs/heads/--x", "main^", "a b", "", "refs/heads"):
        assert mirror.resolve(ref) is None, ref


# ---------------------------------------------------------------- checkout and commit


def test_checkout_writes_a_plain_tree_without_the_excluded_paths(mirror: Git, seed: str, tmp_path: Path) -> None:
    work = tmp_path / "wt" / "f1"
    hidden = mirror.checkout(seed, work, exclude=["AGENTS.md", ".claude"], index=tmp_path / "f1.index")
    assert hidden == (".claude/settings.json", "AGENTS.md", "src/agents.md")
    assert names(work) == {"README.md", "src/main.py", ".gitignore", "run.sh", "link"}
    assert not (work / ".git").exists() and not (work / ".claude").exists()
    assert os.readlink(work / "link") == "README.md"
    assert (work / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (work / "README.md").stat().st_mode & 0o777 == 0o644
    with pytest.raises(Permanent) as caught:
        mirror.checkout(seed, work, index=tmp_path / "f1.index")
    assert caught.value.code == "not_empty"


def test_checkout_of_a_tree_id(mirror: Git, seed: str, tmp_path: Path) -> None:
    tree = git("rev-parse", f"{seed}^{{tree}}", cwd=mirror.mirror).strip()
    assert mirror.checkout(tree, tmp_path / "wt", index=tmp_path / "i") == ()
    assert names(tmp_path / "wt") == {*FILES, "run.sh", "link"}


def test_nothing_changed_is_no_commit(mirror: Git, seed: str, tmp_path: Path) -> None:
    work = tmp_path / "wt"
    mirror.checkout(seed, work, exclude=["AGENTS.md"], index=tmp_path / "wt.index")
    write(work, {"AGENTS.md": "planted\n", "docs/agents.MD": "planted\n", "x.log": "ignored\n", "build/o": "ignored\n"})
    assert commit(mirror, work, seed, exclude=["AGENTS.md"]) is None


def test_commit_takes_all_but_ignored_and_excluded_files(mirror: Git, seed: str, tmp_path: Path) -> None:
    work = tmp_path / "wt"
    mirror.checkout(seed, work, exclude=["AGENTS.md"], index=tmp_path / "wt.index")
    write(work, {"src/main.py": "print(2)\n", "new file": "n\n", "src/AGENTS.md": "planted\n", "x.log": "ignored\n"})
    (work / "run.sh").unlink()
    made = commit(mirror, work, seed, exclude=["AGENTS.md"])
    assert made
    found = {(entry.status, entry.path) for entry in mirror.changes(seed, made.sha)}
    assert found == {("M", "src/main.py"), ("A", "new file"), ("D", "run.sh")}
    assert mirror.read(made.sha, "AGENTS.md", 100) == b"root rules\n"
    assert mirror.read(made.sha, "src/agents.md", 100) == b"nested rules\n"
    about = git("show", "--no-patch", "--format=%T %P %an %ae %cn %at %ct %B", made.sha, cwd=mirror.mirror)
    at = int(WHEN.timestamp())
    assert about.split("\n")[0] == f"{made.tree} {seed} Ada L ada@example.org mosaic {at} {at} Change"


def test_a_second_round_builds_on_any_parent(mirror: Git, seed: str, tmp_path: Path) -> None:
    work = tmp_path / "wt"
    first = change(mirror, seed, work, {"a.txt": "1\n"})
    write(work, {"a.txt": "2\n"})
    second = commit(mirror, work, first.sha)
    other = commit(mirror, work, seed)
    assert second and other and second.tree == other.tree and second.sha != other.sha
    assert [entry.path for entry in mirror.changes(first.sha, second.sha)] == ["a.txt"]


def test_the_same_work_is_the_same_commit_even_after_a_crash_left_its_lock(
    mirror: Git, seed: str, tmp_path: Path
) -> None:
    first = change(mirror, seed, tmp_path / "one", {"a.txt": "1\n"})
    mirror.checkout(seed, tmp_path / "two", index=tmp_path / "two.index")
    write(tmp_path / "two", {"a.txt": "1\n"})
    (tmp_path / "two.index.lock").touch()
    assert commit(mirror, tmp_path / "two", seed) == first
    assert commit(mirror, tmp_path / "two", seed) == first  # tried again
    (tmp_path / "two.index").unlink()
    assert commit(mirror, tmp_path / "two", seed) == first  # and without its index
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".index-")]


def test_deleting_everything_is_a_commit_of_the_empty_tree(mirror: Git, seed: str, tmp_path: Path) -> None:
    work = tmp_path / "wt"
    mirror.checkout(seed, work, index=tmp_path / "wt.index")
    git("init", "--quiet", cwd=work)
    git("add", "--all", cwd=work)
    git("rm", "-rfq", ".", cwd=work)
    made = commit(mirror, work, seed)
    assert made and mirror.list_tree(made.sha) == ()


def test_unusable_exclude_patterns_are_refused(mirror: Git, seed: str, tmp_path: Path) -> None:
    for pattern in ("", "/", "../x", "a/../b", "a\0b"):
        act = lambda pattern=pattern: mirror.checkout(seed, tmp_path / "wt", exclude=[pattern], index=tmp_path / "i")  # noqa: E731
        assert refused(act, "config_invalid"), pattern


def test_index_inside_the_files_is_a_mistake(mirror: Git, seed: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside"):
        mirror.checkout(seed, tmp_path / "wt", index=tmp_path / "wt" / "index")


def test_a_tree_that_would_fill_the_disk_is_refused_before_it_is_written(mirror: Git, tmp_path: Path) -> None:
    """One small object, named by a tree a great many times."""
    blob = (
        subprocess.run(
            ["git", "hash-object", "-w", "--stdin"],
            input=b"\0" * 10_000_000,
            cwd=mirror.mirror,
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .strip()
    )
    listing = "".join(f"100644 blob {blob}\tf{number:04}\n" for number in range(900))
    tree = subprocess.run(
        ["git", "mktree"], input=listing, cwd=mirror.mirror, capture_output=True, text=True, check=True
    ).stdout.strip()
    with pytest.raises(Permanent) as caught:
        mirror.checkout(tree, tmp_path / "wt", index=tmp_path / "i")
    assert caught.value.code == "too_large"
    assert not (tmp_path / "wt").exists()


# ---------------------------------------------------------------- hostile content: nothing is ever executed


@dataclass
class Trap:
    """Commands that leave a mark when anybody runs them."""

    folder: Path

    def command(self, name: str, then: str = "cat") -> str:
        return f"touch {self.folder / name}; {then}"

    def script(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch {self.folder / path.name}\nexit 0\n")
        path.chmod(0o755)

    def sprung(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    (tmp_path / "trap").mkdir()
    return Trap(tmp_path / "trap")


def poison(repo: Path, trap: Trap) -> None:
    """A git dir whose configuration and hooks spring every trap that git knows."""
    keys = {
        "core.fsmonitor": "fsmonitor",
        "filter.x.clean": "clean",
        "filter.x.smudge": "smudge",
        "filter.y.process": "process",
        "diff.x.textconv": "textconv",
        "diff.x.command": "extdiff",
        "diff.external": "external",
        "merge.x.driver": "merge",
        "core.sshCommand": "ssh",
        "core.editor": "editor",
        "core.pager": "pager",
        "credential.helper": "credential",
    }
    for key, name in keys.items():
        git("config", key, trap.command(name), cwd=repo)
    git("config", "commit.gpgSign", "true", cwd=repo)
    git("config", "core.hooksPath", str(repo / "planted-hooks"), cwd=repo)
    git("config", "gpg.program", str(repo / "planted-hooks" / "gpg"), cwd=repo)
    for name in (
        "gpg",
        "pre-commit",
        "post-commit",
        "post-index-change",
        "post-checkout",
        "pre-push",
        "push-to-checkout",
    ):
        trap.script(repo / "planted-hooks" / name)


ATTRIBUTES = "* filter=x diff=x merge=x text working-tree-encoding=UTF-8\n*.y filter=y\n"


def nested(path: Path, trap: Trap) -> str:
    """A poisoned repository with one commit and one file that must be read again to be compared."""
    path.mkdir(parents=True, exist_ok=True)
    git("init", "--quiet", cwd=path)
    write(path, {"f": "f\n", "f.y": "f\n"})
    git("add", "f", "f.y", cwd=path)
    git("commit", "--quiet", "-m", "x", cwd=path)
    poison(path, trap)
    write(path, {".gitattributes": ATTRIBUTES, "f": "g\n", "f.y": "g\n"})
    for name in ("f", "f.y"):
        os.utime(path / name, (978307200, 978307200))
    return git("rev-parse", "HEAD", cwd=path).strip()


def test_a_planted_repository_executes_nothing(mirror: Git, seed: str, tmp_path: Path, trap: Trap) -> None:
    work = tmp_path / "wt"
    mirror.checkout(seed, work, index=tmp_path / "wt.index")
    git("init", "--quiet", cwd=work)
    poison(work, trap)
    write(
        work,
        {
            ".gitattributes": ATTRIBUTES,
            ".gitmodules": f'[submodule "m"]\n\tpath = m\n\turl = ext::sh -c "touch {trap.folder}/ext"\n'
            f"\tupdate = !touch {trap.folder}/update\n",
            "--upload-pack=touch x": "odd\n",
            "--": "odd\n",
            "src/main.py": "print(2)\n",
        },
    )
    (work / "out").symlink_to("/etc")
    (work / "README.md").unlink()
    (work / "README.md").symlink_to("/etc/passwd")
    made = commit(mirror, work, seed)
    assert made
    modes = {entry.path: (entry.status, entry.new_mode) for entry in mirror.changes(seed, made.sha)}
    assert modes["out"] == ("A", "120000")
    assert modes["README.md"] == ("T", "120000")
    assert modes["--upload-pack=touch x"] == modes["--"] == ("A", "100644")
    assert not [path for path in modes if path.startswith((".git/", "out/"))]
    assert mirror.stat(seed, made.sha)[0] == len(modes)
    assert "print(2)" in mirror.patch(seed, made.sha, 1_000_000)[0]
    assert mirror.push(made.sha, "mosaic/issue-1", None) == "pushed"
    mirror.fetch()
    mirror.checkout(made.sha, tmp_path / "again", index=tmp_path / "again.index")
    assert mirror.commit(tmp_path / "again", tmp_path / "again.index", made.sha, "m", PERSON, BOT, WHEN) is None
    assert (tmp_path / "again" / "src/main.py").read_text() == "print(2)\n"
    assert trap.sprung() == []


def test_the_traps_do_spring_for_a_careless_git(tmp_path: Path, trap: Trap) -> None:
    """The test above would mean nothing if the traps were dead."""
    nested(tmp_path / "n", trap)
    who = {f"GIT_{role}_{part}": value for role in ("AUTHOR", "COMMITTER") for part, value in _PERSON.items()}
    for args in (["add", "f"], ["commit", "-m", "x"], ["diff"], ["status"], ["log", "-p"], ["add", "f.y"]):
        env = {"PATH": os.environ["PATH"]} | who
        subprocess.run(["git", *args], cwd=tmp_path / "n", env=env, capture_output=True, check=False)
    expected = {"clean", "process", "fsmonitor", "extdiff", "pre-commit", "post-index-change", "gpg"}
    assert expected <= set(trap.sprung())


def test_a_submodule_with_a_planted_repository_executes_nothing(
    forge: Forge, mirror: Git, seed: str, tmp_path: Path, trap: Trap
) -> None:
    """git starts `git status` inside a submodule whose HEAD is the recorded one, and that obeys its own filters."""
    sub = nested(tmp_path / "sub", trap)
    work = tmp_path / "seed"
    git("update-index", "--add", "--cacheinfo", f"160000,{sub},vendor/sub", cwd=work)
    git("update-index", "--add", "--cacheinfo", f"160000,{sub},vendor/quiet", cwd=work)
    git("commit", "--quiet", "-m", "submodules", cwd=work)
    git("push", "--quiet", str(forge.bare), "HEAD:refs/heads/main", cwd=work)
    mirror.fetch()
    base = mirror.resolve("main")
    assert base
    mirror.checkout(base, tmp_path / "wt", index=tmp_path / "wt.index")
    assert commit(mirror, tmp_path / "wt", base) is None  # empty submodule folders are no change
    (tmp_path / "sub").rename(tmp_path / "wt/vendor/sub/x")
    for path in (tmp_path / "wt/vendor/sub/x").iterdir():
        path.rename(tmp_path / "wt/vendor/sub" / path.name)
    (tmp_path / "wt/vendor/sub/x").rmdir()
    assert commit(mirror, tmp_path / "wt", base) is None
    write(tmp_path / "wt", {"vendor/quiet/planted": "x\n"})
    made = commit(mirror, tmp_path / "wt", base)
    assert made
    seen = {(entry.status, entry.path, entry.old_mode) for entry in mirror.changes(base, made.sha)}
    assert seen == {("D", "vendor/quiet", "160000"), ("A", "vendor/quiet/planted", "000000")}
    assert trap.sprung() == []


def test_a_nested_repository_is_only_a_gitlink(mirror: Git, seed: str, tmp_path: Path, trap: Trap) -> None:
    work = tmp_path / "wt"
    mirror.checkout(seed, work, index=tmp_path / "wt.index")
    inner = nested(work / "inner", trap)
    made = commit(mirror, work, seed)
    assert made
    assert [(e.path, e.new_mode, e.new_sha) for e in mirror.changes(seed, made.sha)] == [("inner", "160000", inner)]
    again = commit(mirror, work, made.sha)
    assert again is None
    assert trap.sprung() == []


def plant_dot_git(work: Path) -> None:
    write(work, {"src/.GIT/config": "[core]\n"})


def plant_hfs_dot_git(work: Path) -> None:
    write(work, {".g\u200cit/config": "[core]\n"})


def plant_ntfs_dot_git(work: Path) -> None:
    write(work, {"git~1/config": "[core]\n"})


def plant_unborn_repository(work: Path) -> None:
    (work / "inner").mkdir()
    git("init", "--quiet", cwd=work / "inner")
    write(work, {"inner/f": "x"})


def plant_fifo_for_file(work: Path) -> None:
    (work / "README.md").unlink()
    os.mkfifo(work / "README.md")


@pytest.mark.parametrize(
    "plant", [plant_dot_git, plant_hfs_dot_git, plant_ntfs_dot_git, plant_unborn_repository, plant_fifo_for_file]
)
def test_a_path_that_git_refuses_stops_the_commit(
    mirror: Git, seed: str, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    work = tmp_path / "wt"
    mirror.checkout(seed, work, index=tmp_path / "wt.index")
    plant(work)
    with pytest.raises(Permanent) as caught:
        commit(mirror, work, seed)
    assert caught.value.code == "policy_violation"
    assert "git add failed" in str(caught.value)


def test_a_gitignore_that_never_ends_is_cut_off(mirror: Git, seed: str, tmp_path: Path) -> None:
    """Opening a FIFO blocks for ever; the time limit ends it, and the git is gone afterwards."""
    work = tmp_path / "wt"
    mirror.checkout(seed, work, index=tmp_path / "wt.index")
    (work / ".gitignore").unlink()
    os.mkfifo(work / ".gitignore")
    hasty = Git(mirror.mirror, None, timeout=1)
    with pytest.raises(Permanent) as caught:
        commit(hasty, work, seed)
    assert caught.value.code == "timed_out"
    assert not [pid for pid in running() if runs_in(pid, work)]


def test_a_link_in_place_of_a_folder_is_content_not_a_way_out(mirror: Git, seed: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside, {"main.py": "secret\n"})
    work = tmp_path / "wt"
    mirror.checkout(seed, work, index=tmp_path / "wt.index")
    for path in (work / "src").iterdir():
        path.unlink()
    (work / "src").rmdir()
    (work / "src").symlink_to(outside)
    made = commit(mirror, work, seed)
    assert made
    entries = {entry.path: entry.mode for entry in mirror.list_tree(made.sha)}
    assert entries["src"] == "120000" and "src/main.py" not in entries


# ---------------------------------------------------------------- comparing


def test_differences(mirror: Git, seed: str, tmp_path: Path) -> None:
    made = change(mirror, seed, tmp_path / "wt", {"src/main.py": "print(2)\nprint(3)\n", "bin": "\0\1\2"})
    assert mirror.stat(seed, made.sha) == (2, 2, 1)
    text, cut = mirror.patch(seed, made.sha, 10_000)
    assert not cut and "+print(3)" in text and "\x1b" not in text
    text, cut = mirror.patch(seed, made.sha, 60)
    assert cut and len(text.encode()) <= 60 and text.endswith("\n")
    assert mirror.changes(seed, seed) == ()
    assert mirror.is_ancestor(seed, made.sha) and not mirror.is_ancestor(made.sha, seed)
    assert mirror.authors(seed, made.sha) == (PERSON,)
    assert mirror.authors(seed, seed) == ()


def test_a_name_that_is_not_utf8_is_shown_escaped(mirror: Git, seed: str, tmp_path: Path) -> None:
    mirror.checkout(seed, tmp_path / "wt", index=tmp_path / "wt.index")
    with open(os.path.join(os.fsencode(tmp_path / "wt"), b"caf\xe9"), "w") as file:
        file.write("x")
    made = commit(mirror, tmp_path / "wt", seed)
    assert made
    assert [entry.path for entry in mirror.changes(seed, made.sha)] == ["caf\\xe9"]


# ---------------------------------------------------------------- push


def test_push_states_what_it_expects(forge: Forge, mirror: Git, seed: str, tmp_path: Path) -> None:
    one = change(mirror, seed, tmp_path / "one", {"a": "1\n"})
    two = change(mirror, seed, tmp_path / "two", {"a": "2\n"})
    branch = "mosaic/issue-1"
    assert mirror.remote_head(branch) is None
    assert mirror.push(one.sha, branch, None) == "pushed"
    assert mirror.push(one.sha, branch, None) == "same"
    assert mirror.push(two.sha, branch, None) == "conflict"
    assert mirror.push(two.sha, branch, seed) == "conflict"
    assert mirror.remote_head(branch) == forge.head(branch) == one.sha
    assert mirror.push(two.sha, branch, one.sha, options=["skip=1"]) == "pushed"  # not a fast-forward, but expected
    assert mirror.remote_head(branch) == forge.head(branch) == two.sha
    git("update-ref", f"refs/heads/{branch}", seed, cwd=forge.bare)
    assert mirror.push(one.sha, branch, two.sha) == "conflict"
    assert forge.head(branch) == seed


def test_a_branch_whose_name_ends_alike_is_not_taken_for_it(forge: Forge, mirror: Git) -> None:
    git("update-ref", "refs/heads/x/refs/heads/mosaic/issue-1", "main", cwd=forge.bare)
    assert mirror.remote_head("mosaic/issue-1") is None


def test_a_refused_push_says_why_in_the_forges_words(forge: Forge, mirror: Git, seed: str, tmp_path: Path) -> None:
    made = change(mirror, seed, tmp_path / "wt", {"a": "1\n"})
    hook = forge.bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'Gitea: Not allowed to push to protected branch main' >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(Permanent, match="Not allowed to push to protected branch main") as caught:
        mirror.push(made.sha, "main", seed)
    assert not isinstance(caught.value, Transient) and caught.value.code == "forge_forbidden"
    assert forge.head("main") == seed


def test_a_push_whose_answer_is_lost_is_ambiguous_and_looking_settles_it(
    forge: Forge, mirror: Git, seed: str, tmp_path: Path
) -> None:
    made = change(mirror, seed, tmp_path / "wt", {"a": "1\n"})
    forge.lose_push = True
    with pytest.raises(Ambiguous):
        mirror.push(made.sha, "mosaic/issue-1", None)
    assert mirror.remote_head("mosaic/issue-1") == made.sha
    forge.lose_push = False
    assert mirror.push(made.sha, "mosaic/issue-1", None) == "same"


def test_unsafe_names_never_reach_git(forge: Forge, mirror: Git, seed: str) -> None:
    asked = len(forge.requests)
    for branch in ("--upload-pack=x", "a..b", "a b", "", "x.lock", "refs/heads/*"):
        assert refused(lambda branch=branch: mirror.push(seed, branch, None)), branch
        assert refused(lambda branch=branch: mirror.remote_head(branch)), branch
    for sha in ("main", "HEAD", "--all", "0" * 39, "A" * 40, ""):
        assert refused(lambda sha=sha: mirror.push(sha, "b", None)), sha
        assert refused(lambda sha=sha: mirror.keep(sha, "refs/mosaic/a")), sha
        assert refused(lambda sha=sha: mirror.changes(seed, sha)), sha
        assert refused(lambda sha=sha: mirror.list_tree(sha)), sha
    for ref in ("refs/heads/main", "refs/mosaic/../heads/main", "refs/mosaic/", "refs/mosaic/a b"):
        assert refused(lambda ref=ref: mirror.keep(seed, ref)), ref
    assert len(forge.requests) == asked


# ---------------------------------------------------------------- the network


def test_a_redirect_is_not_followed(forge: Forge, mirror: Git, tmp_path: Path) -> None:
    other = Forge(tmp_path)
    server = serve(other)
    forge.answer = 301
    forge.location = f"{other.url}/info/refs?service=git-upload-pack"
    with pytest.raises(Permanent) as caught:
        mirror.fetch()
    server.shutdown()
    server.server_close()
    assert caught.value.code == "moved"
    assert other.requests == []


@pytest.mark.parametrize(
    ("answer", "kind", "status"),
    [(503, Transient, 503), (429, Transient, 429), (403, Permanent, 403), (404, Permanent, 404)],
)
def test_refusals_keep_their_meaning(forge: Forge, mirror: Git, answer: int, kind: type, status: int) -> None:
    forge.answer = answer
    for act in (mirror.fetch, lambda: mirror.remote_head("main")):
        with pytest.raises(kind) as caught:
            act()
        assert caught.value.status == status
        assert not isinstance(caught.value, Ambiguous)


def test_a_wrong_token_is_a_refusal_without_a_prompt(forge: Forge, mirror: Git) -> None:
    stranger = Git(mirror.mirror, forge.url, Credential("mosaic", "wrong-token-9999"), timeout=20)
    with pytest.raises(Misconfigured) as caught:
        stranger.fetch()
    assert (caught.value.status, caught.value.code) == (401, "token_refused")
    assert "wrong-token-9999" not in str(caught.value)
    assert forge.unauthorised


def test_an_unreachable_forge_is_transient(forge: Forge, mirror: Git, seed: str) -> None:
    away = Git(mirror.mirror, "http://127.0.0.1:1/acme/app.git", CREDENTIAL, timeout=20)
    for act in (away.fetch, lambda: away.push(seed, "b", None), lambda: away.remote_head("b")):
        with pytest.raises(Transient) as caught:
            act()
        assert not isinstance(caught.value, Ambiguous)
        assert not leaked(caught.value)


def running() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def runs_in(pid: int, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(folder)
    except OSError:
        return False  # it has ended


def processes() -> dict[int, str]:
    """Command lines of everything that runs here now, by process id."""
    found = {}
    for pid in running():
        with contextlib.suppress(OSError):  # it has ended
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def test_a_hung_forge_is_left_and_the_credential_is_in_no_command_line(forge: Forge, mirror: Git, seed: str) -> None:
    forge.hang, forge.drip = threading.Event(), True
    client = Git(mirror.mirror, forge.url, CREDENTIAL, timeout=3)
    caught: list[Exception] = []

    def fetch() -> None:
        try:
            client.fetch()
        except MosaicError as error:
            caught.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    assert forge.waiting.wait(10)
    mine = {pid: line for pid, line in processes().items() if forge.url in line}
    assert any("remote-http" in line for line in mine.values())
    (fetching,) = (pid for pid, line in mine.items() if " fetch " in line)
    assert str(4 * 1024**3) in Path(f"/proc/{fetching}/limits").read_text()  # bytes of memory
    assert not [line for line in processes().values() if TOKEN in line or BASIC in line]
    thread.join()
    assert len(caught) == 1 and isinstance(caught[0], Transient) and not leaked(caught[0])
    assert "did not finish in time" in str(caught[0])
    end = time.monotonic() + 10  # a killed child is there until the kernel has taken it away
    while left := [line for line in processes().values() if forge.url in line]:
        assert time.monotonic() < end, left
        time.sleep(0.02)


def test_a_push_that_hangs_is_ambiguous_only_once_it_was_sent(forge: Forge, mirror: Git, seed: str) -> None:
    forge.hang = threading.Event()
    client = Git(mirror.mirror, forge.url, CREDENTIAL, timeout=2)
    with pytest.raises(Transient) as caught:
        client.push(seed, "b", None)  # while it asked for the branches
    assert not isinstance(caught.value, Ambiguous)
    forge.hang_on = "/git-receive-pack"
    with pytest.raises(Ambiguous) as lost:
        client.push(seed, "b", None)  # while it sent
    assert not leaked(caught.value) and not leaked(lost.value)


def test_the_credential_is_nowhere_on_disk_or_in_words(mirror: Git, seed: str, tmp_path: Path) -> None:
    mirror.push(seed, "b", None)
    for path in (tmp_path / "repos").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert TOKEN.encode() not in content and BASIC.encode() not in content
    assert TOKEN not in repr(mirror) + repr(CREDENTIAL) + repr(vars(mirror))


def test_what_git_prints_is_redacted(forge: Forge, mirror: Git, seed: str) -> None:
    """Even a forge that plays the credential back cannot bring it into a message."""
    hook = forge.bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\necho 'you sent {TOKEN} as {BASIC}' >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(Permanent, match=r"you sent \*\*\* as \*\*\*") as caught:
        mirror.push(seed, "b", None)
    assert not leaked(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "file:///tmp/x",
        "ext::sh -c id",
        "ssh://git@h/x",
        "/tmp/x",
        "http://u:p@h/x",
        "--upload-pack=x",
        "http://h/../x",
        "http://h/a b",
    ],
)
def test_only_plain_http_urls_are_accepted(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="git URL"):
        Git(tmp_path / "m.git", url)


def test_only_the_scheme_of_the_url_is_allowed(mirror: Git, forge: Forge, tmp_path: Path) -> None:
    """A configuration that sends the URL elsewhere finds every other protocol closed."""
    for target in (f"file://{forge.bare}", str(forge.bare), "https://127.0.0.1:1/x", "ext::sh -c id"):
        remote = Remote(forge.url, CREDENTIAL)
        output = run(Call(("ls-remote", "--", target), mirror.mirror, remote=remote, timeout=10))
        assert output.code != 0 and "not allowed" in output.err
    output = run(Call(("ls-remote", "--", forge.url), mirror.mirror, timeout=10))  # without a remote: nothing at all
    assert output.code != 0 and "not allowed" in output.err


# ---------------------------------------------------------------- limits and names


def test_endless_output_is_cut_off(mirror: Git, seed: str) -> None:
    started = time.monotonic()
    output = run(Call(("-c", "alias.flood=!yes", "flood"), mirror.mirror, timeout=30, limit=1000))
    assert output.truncated and len(output.out) == 1000
    assert time.monotonic() - started < 25  # ended by the size, not by the time limit


def test_the_environment_is_built_from_nothing(mirror: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", "x")
    monkeypatch.setenv("MOSAIC_GITEA_TOKEN", TOKEN)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    output = run(Call(("-c", "alias.peek=!env", "peek"), mirror.mirror, timeout=10))
    seen = dict(line.split("=", 1) for line in output.out.decode().splitlines() if "=" in line)
    assert not {"GIT_SSH_COMMAND", "MOSAIC_GITEA_TOKEN", "HTTPS_PROXY"} & set(seen)
    assert seen["HOME"] == "/nonexistent" and seen["GIT_ALLOW_PROTOCOL"] == "none"


@pytest.mark.parametrize("name", ["main", "mosaic/issue-42", "mosaic/job-7", "release/1.2.x", "a_b", "v1", "A/b-C"])
def test_good_branch_names(name: str) -> None:
    assert branch_name_ok(name)


@pytest.mark.parametrize(
    "name",
    ["", "-x", "--upload-pack=x", ".x", "a/.b", "a..b", "a//b", "a/", "/a", "a.", "a.lock", "a.lock/b", "a@{1}", "a b",
     "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a\n", "é", "a" * 201, "@"],
)  # fmt: skip
def test_bad_branch_names(name: str) -> None:
    assert not branch_name_ok(name)


@pytest.mark.parametrize("name", ["acme/app", "A/b", "acme/app.js", "a-b/c_d", "1/2"])
def test_good_repository_names(name: str) -> None:
    assert repo_name_ok(name)


@pytest.mark.parametrize(
    "name",
    ["", "acme", "acme/", "/app", "a/b/c", "../app", "acme/..", "acme/.", "acme/-x", "-a/b", "acme/a b", "acme/a.git",
     "acme/a..b", "acme/a%2f", "acme/a?x", "acme/a#x", "acme/a\n", "acme/x.lock", "é/a", "acme/" + "a" * 101],
)  # fmt: skip
def test_bad_repository_names(name: str) -> None:
    assert not repo_name_ok(name)
