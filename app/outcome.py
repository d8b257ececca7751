"""What an error in the work of a step means: its own failure, or a hand-back because somebody else is at fault."""

from __future__ import annotations

import logging
from typing import Any

from app import disk
from app.context import Context
from app.edge import UNAVAILABLE
from app.ledger import jobs, steps
from app.pipeline import ANYWHERE, KEEP
from app.types import REASONS, Failed, HandBack, MosaicError, Permanent, Phase, Result, StepType, Transient

log = logging.getLogger("mosaic.tasks")
_FULL = "No room was left on the disk of Mosaic's data directory."
BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)


def backoff(faults: int) -> float:
    """Seconds before a handed-back step is tried again."""
    return BACKOFF_SECONDS[min(faults, len(BACKOFF_SECONDS) - 1)]


def internal(error: Exception) -> Failed:
    return Failed("internal_error", f"{type(error).__name__}: {error}", retryable=True)


def reason_of(error: MosaicError) -> str:
    """The reason that a job ends with when it fails with this error."""
    if error.code in REASONS:
        return error.code
    if error.code == "too_large":
        return "repository_unusable"
    return "forge_refused" if isinstance(error, Permanent) and error.status is not None else "internal_error"


def no_room(context: Context) -> HandBack | None:
    """Before work on files: it waits while the disk has too little space for it."""
    row = context.row
    if row["name"] in ANYWHERE or row["phase"] == Phase.CLEANUP or row["type"] == StepType.ARTIFACT:
        return None
    why = disk.short(context.paths.data)
    return HandBack("disk_full", why, backoff(row["faults"])) if why else None


def of_error(context: Context, error: Exception, redo: tuple[str, ...]) -> Result:
    """The result of a step whose work ended with this error."""
    row = context.row
    if disk.full(error):
        return _full(row, str(error), redo)
    if isinstance(error, Transient):
        return HandBack("forge_unavailable", str(error), error.retry_after or backoff(row["faults"]))
    if isinstance(error, UNAVAILABLE):
        return HandBack("database_unavailable", str(error), backoff(row["faults"]), redo)
    if isinstance(error, Permanent) and error.code == "moved":
        return _moved(context, error)
    if isinstance(error, MosaicError) and reason_of(error) != "internal_error":
        return Failed(reason_of(error), str(error))
    short = disk.short(context.paths.data)
    if short:  # not every program says so when it could not write
        return _full(row, f"{short} ({error})", redo)
    if isinstance(error, MosaicError):
        return Failed(reason_of(error), str(error))
    log.error("%s of job %s failed", steps.key_of(row), row["job_id"], exc_info=error)
    return internal(error)


def _full(row: dict[str, Any], why: str, redo: tuple[str, ...]) -> Result:
    """The step waits. Only the work of a job that has ended is not waited with: its last words are more urgent.

    What failed is for the log alone: it names files of this machine.
    """
    log.warning("%s of job %s found the disk full: %s", steps.key_of(row), row["job_id"], why)
    if row["name"] == KEEP.name:
        return Failed("disk_full", f"The work so far could not be kept. {_FULL}")
    return HandBack("disk_full", _FULL, backoff(row["faults"]), redo)


def _moved(context: Context, error: Permanent) -> Result:
    """The repository has another name by now: learn it, and do the same work again at once."""
    job = context.job
    try:
        found = context.forge.repository_by_id(job.repository_id)
    except Transient as away:
        return HandBack("forge_unavailable", str(away), backoff(context.row["faults"]))
    if found is None or found.full_name == job.repository:
        return Failed("forge_forbidden", str(error))
    jobs.rename(job.id, found.full_name)
    return HandBack("forge_unavailable", f"The repository is {found.full_name} now.", 0.0)
