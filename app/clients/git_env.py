"""Runs git so that nothing in a repository can make it execute, prompt, redirect or run away.

Its one rule: every git of the control plane is started here, with an environment built from nothing, an argument
list (never a shell), a time limit, an output limit, and no credential in argv, configuration file or URL.
"""

from __future__ import annotations

import base64
import contextlib
import os
import resource
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

OUTPUT_LIMIT = 64 * 1024 * 1024  # bytes of stdout
_STDERR_LIMIT = 64 * 1024
_MEMORY_LIMIT = 4 * 1024**3  # bytes of private memory of one git: a tree bomb ends here, not in swap

# What each line prevents is named by git's own documentation; together they leave no configuration, attribute, hook,
# filter, helper or protocol that a repository's content could choose. `protocol.<scheme>.allow` is added per remote.
_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.untrackedCache=false",
    "core.splitIndex=false",
    "core.autocrlf=false",
    "core.symlinks=true",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "core.bigFileThreshold=16m",
    "protocol.allow=never",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "push.recurseSubmodules=no",
    "push.followTags=false",
    "push.gpgSign=false",
    "commit.gpgsign=false",
    "log.showSignature=false",
    "diff.external=",
    "advice.addEmbeddedRepo=false",
    "transfer.fsckObjects=true",
    # Old flaws of honest repositories, found in well-known public ones; harmless, so they do not stop a fetch.
    "fetch.fsck.badTimezone=warn",
    "fetch.fsck.missingSpaceBeforeDate=warn",
    "fetch.fsck.zeroPaddedFilemode=warn",
    "gc.auto=0",
    "maintenance.auto=false",
    "credential.helper=",
    "http.followRedirects=false",
    "http.sslVerify=true",
    "http.lowSpeedLimit=1",
    "safe.bareRepository=explicit",
)


@dataclass(frozen=True, slots=True)
class Credential:
    """Name and token for git over HTTP. Gitea takes any name when the password is a token."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Remote:
    """The one place a mirror talks to: an http(s) URL without any credential in it."""

    url: str
    credential: Credential | None = None
    ca_bundle: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.username is not None or parts.password is not None:
            raise ValueError("a git URL must not hold a name or password: give a Credential")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"a git URL must look like https://host/owner/name.git, not {self.url!r}")
        if not self.url.isascii() or not self.url.isprintable() or " " in self.url or ".." in parts.path:
            raise ValueError(f"a git URL must not hold spaces, control characters or '..': {self.url!r}")

    @property
    def scheme(self) -> str:
        return urlsplit(self.url).scheme

    def environment(self) -> dict[str, str]:
        """The credential as a header for this origin only; git hands it to its HTTP helper through the environment."""
        env = {"GIT_ALLOW_PROTOCOL": self.scheme}
        if self.ca_bundle:
            env["GIT_SSL_CAINFO"] = self.ca_bundle
        if self.credential:
            env |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"http.{self.scheme}://{urlsplit(self.url).netloc}/.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: Basic {self._basic()}",
            }
        return env

    def redact(self, text: str) -> str:
        if not self.credential:
            return text
        return text.replace(self._basic(), "***").replace(self.credential.password, "***")

    def _basic(self) -> str:
        if not self.credential:
            return ""
        pair = f"{self.credential.username}:{self.credential.password}"
        return base64.b64encode(pair.encode()).decode()


@dataclass(frozen=True, slots=True)
class Output:
    """What one git said. `code` is None when it was killed: `timed_out`, or `truncated` at the output limit."""

    code: int | None
    out: bytes
    err: str
    timed_out: bool = False
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One git command: `args` after `git -c ...`, and what it may see."""

    args: Sequence[str]
    git_dir: Path
    work_tree: Path | None = None
    index: Path | None = None
    remote: Remote | None = None  # only for the commands that talk to it
    stdin: bytes = b""
    env: dict[str, str] = field(default_factory=dict)
    timeout: float = 600.0  # seconds
    limit: int = OUTPUT_LIMIT
    umask: int = -1  # -1: the process's own
    keep_open: tuple[int, ...] = ()  # descriptors (a lock) that must stay open for as long as git lives


def run(call: Call) -> Output:
    """Runs it to its end, its time limit or its output limit, and leaves no process of its group behind."""
    with tempfile.TemporaryFile() as source:
        source.write(call.stdin)
        source.seek(0)
        with subprocess.Popen(
            _argv(call),
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=call.work_tree or call.git_dir,
            env=_environment(call),
            start_new_session=True,
            umask=call.umask,
            pass_fds=call.keep_open,
        ) as process:
            try:
                _limit_memory(process.pid)
                return _collect(process, call)
            finally:
                _end(process)


def _argv(call: Call) -> list[str]:
    config = [*_CONFIG, f"http.lowSpeedTime={max(1, min(60, int(call.timeout / 2)))}"]
    if call.remote:
        config.append(f"protocol.{call.remote.scheme}.allow=always")
    return ["git", *(part for line in config for part in ("-c", line)), *call.args]


def _environment(call: Call) -> dict[str, str]:
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "GIT_DIR": str(call.git_dir),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/true",
        "GIT_PAGER": "cat",
        "GIT_EDITOR": "false",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
    }
    if call.work_tree:
        env["GIT_WORK_TREE"] = str(call.work_tree)
    if call.index:
        env["GIT_INDEX_FILE"] = str(call.index)
    return env | call.env | (call.remote.environment() if call.remote else {})


def _limit_memory(pid: int) -> None:
    # Set from outside, because code between fork and exec is unsafe in a process with threads. A child that git
    # started before this line keeps its own limit: git's first work, reading its configuration, starts none.
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        resource.prlimit(pid, resource.RLIMIT_DATA, (_MEMORY_LIMIT, _MEMORY_LIMIT))


def _collect(process: subprocess.Popen[bytes], call: Call) -> Output:
    deadline = time.monotonic() + call.timeout
    out, err = bytearray(), bytearray()
    assert process.stdout and process.stderr
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, (out, call.limit + 1))
        selector.register(process.stderr, selectors.EVENT_READ, (err, _STDERR_LIMIT))
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return Output(None, bytes(out), _text(err, call), timed_out=True)
            for key, _ in ready:
                _drain(selector, key)
            if len(out) > call.limit:
                return Output(None, bytes(out[: call.limit]), _text(err, call), truncated=True)
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Output(None, bytes(out), _text(err, call), timed_out=True)
    return Output(code, bytes(out), _text(err, call))


def _drain(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    chunk = os.read(key.fd, 64 * 1024)
    buffer, room = key.data
    buffer += chunk[: max(0, room - len(buffer))]
    if not chunk:
        selector.unregister(key.fileobj)


def _text(err: bytearray, call: Call) -> str:
    text = err.decode("utf-8", "replace")
    return call.remote.redact(text) if call.remote else text


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
