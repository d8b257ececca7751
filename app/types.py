"""The words of the system: frozen values that travel between the parts, and the table of reasons.

This module imports nothing of ours. Everything that crosses a component boundary is one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class JobStatus(StrEnum):
    PENDING = "pending"  # accepted, not yet admitted
    QUEUED = "queued"  # admitted, waits for a slot
    RUNNING = "running"
    WAITING = "waiting"  # for a person; holds no worker
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


class StepStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self not in (StepStatus.PENDING, StepStatus.RUNNING)


class Phase(StrEnum):
    SETUP = "setup"
    EXECUTION = "execution"
    VALIDATION = "validation"
    CLEANUP = "cleanup"


class StepType(StrEnum):
    COMMAND = "command"
    AI_ACTION = "ai_action"
    GATE = "gate"
    ARTIFACT = "artifact"


class Pool(StrEnum):
    """A kind of consumer; each holds only the secrets of its role."""

    CONTROL = "control"  # runner, herald, stitcher: forge tokens
    AGENTS = "agents"  # weaver: engine token
    GATES = "gates"  # inspector, setup: no secret


class Verb(StrEnum):
    """The verbs of the one command grammar (comments, chat, CLI)."""

    FIX = "fix"
    PLAN = "plan"
    ASK = "ask"
    REVIEW = "review"
    STATUS = "status"
    CANCEL = "cancel"
    RETRY = "retry"
    CONTINUE = "continue"
    APPROVE = "approve"
    DENY = "deny"
    WHY = "why"
    VERBOSE = "verbose"
    QUIET = "quiet"
    CONFIG = "config"
    ANSWER = "answer"
    LINK = "link"
    CI = "ci"
    PAUSE = "pause"
    RESUME = "resume"
    HELP = "help"


# ---------------------------------------------------------------- reasons


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job ended: the same words in comment, page, API and CLI."""

    code: str
    status: JobStatus
    cause: str  # one sentence, no jargon
    next_action: str  # one concrete thing to do; "" when nothing is needed


def _reasons(*rows: tuple[str, JobStatus, str, str]) -> Mapping[str, Reason]:
    return {code: Reason(code, status, cause, action) for code, status, cause, action in rows}


_C, _F, _X = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED
REASONS: Mapping[str, Reason] = _reasons(
    ("done", _C, "All gates are green and the pull request is open.", "Review the pull request."),
    ("nothing_to_do", _C, "The agent finished without changing a file.", "Say more precisely what should change and mention Mosaic again."),
    ("answered", _C, "The question was answered.", ""),
    ("gates_failed", _F, "A required gate was still red after the last allowed round.", "Read the output of the red gate, then `@mosaic retry`, or fix it by hand."),
    ("policy_violation", _F, "The change touched something that the policy does not allow.", "Reword the request so that it avoids the paths that are named, or make that part of the change by hand."),
    ("timed_out", _F, "The job reached its time limit.", "Split the task, or raise `limits.minutes`, then `@mosaic retry`."),
    ("stalled", _F, "The agent showed no activity for longer than the stall limit.", "`@mosaic retry`; if it happens again, look at the engine's log."),
    ("budget_exhausted", _F, "The job reached its token or cost limit.", "Split the task, or raise the limit in `.mosaic.toml`, then `@mosaic retry`."),
    ("engine_unavailable", _F, "The agent engine or its model did not answer for too long.", "Ask the operator to run `mosaic doctor`, then `@mosaic retry`."),
    ("engine_rejected", _F, "The agent engine or its model refused the request as invalid.", "Ask the operator to check the model settings (`MOSAIC_MODEL_*`), then `@mosaic retry`."),
    ("forge_unavailable", _F, "Gitea did not answer for too long.", "`@mosaic retry` when Gitea is back."),
    ("disk_full", _F, "The disk of the machine that Mosaic runs on was full for too long.", "Ask the operator to make room (`mosaic gc`, `mosaic doctor`), then `@mosaic retry`."),
    ("refused", _F, "The request was not allowed.", "Ask someone with write permission on the repository to make the request."),
    ("rights_unknown", _F, "Gitea does not tell Mosaic what this person may do in the repository.", "Ask the operator to set `MOSAIC_GITEA_AUTHZ_TOKEN`, or to make the bot an administrator of the repository, then ask again."),
    ("repository_unusable", _F, "Mosaic cannot work in this repository as it is.", "Mend what is named, or ask an owner of the repository to, then `@mosaic retry`."),
    ("not_served", _F, "This repository is not on the list that this Mosaic serves.", "Ask the operator to add it to `repositories` in the server configuration."),
    ("not_found", _F, "The text that asked for this job no longer exists or has changed.", "Write the request again as a new comment."),
    ("conflict", _F, "The branch holds commits that Mosaic did not make, so it was left alone.", "Merge, rename or delete the branch, then `@mosaic retry`."),
    ("setup_failed", _F, "The repository's setup commands failed on the base commit, before the agent started.", "Fix `[setup]` in `.mosaic.toml` (the output says what failed), then `@mosaic retry`."),
    ("config_invalid", _F, "The repository's `.mosaic.toml` is not valid.", "Correct the line that is named on the default branch, then `@mosaic retry`."),
    ("no_gates", _F, "The repository has no quality gate, and ungated changes are not allowed.", "Add a `[[gates]]` entry to `.mosaic.toml`, or set `[bot] allow_ungated = true`."),
    ("sandbox_unavailable", _F, "The sandbox for the quality gates does not work on this machine, so no gate was run.", "Ask the operator to install bubblewrap and run `mosaic doctor`, then `@mosaic retry`."),
    ("agent_failed", _F, "The agent stopped with an error before it finished its work.", "Read the error that is quoted, then `@mosaic retry`."),
    ("crashed", _F, "The same step took its worker down several times, so it was stopped.", "Tell the operator (the log of the step is on the job's page), then `@mosaic retry`."),
    ("internal_error", _F, "A fault inside Mosaic stopped the job.", "Tell the operator the job number; then `@mosaic retry`."),
    ("cancelled_by_user", _X, "Someone asked to stop the job.", "`@mosaic retry` starts it again."),
    ("superseded", _X, "A newer request took the place of this job.", "Look at the newer job of the same issue."),
    ("wrong_place", _F, "Mosaic works on issues, and on the open pull requests that it made itself.", "Mention Mosaic on an issue: it opens a pull request for it."),
    ("rate_limited", _F, "There were more requests than the limits allow.", "Ask again at the time that is named, or have the limit raised that is named."),
    ("failing_repeatedly", _F, "The last jobs on this issue have all failed.", "Change what makes them fail (the request, the code or the gates), then `@mosaic retry`."),
    ("daily_budget_exhausted", _F, "The budget of the day is used up.", "`@mosaic retry` when the day's costs are more than 24 hours old, or have the limit raised that is named."),
    ("saved_work_unusable", _F, "The saved work cannot be continued.", "`@mosaic retry` starts again from the branch as it is now."),
    ("base_gone", _F, "The commit that the job started from is on no branch of the forge any more.", "`@mosaic retry` starts from the default branch as it is now."),
    ("approval_expired", _F, "Nobody approved in time.", "`@mosaic retry` asks again."),
    ("forge_refused", _F, "Gitea refused something that the job needs.", "Read Gitea's answer that is quoted, mend what it names, then `@mosaic retry`."),
    ("forge_forbidden", _F, "Mosaic's account may not write to this repository.", "Ask an owner to give the bot write access, or to unarchive the repository, then `@mosaic retry`."),
)


# ---------------------------------------------------------------- errors


class MosaicError(Exception):
    """An error that a person may read: `code` is stable, `str()` says what failed and what to do."""

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code:
            self.code = code


class Transient(MosaicError):
    """The outside world failed in a way that may pass; `retry_after` in seconds when it said so."""

    code = "transient"

    def __init__(self, message: str, *, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


class Ambiguous(Transient):
    """A write was sent and its answer was lost: it may or may not have happened. Look before writing again."""

    code = "ambiguous"


class Misconfigured(Transient):
    """The outside world is there, but what we show it does not fit: an operator mends it, and the same request works.

    `code`: token_refused | token_scope | untrusted_certificate.
    """

    code = "token_refused"

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message, status=status)
        if code:
            self.code = code


class DiskFull(MosaicError):
    """There is no room left on a disk of ours: the same work succeeds when somebody has made some."""

    code = "disk_full"


class Outage(Transient):
    """Not even tried: the outside world is known to be away. `retry_after` = seconds until the next look at it."""

    code = "outage"


class Permanent(MosaicError):
    """The outside world refused; the same request will be refused again. `status` is the HTTP status, if any."""

    code = "permanent"

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.status = status


class LostLease(MosaicError):
    """This worker no longer owns the step: stop, write nothing."""

    code = "lost_lease"


class Cancelled(MosaicError):
    """The job was cancelled while the step ran."""

    code = "cancelled"


class ConfigInvalid(MosaicError):
    """A configuration text cannot be used; `line` is 1-based where it is known."""

    code = "config_invalid"

    def __init__(self, message: str, *, source: str, line: int | None = None) -> None:
        super().__init__(message)
        self.source = source
        self.line = line


# ---------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True)
class Command:
    """One parsed command line. `text` is what follows the verb (the task, the question, the remark)."""

    verb: Verb
    text: str = ""
    job: int | None = None  # for the verbs that take a job number
    code: str = ""  # approve / deny: 8 hex digits


@dataclass(frozen=True, slots=True)
class DidYouMean:
    """A line that starts like a control verb but does not fit its grammar: answered, never a paid task."""

    line: str
    suggestion: str  # the correct form, e.g. "@mosaic cancel 42"


@dataclass(frozen=True, slots=True)
class Trigger:
    """Where a request came from, as the signed delivery (or the CLI) described it. Stored on the job as JSON."""

    kind: str  # comment | opened | assigned | labeled | review | cli | api
    repository_id: int
    repository: str  # owner/name, for display and API paths
    number: int | None
    is_pull: bool
    object_id: int  # comment id, or issue id
    actor_id: int
    actor: str  # login
    text: str  # the whole body in which the request stands
    text_sha256: str
    url: str = ""
    permission: str | None = None  # read | write | admin: the actor's own, where the signed payload states it
    at: str = ""  # RFC 3339: when the text was created on the forge
    issue_title: str = ""  # the issue as it was when the request was made
    issue_body: str = ""
    issue_author: str = ""


# ---------------------------------------------------------------- jobs and steps


@dataclass(frozen=True, slots=True)
class Job:
    id: int
    pipeline: str
    status: JobStatus
    repository_id: int
    repository: str
    number: int | None
    instructions: str
    requester: str  # actor, e.g. "gitea:alice"
    requester_id: int
    trigger: Trigger
    priority: int
    access: str
    reason: str | None  # code of REASONS once the outcome is known (before the job is terminal)
    detail: str  # what went wrong, for a person; already redacted
    retry_of: int | None
    branch: str | None
    base_sha: str | None
    default_branch: str | None
    pull_request: int | None
    head_sha: str | None
    cancel_requested: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    tokens: int
    cost_usd: float
    metadata: Mapping[str, Any] = field(default_factory=dict)
    host: str | None = None  # where its worktree and its commits lie; None = nowhere yet


@dataclass(frozen=True, slots=True)
class Step:
    id: int
    job_id: int
    name: str  # "<component>.<verb>[.<gate>]"
    round: int
    attempt: int
    status: StepStatus
    phase: Phase
    type: StepType
    order: int
    fence: int = 0
    crashes: int = 0  # workers lost while they held this step
    faults: int = 0  # times it was handed back because the outside world failed
    run_after: datetime | None = None
    output: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""  # why it failed: a code of REASONS, or a step-level code such as "gate_red"
    detail: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    host: str = ""
    excused: int = 0  # attempts before this one that do not count: a loss of ours took them

    @property
    def key(self) -> str:
        """The step's public id, e.g. `weaver.implement@1.1`."""
        return f"{self.name}@{self.round}.{self.attempt}"


def since_loss(metadata: Mapping[str, Any]) -> tuple[int, int]:
    """(round, fence) of a job's last new start after the host with its files was lost; (1, 0) when there was none.

    That round counts as the first; what was made up to that fence is gone.
    """
    found = metadata.get("restarted") or {}
    return int(found.get("round", 1)), int(found.get("fence", 0))


@dataclass(frozen=True, slots=True)
class Event:
    """The one envelope (design: `id` is a cursor, `seq` counts from 1 within the job)."""

    id: str
    job_id: int
    seq: int
    kind: str
    at: datetime
    actor: str
    step: str | None
    data: Mapping[str, Any]


# ---------------------------------------------------------------- results of steps


@dataclass(frozen=True, slots=True)
class Done:
    """The step did its work. `output` is stored with the step; `facts` are columns of the job to set with it."""

    output: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    conclude: str | None = None  # ends the job early with this reason (e.g. nothing_to_do)


@dataclass(frozen=True, slots=True)
class Failed:
    """The step's own work failed. `retryable` = the same work again may succeed (counts as an attempt)."""

    reason: str
    detail: str = ""
    retryable: bool = False
    output: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HandBack:
    """Somebody else is at fault (engine or forge down, disk full): the same step again later, no attempt spent."""

    reason: str  # engine_unavailable | forge_unavailable | disk_full | ...
    detail: str
    retry_after: float  # seconds
    redo: tuple[str, ...] = ()  # steps to run again first, e.g. a fresh checkout


Result = Done | Failed | HandBack
CLOCK_STOPS = ("forge_unavailable", "disk_full")  # handed back for these, a job's time stands still; up to a limit


# ---------------------------------------------------------------- quality


@dataclass(frozen=True, slots=True)
class GateSpec:
    """One quality gate as it will be run (the effective definition: server and repository, stricter wins)."""

    name: str  # [a-z0-9][a-z0-9-]{0,39}
    type: str  # build | lint | test | coverage | custom
    command: str
    required: bool = True
    order: int = 10
    timeout: int = 900  # seconds
    expect: str = ""  # text, or /regex/, that the output must contain
    min: float | None = None  # coverage percentage
    report: str = ""  # path of a JUnit, Cobertura or lcov report, relative to the work tree
    source: str = "repository"  # repository | server | detected:<file>


@dataclass(frozen=True, slots=True)
class GateResult:
    name: str
    type: str
    command: str
    required: bool
    passed: bool
    exit_code: int | None  # None: killed or never started
    seconds: float
    why: str  # one sentence: what decided the verdict
    output: str  # capped, redacted
    counts: Mapping[str, int] = field(default_factory=dict)  # tests, failures, errors, skipped
    coverage: float | None = None
    tree_sha: str = ""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation found by the policy step."""

    rule: str  # symlink | gitlink | protected_path | size | name | mode | count
    path: str
    detail: str


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of `git diff --raw`: a path that differs between two trees."""

    path: str
    status: str  # A | M | D | T
    old_mode: str
    new_mode: str
    old_sha: str
    new_sha: str


# ---------------------------------------------------------------- the engine


@dataclass(frozen=True, slots=True)
class Usage:
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    total: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One turn of the agent."""

    run_id: str  # == idempotency key, mosaic-<job>-<step>-<fence>
    session: str  # agent:<agent>:mosaic-<job>-<workspace fence>
    profile: str  # read | write
    workdir: str  # absolute path of the worktree
    prompt: str
    system: str  # extra system prompt (the repository's rules)
    deadline_s: float  # seconds from now
    stall_s: float  # seconds without any activity
    label: str = ""
    token_limit: int | None = None  # total tokens this run may use; beyond it the run is aborted
    cost_limit: float | None = None


@dataclass(frozen=True, slots=True)
class EngineEvent:
    kind: str  # started | model | text | tool_start | tool_end | usage | finishing
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a turn.

    outcome: completed | failed (the agent's own error) | timed_out | stalled | cancelled | budget_exhausted |
    engine_unavailable (not the job's fault, retry later) | rejected (bad request, model 400) | lost (the
    connection dropped after the run was accepted: the worktree cannot be trusted).
    """

    outcome: str
    text: str = ""
    usage: Usage = field(default_factory=Usage)
    session_tokens: int = 0  # tokens in the conversation so far, for the 60 % rule
    tools_ok: tuple[str, ...] = ()
    tool_calls: int = 0
    tool_failures: int = 0
    stop_reason: str = ""
    error: str = ""
    retry_after: float | None = None
    boot_id: str = ""
    seconds: float = 0.0
