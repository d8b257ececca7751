"""Signed markers: how Mosaic finds its own comment again. The MAC covers repository, issue, job and kind, so that a
marker copied elsewhere proves nothing; and a marker counts only in a comment whose author is the bot.
"""

from __future__ import annotations

import hashlib
import hmac


def marker(key: bytes, repository_id: int, number: int, kind: str, owner: str) -> str:
    """The hidden line of a comment. `owner` names what it belongs to, e.g. `job-42` or `delivery-7`."""
    text = f"mosaic.marker.v1|{repository_id}|{number}|{kind}|{owner}"
    mac = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:16]
    return f"<!-- mosaic:{kind}:{owner}:{mac} -->"
