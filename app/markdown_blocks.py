"""The blocks of a Markdown text: containers, code blocks, quotes, and the paragraphs that are left.

One rule: one pass over the lines, and what a line opens is known from the line itself and the state before it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum

from app.markdown_inline import SpanKind


class _Block(StrEnum):
    """What the line before left open."""

    NONE = "none"
    PARAGRAPH = "paragraph"
    QUOTE = "quote"  # a quote whose last line is a paragraph: unmarked lines below still belong to it
    INDENTED = "indented"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece `text[start:end]` that is not plain prose."""

    start: int
    end: int
    kind: SpanKind


_FENCE = re.compile(r"(`{3,})[^`\n]*$|(~{3,})")
_LIST_ITEM = re.compile(r"([-+*]|\d{1,9}[.)])([ \t]+|$)")
_HEADING = re.compile(r"#{1,6}(?:[ \t]|$)")
_RULE = re.compile(r"(?:(?:\*[ \t]*+){3,}+|(?:_[ \t]*+){3,}+|(?:-[ \t]*+){3,}+)$")
_UNDERLINE = re.compile(r"(?:=+|-+)[ \t]*$")  # makes the paragraph above it a heading
_RAW_OPEN = re.compile(r"<(?:pre|script|style|textarea)(?=[\s>]|$)", re.IGNORECASE | re.ASCII)
_RAW_CLOSE = re.compile(r"</(?:pre|script|style|textarea)>", re.IGNORECASE | re.ASCII)
_DEFINITION = re.compile(r"\[([^\[\]\n]{1,999})\]:[ \t]*(\S*)")
_QUOTE_MARKS = re.compile(r"(?:[ \t]{0,3}>[ \t]?)+")


class Blocks:
    """One pass over the lines: containers, code blocks, quotes; what is left becomes segments for the inline pass."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.spans: list[Span] = []
        self.segments: list[tuple[int, int]] = []
        self.definitions: list[tuple[str, Span]] = []  # normalised label, place
        self._items: list[int] = []  # content columns of the open list items
        self._state = _Block.NONE
        self._fence = ""  # the open fence, e.g. "```"
        self._quote_fence = ""  # the same inside a block quote
        self._segment: int | None = None  # where the open paragraph starts
        self._definition = ""  # the label of the definition on the line before, whose title may follow

    def run(self) -> None:
        at = 0
        while at < len(self.text):
            end = self.text.find("\n", at)
            end = len(self.text) if end < 0 else end
            at = self._line(at, end)
        self._close(len(self.text))

    def _line(self, start: int, end: int) -> int:
        """Handle one line; where the next one starts (further down when a raw block was skipped)."""
        column, at = self._indent(start, end)
        if at == end:
            self._blank_line(start, end)
            return end + 1
        if self._fence and column >= (self._items[-1] if self._items else 0):
            self._inside_fence(start, at, end)
            return end + 1
        self._fence = ""
        return self._outside_fence(start, at, end, column)

    def _indent(self, start: int, end: int) -> tuple[int, int]:
        """The column and the offset of the first character of a line that is not a space or tab."""
        column, at = 0, start
        while at < end and self.text[at] in " \t":
            column += 4 - column % 4 if self.text[at] == "\t" else 1
            at += 1
        return column, at

    def _blank_line(self, start: int, end: int) -> None:
        self._definition = ""
        self._quote_fence = ""
        if self._fence:
            self._add(start, end, SpanKind.CODE)
            return
        self._close(start)
        if self._state is not _Block.INDENTED:
            self._state = _Block.NONE

    def _close(self, at: int) -> None:
        """End the open paragraph before `at`."""
        if self._segment is not None:
            self.segments.append((self._segment, at))
        self._segment = None

    def _add(self, start: int, end: int, kind: SpanKind) -> None:
        self.spans.append(Span(start, end, kind))

    def _inside_fence(self, start: int, at: int, end: int) -> None:
        self._add(start, end, SpanKind.CODE)
        line = self.text[at:end].rstrip(" \t")
        if len(line) >= len(self._fence) and line == self._fence[0] * len(line):
            self._fence = ""
            self._state = _Block.NONE

    def _outside_fence(self, start: int, at: int, end: int, column: int) -> int:
        open_block = self._state in (_Block.PARAGRAPH, _Block.QUOTE)
        lazy = open_block and not self._starts_block(at, end, column)
        if not lazy:
            while self._items and column < self._items[-1]:
                self._items.pop()
        relative = column - (self._items[-1] if self._items else 0)
        if relative >= 4 and not open_block:
            self._code_line(start, end)
            return end + 1
        return self._content(start, at, end, column, lazy)

    def _code_line(self, start: int, end: int) -> None:
        self._close(start)
        self._state = _Block.INDENTED
        self._add(start, end, SpanKind.CODE)

    def _starts_block(self, at: int, end: int, column: int) -> bool:
        """Whether the text at `at` opens a block of its own instead of going on with the paragraph above."""
        inside = bisect_right(self._items, column)
        if column - (self._items[inside - 1] if inside else 0) >= 4:
            return False
        line = self.text[at:end]
        if line[0] == ">" or _FENCE.match(line) or _HEADING.match(line) or _RULE.match(line):
            return True
        if line.startswith("<!--") or _RAW_OPEN.match(line):
            return True
        if self._state is _Block.PARAGRAPH and _UNDERLINE.match(line):
            return True
        item = _LIST_ITEM.match(line)
        if item is None:
            return False
        sibling = bool(self._items) and column < self._items[-1]
        return sibling or (item[1] in ("-", "+", "*", "1.", "1)") and item.end() < len(line))

    def _content(self, start: int, at: int, end: int, column: int, lazy: bool) -> int:
        """The line below its list markers."""
        while not lazy and at < end:
            item = None if self._is_rule(at, end) else _LIST_ITEM.match(self.text, at, end)
            if item is None:
                break
            self._close(start)
            self._state = _Block.NONE
            start, at, column = self._enter_item(item, at, end, column)
        if at == end:
            return end + 1
        if self._items and column - self._items[-1] >= 4 and not lazy and self._state is _Block.NONE:
            self._code_line(start, end)
            return end + 1
        return self._leaf(start, at, end, lazy)

    def _is_rule(self, at: int, end: int) -> bool:
        underline = self._state is _Block.PARAGRAPH and _UNDERLINE.match(self.text, at, end)
        return bool(underline or _RULE.match(self.text, at, end))

    def _enter_item(self, item: re.Match[str], at: int, end: int, column: int) -> tuple[int, int, int]:
        marker = column + len(item[1])
        after = at + len(item[1])
        width, content = self._indent(after, end)
        self._items.append(marker + (width if 1 <= width <= 4 else 1))
        return after, content, marker + width

    def _leaf(self, start: int, at: int, end: int, lazy: bool) -> int:
        if not lazy:
            if self.text[at] == ">":
                self._quote_line(start, at, end)
                return end + 1
            fence = _FENCE.match(self.text, at, end)
            if fence:
                self._open_fence(start, end, fence[1] or fence[2])
                return end + 1
            raw = self._raw_block(start, at)
            if raw is not None:
                return raw
            if self._state is not _Block.PARAGRAPH and self._definition_line(start, at, end):
                return end + 1
        return self._text_line(start, at, end, lazy)

    def _open_fence(self, start: int, end: int, marks: str) -> None:
        self._close(start)
        self._fence = marks
        self._state = _Block.NONE
        self._add(start, end, SpanKind.CODE)

    def _quote_line(self, start: int, at: int, end: int) -> None:
        self._close(start)
        self._add(start, end, SpanKind.QUOTE)
        marks = _QUOTE_MARKS.match(self.text, at, end)
        content = self.text[marks.end() if marks else at : end]
        line = content.strip(" \t")
        fence = _FENCE.match(line)
        if self._quote_fence:
            if line.startswith(self._quote_fence):
                self._quote_fence = ""
            self._state = _Block.NONE
            return
        self._quote_fence = (fence[1] or fence[2]) if fence else ""
        coded = self._state is not _Block.QUOTE and content.startswith(("    ", "\t"))
        apart = fence or coded or _HEADING.match(line) or _RULE.match(line) or _DEFINITION.match(line)
        plain = line and not apart
        self._state = _Block.QUOTE if plain else _Block.NONE

    def _raw_block(self, start: int, at: int) -> int | None:
        """Skip an HTML comment or a raw element that starts a line; None when there is none."""
        if self.text.startswith("<!--", at):
            close = self.text.find("-->", at + 2)
            stop = len(self.text) if close < 0 else close + 3
            kind = SpanKind.COMMENT
        elif _RAW_OPEN.match(self.text, at):
            ending = _RAW_CLOSE.search(self.text, at)
            stop = ending.end() if ending else len(self.text)
            kind = SpanKind.CODE
        else:
            return None
        self._close(start)
        self._state = _Block.NONE
        self._add(at, stop, kind)
        return self._after_raw(stop)

    def _after_raw(self, stop: int) -> int:
        """The rest of the line on which a raw block ends is shown as text: a segment of its own."""
        end = self.text.find("\n", stop)
        end = len(self.text) if end < 0 else end
        if stop < end:
            self.segments.append((stop, end))
        return end + 1

    def _definition_line(self, start: int, at: int, end: int) -> bool:
        """A link definition (`[label]: url "title"`), or the line on which its title or address follows."""
        match = _DEFINITION.match(self.text, at, end)
        label = " ".join(match[1].casefold().split()) if match else ""
        if not label and self._definition and self._is_title(at, end):
            label, self._definition = self._definition, ""
        elif label and not label.startswith("^"):
            self._definition = label
        else:
            self._definition = ""
            return False
        self.definitions.append((label, Span(start, end, SpanKind.DEFINITION)))
        return True

    def _is_title(self, at: int, end: int) -> bool:
        closing = {'"': '"', "'": "'", "(": ")", "<": ">"}.get(self.text[at])
        line = self.text[at:end].rstrip(" \t")
        return len(line) > 1 and line[-1] == closing

    def _text_line(self, start: int, at: int, end: int, lazy: bool) -> int:
        if lazy and self._state is _Block.QUOTE:
            self._add(start, end, SpanKind.QUOTE)
            return end + 1
        alone = not lazy and bool(_HEADING.match(self.text, at, end) or self._is_rule(at, end))
        if alone or self._segment is None:
            self._close(start)
            self._segment = start
        self._state = _Block.NONE if alone else _Block.PARAGRAPH
        if alone:
            self._close(end)
        return end + 1
