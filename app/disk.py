"""The disk below the data directory: whether there is room to work, and which errors mean that there is none.

One rule: a full disk is nobody's fault but the machine's. What it stops waits, and no job, agent or gate is blamed.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from app.types import DiskFull, MosaicError

LOW, LEAST = 2 * 1024**3, 256 * 1024**2  # bytes free: below the first a warning, below the second files are not begun
_ERRNO = (errno.ENOSPC, errno.EDQUOT)
_SQLSTATE = "53100"  # disk_full, in PostgreSQL
_NO_TEMPORARY = "No usable temporary directory"  # Python's word for a full one
_SAID = ("No space left on device", "Disk quota exceeded")


def free(place: Path) -> int:
    """Bytes that Mosaic's account may still use on the disk of `place`, or of its nearest folder that is there."""
    while not place.exists() and place != place.parent:
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def short(place: Path) -> str:
    """Why no work on files can begin at `place`, as a sentence; "" when there is room."""
    left = free(place)
    if left >= LEAST:
        return ""
    return f"{left // 1024**2} MiB are free on the disk of Mosaic's data directory; work needs {LEAST // 1024**2} MiB."


def full(error: BaseException) -> bool:
    """Whether this error, or one that it came from, says that a disk of ours is full."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if _says_full(cause):
            return True
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _ERRNO or _NO_TEMPORARY in str(error)
    if isinstance(error, MosaicError):  # what the forge says of its own disk is not ours: only those that we word
        ours = isinstance(error, DiskFull) or error.code == "sandbox_unavailable"
        return ours and (isinstance(error, DiskFull) or any(word in str(error) for word in _SAID))
    return getattr(error, "sqlstate", None) == _SQLSTATE
