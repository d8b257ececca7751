"""One command of the repository's rules in the sandbox, for a step: setup and gates run their commands here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app import disk, sandbox
from app.clients.git import Git
from app.context import Context
from app.sandbox_host import discard
from app.sandbox_profile import Limits
from app.types import DiskFull


@contextmanager
def clean_checkout(context: Context, git: Git, tree: str) -> Iterator[Path]:
    """A fresh checkout of a tree for one step, removed afterwards whatever happened."""
    work = context.paths.checkout(context.job.id, context.row["id"], context.row["fence"])
    index = work.with_name(work.name + ".index")
    discard(work)
    index.unlink(missing_ok=True)
    work.parent.mkdir(parents=True, exist_ok=True)
    try:
        git.checkout(tree, work, index=index)
        yield work
    finally:
        discard(work)
        index.unlink(missing_ok=True)


def run_command(
    context: Context,
    command: str,
    work: Path,
    seconds: float,
    *,
    network: bool = False,
    read_only: Mapping[str, Path] | None = None,
) -> sandbox.Ran:
    """Run it with this server's tool folders; its output goes to the step's log.

    Raises DiskFull instead of a failure that says nothing about the command: one on a disk that has no room left.
    """
    server = context.clients.server.sandbox
    if server.insecure:
        context.event("guard.allowed", what="sandbox.insecure", command=command)
    limits = Limits(seconds=max(1.0, context.seconds_left(seconds)))
    ran = sandbox.run(
        command,
        work=work,
        read_only=read_only,
        limits=limits,
        network=network,
        cancelled=context.cancelled,
        on_output=context.log,
        tools=[Path(tool) for tool in server.read_only],
        path=[*_prepared_programs(context), *server.path],
        insecure=server.insecure,
    )
    short = disk.short(context.paths.data) if ran.exit_code != 0 and not (ran.cancelled or ran.disk_full) else ""
    if short or ran.no_room:
        raise DiskFull(f"`{command}` was stopped by a full disk. {short}".strip())
    return ran


def _prepared_programs(context: Context) -> list[str]:
    """Where programs lie that setup made: `.venv/bin`, `node_modules/.bin` and the like are found without a path."""
    return [f"/work/{name}/{folder}" for name in context.rules.setup.outputs for folder in ("bin", ".bin")]
