"""Which names of branches and repositories are accepted: one place, so that none becomes an option or a path."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9/_.-]{0,199}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def branch_name_ok(name: str) -> bool:
    """True for a branch name that is safe in argv, in a refspec and in a URL.

    Stricter than `git check-ref-format`, which lets `refs/heads/--upload-pack=x` pass: the name starts with a letter
    or digit and holds only letters, digits and `/ _ . -`; no `..`, no `//`, no part that starts or ends with a dot or
    ends in `.lock`, no slash at the end, at most 200 characters.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        return False
    return all(part and not part.startswith(".") and not part.endswith((".", ".lock")) for part in name.split("/"))


def repo_name_ok(full_name: str) -> bool:
    """True for `owner/name`: each part starts with a letter or digit, holds at most 100 of letters, digits, `_ . -`,
    has no `..`, and does not end in `.`, `.lock`, `.git` or `.wiki`.
    """
    parts = full_name.split("/")
    return len(parts) == 2 and all(_PART.fullmatch(part) and not _odd(part) for part in parts)


def sha_ok(sha: str) -> bool:
    """True for a full lower-case object id: 40 (SHA-1) or 64 (SHA-256) hex digits."""
    return _SHA.fullmatch(sha) is not None


def _odd(part: str) -> bool:
    return ".." in part or part.endswith((".", ".lock", ".git", ".wiki"))
