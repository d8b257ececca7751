"""Code spans, tags, links and images inside one paragraph of Markdown.

One rule: a failed search is remembered, so that no character is looked at more than a few times.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from enum import StrEnum


class SpanKind(StrEnum):
    CODE = "code"
    QUOTE = "quote"
    LINK = "link"
    IMAGE = "image"
    TAG = "tag"
    COMMENT = "comment"
    DEFINITION = "definition"


Found = tuple[int, int, SpanKind]

_SPECIAL = re.compile(r"[\\`<\[\]]|(?:https?|ftp)://|www\.|mailto:", re.IGNORECASE | re.ASCII)
_TICKS = re.compile(r"`+")
_ADDRESS = re.compile(r"[^\s<>\[\]`]*+")
_AUTOLINK = re.compile(
    r"<(?:[A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>]*+|[\w.!#$%&'*+/=?^`{|}~-]++@[A-Za-z0-9.-]++)>", re.ASCII
)
_TAG = re.compile(
    r"<(/?)([A-Za-z][A-Za-z0-9-]*+)"
    r"(?:\s++[A-Za-z_:][\w:.-]*+(?:\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s\"'=<>`]++))?+)*+\s*+(/?)>",
    re.ASCII,
)
_LABEL = re.compile(r"\[((?:[^\[\]\\]|\\.)*+)\]", re.DOTALL)
_PARENS = re.compile(r"[()\\]")
_SPACES = re.compile(r"\s+", re.ASCII)
# What these elements hold is shown as code, as a quotation or as a link.
_ENCLOSING = {
    "code": SpanKind.CODE,
    "pre": SpanKind.CODE,
    "kbd": SpanKind.CODE,
    "samp": SpanKind.CODE,
    "tt": SpanKind.CODE,
    "blockquote": SpanKind.QUOTE,
    "q": SpanKind.QUOTE,
    "a": SpanKind.LINK,
    "picture": SpanKind.IMAGE,
}


class Inline:
    """Scans the segments of one text, in order; the results gather in `found`."""

    def __init__(self, text: str, labels: frozenset[str]) -> None:
        self.text = text
        self.labels = labels  # of the link definitions, normalised
        self.used: set[str] = set()  # labels that a link refers to
        self.found: list[Found] = []
        self._elements: dict[str, list[int]] = {}  # starts of the open elements by name

    def run(self, start: int, end: int) -> None:
        """Scan one paragraph `text[start:end]`."""
        _Paragraph(self, start, end).run()

    def tag(self, start: int, end: int, name: str, closing: bool) -> None:
        """Note a tag, and the whole element once it closes."""
        self.found.append((start, end, SpanKind.TAG))
        kind = _ENCLOSING.get(name)
        if kind is None:
            return
        opened = self._elements.setdefault(name, [])
        if not closing:
            opened.append(start)
        elif opened:
            first = opened.pop()
            if not opened:
                self.found.append((first, end, kind))


class _Paragraph:
    def __init__(self, owner: Inline, start: int, end: int) -> None:
        self.owner = owner
        self.text = owner.text
        self.start, self.end = start, end
        self._brackets: list[tuple[int, bool]] = []  # offset, image
        self._inactive = 0  # openers below this depth cannot start a link any more
        self._ticks: dict[int, list[int]] | None = None
        self._parens: dict[int, int] | None = None
        self._spaces: list[int] | None = None  # starts and ends of the runs of white space, in turn
        self._last: dict[str, int] = {}  # the last place of each quotation mark
        self._comments = True  # a "-->" may still follow

    def run(self) -> None:
        at = self.start
        while match := _SPECIAL.search(self.text, at, self.end):
            at = self._special(match)

    def _special(self, match: re.Match[str]) -> int:
        """Handle one special piece; where to go on."""
        at, piece = match.start(), match[0]
        if piece == "\\":
            return self._escaped(at)
        if piece == "`":
            return self._code(at)
        if piece == "<":
            return self._angle(at)
        if piece == "[":
            image = at > self.start and self.text[at - 1] == "!" and not self._is_escaped_bang(at)
            self._brackets.append((at - image, image))
            return at + 1
        if piece == "]":
            return self._close_bracket(at)
        address = _ADDRESS.match(self.text, at, self.end)
        stop = address.end() if address else match.end()
        self._add(at, stop, SpanKind.LINK)
        return stop

    def _escaped(self, at: int) -> int:
        """A backslash takes the special meaning of the ASCII punctuation after it, a letter keeps its own."""
        follows = self.text[at + 1 : at + 2]
        return at + 2 if follows in "\\`<[]!" else at + 1

    def _is_escaped_bang(self, at: int) -> bool:
        return self.text[at - 2 : at - 1] == "\\" and at - 2 >= self.start

    def _add(self, start: int, end: int, kind: SpanKind) -> None:
        self.owner.found.append((start, end, kind))

    def _code(self, at: int) -> int:
        run = _TICKS.match(self.text, at, self.end)
        stop = run.end() if run else at + 1
        close = self._closing_ticks(stop - at, stop)
        if close is None:
            return stop
        self._add(at, close + stop - at, SpanKind.CODE)
        return close + stop - at

    def _closing_ticks(self, length: int, after: int) -> int | None:
        """Where the next run of exactly `length` backticks starts."""
        if self._ticks is None:
            self._ticks = {}
            for run in _TICKS.finditer(self.text, self.start, self.end):
                self._ticks.setdefault(len(run[0]), []).append(run.start())
        starts = self._ticks.get(length, [])
        index = bisect_left(starts, after)
        return starts[index] if index < len(starts) else None

    def _angle(self, at: int) -> int:
        if self.text.startswith("<!--", at) and self._comments:
            close = self.text.find("-->", at + 2, self.end)
            if close >= 0:
                self._add(at, close + 3, SpanKind.COMMENT)
                return close + 3
            self._comments = False
        link = _AUTOLINK.match(self.text, at, self.end)
        if link:
            self._add(at, link.end(), SpanKind.LINK)
            return link.end()
        tag = _TAG.match(self.text, at, self.end)
        if tag:
            self.owner.tag(at, tag.end(), tag[2].lower(), bool(tag[1]))
            return tag.end()
        return at + 1

    def _close_bracket(self, at: int) -> int:
        if not self._brackets:
            return at + 1
        start, image = self._brackets.pop()
        active = image or len(self._brackets) >= self._inactive
        self._inactive = min(self._inactive, len(self._brackets))
        stop = self._link_end(start + 1 + image, at) if active else None
        if stop is None:
            return at + 1
        if not image:
            self._inactive = len(self._brackets)
        self._add(start, stop, SpanKind.IMAGE if image else SpanKind.LINK)
        return stop

    def _link_end(self, inner: int, close: int) -> int | None:
        """Where the link whose text is `text[inner:close]` ends; None when it is not a link."""
        follows = self.text[close + 1 : close + 2] if close + 1 < self.end else ""
        if follows == "(":
            stop = self._target_end(close + 1)
            if stop is not None:
                return stop
        if not self.owner.labels:
            return None
        label = _LABEL.match(self.text, close + 1, self.end) if follows == "[" else None
        if label and label[1].strip():
            return label.end() if self._defined(label[1]) else None
        short = _LABEL.match(self.text, inner - 1, close + 1)
        if short and short.end() == close + 1 and self._defined(short[1]):
            return label.end() if label else close + 1
        return None

    def _defined(self, label: str) -> bool:
        name = " ".join(label.casefold().split()) if len(label) <= 999 else ""
        if name not in self.owner.labels:
            return False
        self.owner.used.add(name)
        return True

    def _target_end(self, paren: int) -> int | None:
        """Where `(address "title")` at `paren` ends; None when it is not the target of a link."""
        close = self._closing_paren(paren)
        if close is None:
            return None
        at = self._skip_spaces(paren + 1)
        gap = self._next_space(at)
        if self.text[at : at + 1] == "<" or gap >= close:
            return close + 1
        title = self._skip_spaces(gap)
        mark = self.text[title : title + 1]
        if mark in ('"', "'"):
            return self._title_end(title, mark)
        return close + 1 if title >= close or mark == "(" else None

    def _title_end(self, title: int, mark: str) -> int | None:
        if mark not in self._last:
            self._last[mark] = self.text.rfind(mark, self.start, self.end)
        if self._last[mark] <= title:
            return None
        ending = self.text.find(mark, title + 1, self.end)
        after = self._skip_spaces(ending + 1)
        return after + 1 if after < self.end and self.text[after] == ")" else None

    def _closing_paren(self, paren: int) -> int | None:
        if self._parens is None:
            self._parens = _matching_parens(self.text, self.start, self.end)
        return self._parens.get(paren)

    def _skip_spaces(self, at: int) -> int:
        """The first place from `at` on that is not white space."""
        edges = self._space_edges()
        index = bisect_right(edges, at)
        return edges[index] if index % 2 else at

    def _next_space(self, at: int) -> int:
        """The first place from `at` on that is white space, or the end."""
        edges = self._space_edges()
        index = bisect_right(edges, at)
        if index % 2:
            return at
        return edges[index] if index < len(edges) else self.end

    def _space_edges(self) -> list[int]:
        if self._spaces is None:
            runs = _SPACES.finditer(self.text, self.start, self.end)
            self._spaces = [edge for run in runs for edge in run.span()]
        return self._spaces


def _matching_parens(text: str, start: int, end: int) -> dict[int, int]:
    """Offset of each opening parenthesis → offset of the one that closes it."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    at = start
    while match := _PARENS.search(text, at, end):
        at = match.end() + (match[0] == "\\")
        if match[0] == "(":
            opened.append(match.start())
        elif match[0] == ")" and opened:
            pairs[opened.pop()] = match.start()
    return pairs
