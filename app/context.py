"""What a step is given: its job, its rules, the clients of its pool, and the ways to report. Nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from werkzeug.utils import cached_property  # without a lock: Python's own has one for all threads of the process

from app import breaker, queries
from app.clients.git import Credential, Git
from app.clients.gitea import GiteaClient
from app.clients.openclaw import OpenClaw
from app.ledger import steps
from app.paths import Paths
from app.pipeline import ANYWHERE
from app.redact import Redactor
from app.rules import Rules, ServerConfig
from app.settings import Settings
from app.stitcher.advance import tell
from app.types import Cancelled, GateSpec, Job, LostLease, Step, Usage, since_loss
from app.worker import Held, Worker

LOG_LIMIT = 400_000  # characters of output kept per step
_LOG_SECONDS = 0.3
_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class Clients:
    """The edges of one process. What a pool may not use is None there: it holds no secret for it."""

    settings: Settings
    server: ServerConfig
    worker: Worker
    redactor: Redactor
    forge: GiteaClient | None = None
    authz: GiteaClient | None = None  # a repository administrator's token, asked only for permissions
    engine: OpenClaw | None = None

    @property
    def paths(self) -> Paths:
        return Paths(self.settings.data_dir)

    def git(self, repository_id: int) -> Git:
        """Mosaic's own mirror of a repository; it cannot reach the forge."""
        return Git(self.paths.mirror(repository_id), None)

    def forge_git(self, repository_id: int, full_name: str, *, push: bool = False) -> Git:
        """The mirror, with the way to the forge: the configured address and a name, never an address from a message."""
        settings = self.settings
        token = (settings.gitea_push_token if push else "") or settings.gitea_token
        bundle = str(settings.ca_bundle) if settings.ca_bundle else None
        url = f"{settings.gitea_url.rstrip('/')}/{full_name}.git"
        credential, guard = Credential("mosaic", token), breaker.forge
        return Git(self.paths.mirror(repository_id), url, credential, ca_bundle=bundle, guard=guard)


@dataclass
class Context:
    """One running step. Everything that it reports is refused once the step belongs to somebody else."""

    row: dict[str, Any]
    clients: Clients
    held: Held
    _told_at: float = field(default=0.0, init=False)
    _log: list[str] = field(default_factory=list, init=False)
    _log_size: int = field(default=0, init=False)
    _logged_at: float = field(default=0.0, init=False)
    _counted: Usage = field(default_factory=Usage, init=False)

    @cached_property
    def job(self) -> Job:
        job = queries.job(self.row["job_id"])
        assert job is not None
        return job

    @cached_property
    def step(self) -> Step:
        return queries.as_step(self.row)

    @cached_property
    def rules(self) -> Rules:
        stored = queries.rules(self.job.id)
        if stored is None:
            raise LookupError(f"job {self.job.id} has no rules: it was not admitted")
        return Rules.from_json(dict(stored))

    @cached_property
    def gates(self) -> tuple[GateSpec, ...]:
        return queries.gates(self.job.id)

    @property
    def settings(self) -> Settings:
        return self.clients.settings

    @property
    def paths(self) -> Paths:
        return self.clients.paths

    @property
    def forge(self) -> GiteaClient:
        if self.clients.forge is None:
            raise PermissionError("this pool holds no forge token")
        return self.clients.forge

    def output_of(self, name: str) -> Mapping[str, Any]:
        """The output of the newest completed step of that name; {} when there is none.

        What another host has made lies there, and does not count here; nor what this one made before such a loss.
        """
        lost = since_loss(self.job.metadata)[1]
        mine = [step for step in self._completed(name) if step.host == self.row["host"] and step.fence > lost]
        here = self._completed(name) if name in ANYWHERE else mine
        return max(here, key=lambda step: (step.round, step.attempt)).output if here else {}

    def made_elsewhere(self, name: str) -> Mapping[str, Any] | None:
        """What the newest completed step of that name has made on another host; None when it ran on this one."""
        newest = max(self._completed(name), key=lambda step: (step.round, step.attempt), default=None)
        return newest.output if newest and newest.host != self.row["host"] else None

    def _completed(self, name: str) -> list[Step]:
        return [step for step in queries.steps(self.job.id) if step.name == name and step.status == "completed"]

    @property
    def round(self) -> int:
        """From 1: how often the agent has worked on this change. After the loss of a host it is the first again."""
        return self.step.round - since_loss(self.job.metadata)[0] + 1

    @property
    def worktree(self) -> Path:
        return self.paths.worktree(self.job.id, int(self.output_of("runner.checkout")["fence"]))

    # ------------------------------------------------------------ stopping

    def cancelled(self) -> bool:
        """Whether the work has to stop: cancelled, lost, or the process is going down."""
        return self.held.stop.is_set()

    def check(self) -> None:
        """Raise when the work has to stop; called before every write to the outside."""
        if self.cancelled():
            raise LostLease("the step was lost") if self.held.why == "lost" else Cancelled(self.held.why)
        if not steps.owned(self.row["id"], self.row["fence"]):
            raise LostLease(f"{steps.key_of(self.row)} is no longer ours")

    def seconds_left(self, limit: float) -> float:
        """Seconds until the step's limit or the job's deadline, whichever is nearer."""
        if self.job.deadline_at is None:
            return limit
        return min(limit, (self.job.deadline_at - queries.now()).total_seconds())

    # ------------------------------------------------------------ reporting

    def event(self, kind: str, **data: Any) -> None:
        steps.event(self.row, kind, **data)

    def progress(self, **data: Any) -> None:
        """At most one a second; what comes faster is dropped, the next one is complete."""
        now = time.monotonic()
        if now - self._told_at >= _PROGRESS_SECONDS:
            self._told_at = now
            steps.progress(self.row, data)
            tell(self.job.id)

    def tokens(self, usage: Usage) -> None:
        """Total usage of this run so far."""
        if usage.total > self._counted.total or usage.cost_usd > self._counted.cost_usd:
            steps.tokens(self.row, usage, self._counted)
            self._counted = usage

    def log(self, text: str) -> None:
        """Output of the step, written in batches, up to LOG_LIMIT characters."""
        room = LOG_LIMIT - self._log_size
        if room <= 0 or not text:
            return
        text = text if len(text) <= room else text[:room] + "\n[… the log ends here; it reached its limit]\n"
        self._log_size += len(text)
        self._log.append(text)
        if time.monotonic() - self._logged_at >= _LOG_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._log:
            steps.log(self.row["id"], "".join(self._log))
            self._log.clear()
        self._logged_at = time.monotonic()


Work = Callable[[Context], Any]
