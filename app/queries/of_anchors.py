"""The anchors of the event chains, read."""

from __future__ import annotations

from collections.abc import Iterator

from app.audit_witness import Anchor
from app.models import fetch

_AT_ONCE = 500


def anchors(since: int = 0) -> Iterator[Anchor]:
    """Anchors from that number on, in their order."""
    while rows := fetch(
        "select seq, hash, key, signature, body from audit_anchors where seq >= %s order by seq limit %s",
        since,
        _AT_ONCE,
    ):
        for row in rows:
            yield Anchor(**row)
        since = rows[-1]["seq"] + 1
