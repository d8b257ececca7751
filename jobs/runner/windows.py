"""Reads a list of Gitea's that changes while it is read, so that nothing falls between two pages.

A page by its number skips a line when an earlier one is deleted meanwhile. So a list longer than one page is read in
slices of time, oldest first, each of which fits into one answer; what changes moves to a later slice, never an earlier
one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, Protocol, TypeVar

from app.clients.gitea_lists import Page

log = logging.getLogger("mosaic.reconcile")
SECOND = timedelta(seconds=1)
MOST_ITEMS = 1000  # of one look at one list; the rest comes with the next one
MOST_PAGES = 200  # of one second
_AIM = 40  # items that a slice should hold, of the 50 that fit


class Dated(Protocol):
    @property
    def updated_at(self) -> datetime: ...


T = TypeVar("T", bound=Dated)
Read = Callable[[datetime, "datetime | None", int], Page[T]]  # (since, before, page), both ends included


@dataclass(frozen=True, slots=True)
class Window(Generic[T]):
    """What a look found. `end` = it was read up to this moment only; None = up to the present."""

    items: tuple[T, ...]
    end: datetime | None
    newest: datetime | None
    at: datetime | None  # the forge's clock


def read_window(read: Read[T], since: datetime, most: int = MOST_ITEMS) -> Window[T]:
    """Everything that changed since that moment; at most about `most` items, the oldest ones."""
    first = read(since, None, 1)
    if first.whole:
        return _window(first.items, None, first.at)
    found: list[T] = []
    end: datetime | None = None
    for items, upto in _slices(read, since, first):
        found += items
        if upto is None:
            return _window(tuple(found), None, first.at)
        end = upto
        if len(found) >= most:
            break
    return _window(tuple(found), end, first.at)


def _window(items: tuple[T, ...], end: datetime | None, at: datetime | None) -> Window[T]:
    once = {(getattr(item, "id", None), item.updated_at): item for item in items}
    return Window(tuple(once.values()), end, max((item.updated_at for item in items), default=None), at)


def _slices(read: Read[T], since: datetime, first: Page[T]) -> Iterator[tuple[tuple[T, ...], datetime | None]]:
    """(items, read up to here), oldest slice first; the last one is open: its end is None."""
    present = max([item.updated_at for item in first.items] + ([first.at] if first.at else []))
    start, left = since.astimezone(UTC).replace(microsecond=0), first.total
    while True:
        rest = read(start, None, 1)
        if rest.whole:
            yield rest.items, None
            return
        left = rest.total
        until = _share(start, present, left)
        while not (page := read(start, until, 1)).whole and until > start:
            until = _share(start, until, page.total)
        yield (page.items if page.whole else tuple(_all_pages(read, start, until))), until
        start = until + SECOND
        if start > present:
            yield tuple(_all_pages(read, start, None)), None
            return


def _share(start: datetime, end: datetime, total: int | None) -> datetime:
    """The part of a time in which about `_AIM` of `total` items should lie: shorter than the whole, whole seconds."""
    span = max(int((end - start).total_seconds()) - 1, 0)
    share = _AIM / total if total else 0.5
    return start + min(int(span * min(share, 0.5)), span) * SECOND


def _all_pages(read: Read[T], since: datetime, before: datetime | None) -> Iterator[T]:
    """By page numbers, where a single second holds more than a page, or Gitea says no total."""
    seen = 0
    for page in range(1, MOST_PAGES + 1):
        found = read(since, before, page)
        yield from found.items
        seen += len(found.items)
        if not found.items or (found.total is not None and seen >= found.total):
            return
    log.warning("a list of Gitea's is longer than %s pages within a second; the rest is left out", MOST_PAGES)
