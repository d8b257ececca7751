"""Compares a whole text with the expected one; what differs from run to run stands between angle brackets there."""

from __future__ import annotations

import difflib
import re
from typing import Any

VARIES = {
    "<time>": r"(?:\d+h \d\dm|\d+m \d\ds|\d+s)",
    "<gate time>": r"(?:\d+h \d\dm|\d+m \d\ds|\d+(?:\.\d)?s)",
    "<spent>": r"\d+(?:\.\d)?[kM]? tokens · \$\d+\.\d\d",
    "<clock>": r"\d\d:\d\d:\d\d",
    "<sha>": r"[0-9a-f]{40}",
    "<short sha>": r"[0-9a-f]{12}",
    "<anything>": r"(?s:.*?)",
}
_MARK = re.compile("|".join(map(re.escape, VARIES)))


def same(actual: str, expected: str) -> None:
    """Fails with a line-by-line difference when `actual` is not `expected`, all of it."""
    pattern, at = "", 0
    for mark in _MARK.finditer(expected):
        pattern += re.escape(expected[at : mark.start()]) + VARIES[mark.group()]
        at = mark.end()
    if re.fullmatch(pattern + re.escape(expected[at:]), actual) is None:
        lines = difflib.ndiff(expected.splitlines(), actual.splitlines())
        raise AssertionError("the text differs (- expected, + found):\n" + "\n".join(lines))


def link(base_url: str, job: dict[str, Any]) -> str:
    """How a comment names a job."""
    return f"[job {job['id']}]({base_url}/jobs/{job['id']})"
