"""What a failed git means: git speaks in sentences, the rest of Mosaic in `Transient`, `Ambiguous` and `Permanent`."""

from __future__ import annotations

import re

from app.clients.git_env import Output
from app.types import Ambiguous, DiskFull, Misconfigured, MosaicError, Permanent, Transient

_STATUS = re.compile(r"(?:returned error: |HTTP )(\d{3})")
_CONTROL = re.compile(r"[^\x20-\x7e\u00a0-\u200a\u2010-\u2027\u202f-\u205f\u2070-\ud7ff\ue000-\ufefe\uff00-\uffef]+")
_AFTER_SENDING = ("RPC failed", "hung up", "unexpected disconnect", "early EOF", "bad line length", "unpack failed")
_UNTRUSTED = re.compile(r"unable to access .*certificate (?:problem|verification failed)")  # OpenSSL's words, GnuTLS's
_FULL_DISK = ("No space left on device", "Disk quota exceeded", "Out of diskspace", "unable to write", "couldn't write")
_OTHER_CAUSE = ("Permission denied", "Read-only file system")  # of what could not be written
_REFUSED = re.compile(r"error: (?:invalid path '|unable to (?:add|index file) '|(?:open|readlink)\(|')")  # then a name


def said(text: str, limit: int = 600) -> str:
    """What git printed, as one clean line: hints, progress and control characters dropped."""
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip() and not line.startswith(("hint:", "warning:"))]
    return _CONTROL.sub(" ", " / ".join(lines)).strip()[:limit]


def remote_said(text: str, limit: int = 600) -> str:
    """Only the lines that the forge itself sent ("remote: ...")."""
    lines = (line.removeprefix("remote:").strip() for line in re.split(r"[\r\n]+", text) if line.startswith("remote:"))
    return _CONTROL.sub(" ", " / ".join(line for line in lines if line)).strip()[:limit]


def disk_was_full(output: Output) -> bool:
    """Whether this git could not write here. What the forge says of its own disk stands behind "remote:".

    A line that says which file git refuses ends with a name that an agent chose: it says nothing of the disk.
    """
    lines = re.split(r"[\r\n]+", output.err)
    here = [line for line in lines if not line.startswith("remote:") and not _REFUSED.match(line)]
    return any(
        any(word in line for word in _FULL_DISK) and not any(word in line for word in _OTHER_CAUSE) for line in here
    )


def _no_room(verb: str, output: Output) -> DiskFull:
    return DiskFull(f"git {verb} could not write: the disk is full. Free some space. ({said(output.err)})")


def local_failure(verb: str, output: Output, code: str = "git_failed") -> MosaicError:
    """For a command that touches only this machine: the same input fails again, unless the disk was full."""
    if output.timed_out:
        return Permanent(
            f"git {verb} took too long and was stopped. Is the repository unusually large?", code="timed_out"
        )
    if output.truncated:
        return Permanent(f"git {verb} had more to say than allowed: too many or too large files.", code="too_large")
    if disk_was_full(output):
        return _no_room(verb, output)
    return Permanent(f"git {verb} failed: {said(output.err) or f'exit code {output.code}'}", code=code)


def remote_failure(verb: str, output: Output, *, write: bool = False) -> MosaicError:
    """For a command that talks to the forge. A `write` that broke after it was sent is `Ambiguous`."""
    if _UNTRUSTED.search(output.err):
        text = f"git {verb}: the forge's certificate is not trusted. Set MOSAIC_CA_BUNDLE to the CA of your Gitea."
        return Misconfigured(text, code="untrusted_certificate")
    if not write and disk_was_full(output):
        return _no_room(verb, output)
    text, after = said(output.err), any(word in output.err for word in _AFTER_SENDING)
    found = _STATUS.search(output.err)
    status = int(found.group(1)) if found else None
    if output.timed_out or (after and (status is None or status >= 500)):
        what = "did not finish in time" if output.timed_out else f"broke off: {text}"
        if write:
            return Ambiguous(f"git {verb} {what}. It may have arrived: look at the branch first.", status=status)
        return Transient(f"git {verb} {what}.", status=status)
    if status in (408, 429) or (status or 0) >= 500 or (status is None and "unable to access" in text):
        return Transient(f"git {verb}: the forge could not be reached: {text}", status=status)
    return _refused(verb, text, status)


def _refused(verb: str, text: str, status: int | None) -> MosaicError:
    """Gitea answers 404 for a repository that the account may not see, and 403 for a token without the scope."""
    if "Authentication failed" in text or "could not read Username" in text or status == 401:
        advice = "the forge does not accept the token. Make a new one and set it in the configuration."
        return Misconfigured(f"git {verb}: {advice}", status=401)
    if status is None and "not found" in text:
        status = 404
    code = "moved" if status is not None and 300 <= status < 400 else "git_failed"
    if status in (403, 404):
        code = "forge_forbidden"
        text += " It does not exist, or Mosaic's account or its token may not do this there."
    return Permanent(f"git {verb} was refused: {text}", status=status, code=code)
