"""Replay the events of one job: is the chain whole, and is the state that is stored what the events say?

One rule: what an event's erased body would have said is not judged; everything else is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from app.audit_invariants import Report, Violation
from app.audit_stored import Seen, StoredJob, StoredStep
from app.ledger.jobs import MOVES
from app.ledger.steps import MAX_CRASHES
from app.pipeline import PIPELINES
from app.types import REASONS, JobStatus

# What a job may still be told after its last word: that it was repeated, that a body was erased, that news went out.
_WORK = ("step.", "gate.", "ai.", "pr.", "continuation.", "worker.", "guard.", "authz.", "approval.")
_STEP_ENDS = {"step.completed": "completed", "step.failed": "failed", "step.cancelled": "cancelled"}
_JOB_MOVES = {
    "job.queued": JobStatus.QUEUED,
    "job.started": JobStatus.RUNNING,
    "job.waiting": JobStatus.WAITING,
    "job.completed": JobStatus.COMPLETED,
    "job.failed": JobStatus.FAILED,
    "job.cancelled": JobStatus.CANCELLED,
}
_ENDED = frozenset({"completed", "failed", "cancelled", "skipped"})
_FINAL = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})


class Fold:
    """The events of one job in order, then `close`. Everything that does not fit goes to `report`."""

    def __init__(self, job: StoredJob, report: Report) -> None:
        self.job = job
        self._report = report
        self.status: JobStatus | None = None
        self.over = False
        self.fence = 0
        self.steps: dict[str, Seen] = {}
        self.running: set[str] = set()
        self.ended_at: dict[str, int] = {}  # name of a step → the event by which one of that name ended last
        self.gates: dict[str, tuple[bool, str]] = {}
        self.gate_events: dict[str, tuple[bool, str | None, int | None]] = {}
        self.allowed: bool | None = None
        self.admission: Mapping[str, Any] | None = None
        self.seq = 0

    def wrong(self, invariant: str, detail: str, **row: Any) -> None:
        self._report(Violation(invariant, detail, self.job.id, {"seq": self.seq, **row}))

    # ------------------------------------------------------------ one event

    def event(self, seq: int, kind: str, actor: str, step: str | None, data: bytes | None) -> None:
        """`data` is the body; None when it was erased."""
        self.seq = seq
        if self.over and kind.startswith(_WORK):
            self.wrong("terminal", f"{kind} comes after the job's last word", kind=kind, step=step)
        if kind == "step.progress" and data is not None and b'"waiting"' not in data:
            return  # by far the most of all events
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, kind, actor, step or "", json.loads(data.decode("utf-8", "replace")) if data else None)

    def _created(self, kind: str, actor: str, step: str, data: Mapping[str, Any] | None) -> None:
        if self.status is not None:
            self.wrong("job_status", "the job was created twice")
        self.status, self.over = JobStatus.PENDING, False
        if actor != self.job.requester:
            self.wrong("job_facts", f"{actor} asked; the row says {self.job.requester}", requester=self.job.requester)
        if data is None:
            return
        for name, stored in (("number", self.job.number), ("text_sha256", self.job.text_sha256)):
            if data.get(name) != stored:
                self.wrong("job_facts", f"{name} was {data.get(name)!r}; the row says {stored!r}", **{name: stored})

    def _moved(self, kind: str, actor: str, step: str, data: Mapping[str, Any] | None) -> None:
        to = _JOB_MOVES[kind]
        if self.status is None or to not in MOVES.get(self.status, frozenset()):
            self.wrong("job_status", f"{kind} does not follow {self.status or 'nothing'}", kind=kind)
        self.status, self.over = to, to in _FINAL
        if self.over and data is not None and data.get("reason") != self.job.reason:
            said = data.get("reason")
            self.wrong("job_status", f"the job ended as {said}; its row says {self.job.reason}", reason=self.job.reason)
        if self.over and self.running:
            self.wrong("terminal", f"the job ended while {', '.join(sorted(self.running))} ran")

    # ------------------------------------------------------------ steps

    def _of(self, key: str) -> Seen:
        seen = self.steps.get(key)
        if seen is None:
            seen = self.steps[key] = Seen()
        return seen

    def _started(self, kind: str, actor: str, step: str, data: Mapping[str, Any] | None) -> None:
        seen, stored = self._of(step), self.job.steps.get(step)
        if seen.status in _ENDED:
            self.wrong("done_once", f"{step} was claimed after it had ended ({seen.status})", step=step)
        elif seen.status == "running":
            self.wrong("step_status", f"{step} was claimed while it ran", step=step)
        self._fence_grows(step, seen, data, strictly=True)
        if stored is not None:
            self._in_order(step, stored)
            self._redone(step, stored, seen.lost_at)
        seen.status, seen.worker, seen.lost_at = "running", (data or {}).get("worker"), 0
        self.running.add(step)

    def _fence_grows(self, step: str, seen: Seen, data: Mapping[str, Any] | None, *, strictly: bool) -> None:
        seen.known = data is not None and isinstance(data.get("fence"), int)
        if not seen.known or data is None:
            return
        fence = data["fence"]
        if fence < self.fence or (strictly and fence == self.fence):
            self.wrong("fence", f"{step} has fence {fence} after fence {self.fence}", step=step, fence=fence)
        seen.fence = fence
        self.fence = max(self.fence, fence)

    def _in_order(self, step: str, stored: StoredStep) -> None:
        beside = sorted(key for key in self.running if key != step and self._order(key) not in (None, stored.order))
        if beside:
            self.wrong("one_order", f"{step} started beside {', '.join(beside)}", step=step)
        if stored.cleanup:
            return  # the closing steps come however the job ends
        for key, other in self.job.steps.items():
            if other.order < stored.order and other.id < stored.id and self._open(key):
                self.wrong("order", f"{step} started before {key} had ended", step=step, open=key)

    def _order(self, key: str) -> int | None:
        stored = self.job.steps.get(key)
        return stored.order if stored else None

    def _open(self, key: str) -> bool:
        seen = self.steps.get(key)
        return seen is None or seen.status not in _ENDED

    def _ended(self, kind: str, actor: str, step: str, data: Mapping[str, Any] | None) -> None:
        seen = self._of(step)
        given_up = seen.lost_at and kind == "step.failed" and (data is None or data.get("reason") == "crashed")
        if seen.status in _ENDED:
            self.wrong("done_once", f"{step} ended twice: {seen.status}, then {kind}", step=step)
        elif seen.status != "running" and not given_up:
            self.wrong("step_status", f"{step} ended without being claimed", step=step)
        if data is not None and seen.known and data.get("fence") != seen.fence:
            self.wrong(
                "fence", f"{step} was claimed with fence {seen.fence} and ended with {data.get('fence')}", step=step
            )
        seen.status = _STEP_ENDS[kind]
        self.running.discard(step)
        self.ended_at[step.partition("@")[0]] = self.seq

    def _redone(self, step: str, stored: StoredStep, lost_at: int) -> None:
        """What has to run again before a step that was lost half-way has done so before it begins again."""
        for name in _REDO.get(stored.name, ()) if lost_at else ():
            if self.ended_at.get(name, 0) < lost_at and any(other.name == name for other in self.job.steps.values()):
                self.wrong("order", f"{step} began again before {name} had run again", step=step, open=name)

    def _skipped(self, kind: str, actor: str, step: str, data: Mapping[str, Any] | None) -> None:
        seen = self._of(step)
        if seen.status != "pending":
            self.wrong("step_status", f"{step} was skipped although it was {seen.status}", step=step)
        seen.status = "skipped"

    def _progress(self, kind: str, actor: str, step: str, data: Mapping[str, Any] | None) -> None:
        """Only a hand-back matters: it names what the step waits for, and its fence."""
        if data is None or "waiting" not in data or "fence" not in data:
            return
        seen = self._of(step)
        if seen.status != "running" or (seen.known and data["fence"] < seen.fence):
            self.wrong("step_status", f"{step} was handed back by somebody who did not have it", step=step)
        seen.status, seen.faults, seen.worker = "pending", seen.faults + 1, None
        self.running.discard(step)

    def _lost(self, kind: str, actor: str, step: str, data: Mapping[str, Any] | None) -> None:
        seen = self._of(step)
        if seen.status != "running":
            self.wrong("step_status", f"the worker of {step} was lost although it did not run", step=step)
        self._fence_grows(step, seen, data, strictly=True)
        seen.status, seen.crashes, seen.worker, seen.lost_at = "pending", seen.crashes + 1, None, self.seq
        self.running.discard(step)

    # ------------------------------------------------------------ gates, rights, pushes

    def _gate(self, kind: str, actor: str, step: str, data: Mapping[str, Any] | None) -> None:
        passed = kind == "gate.passed"
        tree = None if data is None else str(data.get("tree_sha", ""))
        self.gate_events[step] = (passed, tree, None if data is None else data.get("exit_code"))
        self.gates[step.removeprefix("inspector.gate.").partition("@")[0]] = (passed, tree or "")

    def _authz(self, kind: str, actor: str, step: str, data: Mapping[str, Any] | None) -> None:
        self.allowed = data.get("allowed") is True if data is not None else True

    def _guard(self, kind: str, actor: str, step: str, data: Mapping[str, Any] | None) -> None:
        if data is None or data.get("what") == "admission":
            self.admission = data or {}

    def _admission(self) -> None:
        """The last admission counts: a worker may be lost between recording it and its end."""
        job = self.job
        if self.admission is None:
            if self.allowed is not None and job.admission_recorded and job.gates:
                self.wrong("admission", "the job has gates and its admission was not recorded")
            return
        now = {"base": job.base_sha, "rules_sha256": job.rules_sha256(), "gates_sha256": job.gates_sha256()}
        for name, said in self.admission.items():
            if name in now and said != now[name] and job.base_sha is not None:
                self.wrong("admission", f"{name} was {said}; the row says {now[name]}", **{name: now[name]})

    def _pushed(self, kind: str, actor: str, step: str, data: Mapping[str, Any] | None) -> None:
        if data is None or not step.startswith("herald.publish@"):
            return
        if not self.allowed:
            self.wrong("authority", f"{data.get('sha')} was pushed without anyone's rights having been checked", **data)
        tree = data.get("tree") or self._tree_of(str(data.get("sha")))
        if tree is None:
            self.wrong("green_push", f"{data.get('sha')} was pushed, and no commit step made it", **data)
            return
        for gate in self.job.gates:
            passed, judged = self.gates.get(gate["name"], (False, ""))
            if gate.get("required", True) and not (passed and judged == tree):
                what = "never ran" if not judged else "was green on another tree" if passed else "was red"
                self.wrong("green_push", f"tree {tree} was pushed and gate {gate['name']} {what}", **data)

    def _tree_of(self, sha: str) -> str | None:
        return next((step.tree for step in self.job.steps.values() if step.commit == sha), None)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Compare what the events said with what is stored."""
        job = self.job
        if self.status is None or self.status.value != job.status:
            self.wrong("job_status", f"the events say {self.status}; the row says {job.status}", status=job.status)
        if self.status in _FINAL and (job.reason not in REASONS or REASONS[str(job.reason)].status is not self.status):
            self.wrong("terminal", f"the reason {job.reason} does not fit the status {job.status}", reason=job.reason)
        if self.fence != job.fence and all(seen.known for seen in self.steps.values()):
            self.wrong("fence", f"the last fence is {self.fence}; the row says {job.fence}", fence=job.fence)
        self._admission()
        for key in self.steps.keys() - job.steps.keys():
            self.wrong("step_status", f"{key} has events and no row", step=key)
        for key, stored in job.steps.items():
            self._compare(key, stored, self.steps.get(key, _UNSEEN))
        self._receipts()

    def _compare(self, key: str, stored: StoredStep, seen: Seen) -> None:
        skipped = seen.status == "skipped" and stored.status in ("skipped", "cancelled")
        if stored.status != seen.status and not skipped:
            self.wrong("step_status", f"{key} is {stored.status}; its events say {seen.status}", step=key)
        if seen.known and stored.fence != seen.fence:
            self.wrong("fence", f"{key} has fence {stored.fence}; its events say {seen.fence}", step=key)
        if seen.worker is not None and stored.status == "running" and stored.worker_id != seen.worker:
            self.wrong("one_owner", f"{key} is owned by worker {stored.worker_id}; {seen.worker} claimed it", step=key)
        if (stored.crashes, stored.faults) != (seen.crashes, seen.faults):
            self.wrong(
                "counts",
                f"{key} has {stored.crashes} crashes and {stored.faults} faults; its events say {seen.crashes} and "
                f"{seen.faults}",
                step=key,
            )
        if (stored.status == "failed" and stored.reason == "crashed") != (stored.crashes >= MAX_CRASHES):
            self.wrong("counts", f"{key} is {stored.status} ({stored.reason}) after {stored.crashes} crashes", step=key)

    def _receipts(self) -> None:
        for key in self.gate_events.keys() | self.job.receipts.keys():
            said, stored = self.gate_events.get(key), self.job.receipts.get(key)
            if said is None or stored is None:
                self.wrong(
                    "receipts", f"{key} has {'a receipt' if stored else 'an event'} and no counterpart", step=key
                )
            elif said[0] != stored[0] or (said[1] is not None and said[1:] != stored[1:]):
                self.wrong("receipts", f"the receipt of {key} says {stored}; its event says {said}", step=key)


_UNSEEN = Seen()
_REDO = {row.name: row.redo for table in PIPELINES.values() for row in table if row.redo}
_HANDLERS: dict[str, Callable[[Fold, str, str, str, Mapping[str, Any] | None], None]] = {
    "job.created": Fold._created,
    **dict.fromkeys(_JOB_MOVES, Fold._moved),
    "step.started": Fold._started,
    "step.skipped": Fold._skipped,
    "step.progress": Fold._progress,
    **dict.fromkeys(_STEP_ENDS, Fold._ended),
    "worker.lost": Fold._lost,
    "gate.passed": Fold._gate,
    "gate.failed": Fold._gate,
    "authz.checked": Fold._authz,
    "guard.allowed": Fold._guard,
    "git.pushed": Fold._pushed,
}
