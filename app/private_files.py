"""Files and directories that exactly one account may read.

One rule: they are private from their first moment on, never made readable and narrowed afterwards.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from app.unprivileged import Account


def private_dir(folder: Path, account: Account | None) -> None:
    """Make `folder` (its parent must exist) the alone property of `account`, or ours."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    folder.chmod(0o700)


def is_private(folder: Path, uid: int) -> bool:
    with suppress(FileNotFoundError):
        status = folder.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == uid and status.st_mode & 0o077 == 0
    return False


def below(root: Path, name: str) -> Path | None:
    """The file or directory `name` below `root`; None when it is missing or a symbolic link stands anywhere on the way.

    For trees that foreign code has written: a link there may point at anything of ours.
    """
    at = root
    for part in Path(name).parts:
        at = at / part
        if part in ("..", "/") or at.is_symlink():
            return None
    return at if at != root and (at.is_dir() or at.is_file()) else None


def write_private(path: Path, text: str, account: Account | None = None) -> None:
    """Write a 0600 file that is on the disk when this returns."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
