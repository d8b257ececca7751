"""runner.setup: the repository's own preparations, on the base commit, before the agent: never with its changes.

What the commands leave in `[setup] outputs` is kept under a key of repository, commands and lock files, and shown to
every gate read-only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from app.clients.git import Git
from app.context import Context
from app.private_files import below
from app.sandbox_host import discard
from app.types import Cancelled, Done, Failed, Result
from app.workbench import clean_checkout, run_command

_TAIL = 4000  # characters of output in a failure
_LOCK_SECONDS = 0.1


def setup(context: Context) -> Result:
    """Run the setup commands once per key; its output names the cache that the gates mount."""
    rules = context.rules.setup
    if not rules.commands:
        return Done(output={"cache": None})
    git = context.clients.git(context.job.repository_id)
    key = cache_key(context, git)
    cache = context.paths.setup_cache(key)
    with _only_one(context, cache):
        if (cache / "complete").exists():
            os.utime(cache)  # the daily tidying keeps what was used lately
            return Done(output={"cache": key, "reused": True})
        return _fill(context, git, cache, key)


def cache_key(context: Context, git: Git) -> str:
    """Hash of what decides the result: repository, commands, outputs, and the content of the named lock files."""
    rules, base = context.rules.setup, context.job.base_sha or ""
    locks = {path: hashlib.sha256(git.read(base, path, 32 * 1024 * 1024) or b"").hexdigest() for path in rules.cache}
    parts = [context.job.repository_id, list(rules.commands), list(rules.outputs), rules.network, locks]
    if not rules.cache:
        parts.append(base)  # nothing says what the result depends on: so on everything
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _fill(context: Context, git: Git, cache: Path, key: str) -> Result:
    rules = context.rules.setup
    with clean_checkout(context, git, context.job.base_sha or "") as work:
        for command in rules.commands:
            context.log(f"$ {command}\n")
            ran = run_command(context, command, work, rules.timeout, network=rules.network)
            if ran.cancelled:
                raise Cancelled("setup")
            if ran.exit_code != 0:
                why = "timed out" if ran.timed_out else f"ended with {ran.exit_code}"
                return Failed("setup_failed", f"`{command}` {why}{_offline(rules.network)}:\n{ran.output[-_TAIL:]}")
        _keep(work, cache, rules.outputs)
    return Done(output={"cache": key, "reused": False})


def _offline(network: bool) -> str:
    """What a person who sees a download fail has to know."""
    return "" if network else " (setup has no network here: `[ceilings.setup]` of the server's file may allow it)"


def _keep(work: Path, cache: Path, outputs: tuple[str, ...]) -> None:
    """Move the outputs into the cache; `complete` is written last. What lies behind a link is not an output."""
    discard(cache)
    cache.mkdir()
    for name in outputs:
        source, kept = below(work, name), cache / "out" / name
        if source is not None and not os.path.lexists(kept):
            kept.parent.mkdir(parents=True, exist_ok=True)
            source.rename(kept)
    (cache / "complete").touch()


@contextmanager
def _only_one(context: Context, cache: Path) -> Iterator[None]:
    """Two jobs that need the same cache do not both fill it. Who waits can be stopped: the other may be frozen."""
    cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (cache.parent / f"{cache.name}.lock").open("w") as lock:
        while not _taken(lock):
            if context.cancelled():
                raise Cancelled("setup")
            time.sleep(_LOCK_SECONDS)
        yield


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
