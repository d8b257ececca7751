"""Start a program as an account that owns nothing else, tied to the life of the one that started it.

One rule: it gets the least right that lets it reach its own files, and a clear error when that is not enough.

Started by root, a server must run as somebody else, yet the project or the data may lie below a directory that only
root may pass through (`/root`, `mktemp -d`). Then, and only then, the program gets one capability, CAP_DAC_READ_SEARCH
(it may pass through and read, never write). It is handed over as an *ambient* capability, since a change of account
drops all others, and with the securebit `no_setuid_fixup`: access(2), which PostgreSQL asks about its own binaries,
ignores the capabilities of every account but root without it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.types import MosaicError

_READ_ANYWHERE = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--securebits=+no_setuid_fixup")
_PROBE = 'for path in "$@"; do if test -d "$path"; then test -x "$path"; else test -r "$path"; fi || exit 1; done'
CLEAN_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True, slots=True)
class Account:
    uid: int
    gid: int
    name: str


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_uid, entry.pw_gid, entry.pw_name)


def service_account() -> Account | None:
    """Who a server started by us shall be: None = ourselves; for root the system's `postgres`, else `nobody`."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return _account(pwd.getpwnam(name))
        except KeyError:
            continue
    raise MosaicError(
        "A database server must not run as root, and this machine has neither an account `postgres` nor `nobody`. "
        "Start Mosaic as an ordinary user, or add one with `useradd --system postgres`.",
        code="no_service_account",
    )


def owner(path: Path) -> Account:
    """The account that owns `path`, whether or not it has a name on this machine."""
    status = path.stat()
    try:
        return _account(pwd.getpwuid(status.st_uid))
    except KeyError:
        return Account(status.st_uid, status.st_gid, str(status.st_uid))


def launcher(account: Account | None, *, program: Path, needs: Sequence[Path], death_signal: str = "KILL") -> list[str]:
    """The words to put before `program`'s command line so that it runs as `account` and ends with its parent.

    `needs`: files it must read and directories it must pass through. `death_signal` reaches it when the *thread* that
    starts it ends (Linux ties the parent's death to the thread): start it from one that lives as long as it should.
    Raises MosaicError `unreachable` when the account cannot get at the files.
    """
    setpriv = shutil.which("setpriv", path=f"{CLEAN_ENV['PATH']}:/usr/sbin:/sbin")
    if setpriv is None:
        raise MosaicError("The program `setpriv` (package util-linux) is missing: install it.", code="tools_missing")
    plain = [setpriv, "--no-new-privs", f"--pdeathsig={death_signal}"]
    if account is None:
        return [*plain, "--"]
    plain += [f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
    complaint = ""
    for prefix in ([*plain, "--"], [*plain, *_READ_ANYWHERE, "--"]):
        complaint = _complaint(prefix, program, needs)
        if not complaint:
            return prefix
    raise MosaicError(
        f"The account `{account.name}` cannot reach {program} or {needs[-1]} ({complaint}). Put the project and its "
        "data below directories that others may pass through (chmod o+x), or start Mosaic as an ordinary user.",
        code="unreachable",
    )


def _complaint(prefix: Sequence[str], program: Path, needs: Sequence[Path]) -> str:
    """Why the program would not run behind `prefix`; "" when it would. Asks the kernel instead of reading mode bits."""
    for argv in (["sh", "-c", _PROBE, "sh", *map(str, needs)], [str(program), "--version"]):
        done = subprocess.run(
            [*prefix, *argv], env=CLEAN_ENV, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or ["permission denied"])[-1]
    return ""
