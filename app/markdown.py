"""Which parts of a Markdown text a reader sees as plain prose.

One rule: every function takes time linear in the text and never raises, whatever the text holds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import lru_cache

from app.markdown_blocks import Blocks, Span
from app.markdown_inline import Inline, SpanKind
from app.neutral import hidden

LIMIT = 65_536  # characters of a text that are looked at; the rest is cut off
_UNUSUAL = re.compile(r"[^\t\n\r\x20-\x7e]")


def normalise(text: str) -> str:
    """`text` cut at LIMIT, with every Markdown line ending (CRLF, CR) turned into LF."""
    return text[:LIMIT].replace("\r\n", "\n").replace("\r", "\n")


@lru_cache(maxsize=4096)
def is_hidden(char: str) -> bool:
    """Whether a reader cannot see `char`; tabs and line ends are seen."""
    return char not in "\t\n\r" and hidden(char)


def strip_hidden(text: str) -> tuple[str, int]:
    """`text` without the characters that a reader cannot see, and how many there were."""
    if not _UNUSUAL.search(text):
        return text, 0
    shown = "".join(char for char in text if not is_hidden(char))
    return shown, len(text) - len(shown)


def scan(text: str) -> list[Span]:
    """The spans of a normalised `text` that are code, quotes, links, images, tags, comments or link definitions.

    A link definition that no link uses is a COMMENT: it is another way to write what nobody sees.
    Spans are sorted by start; they may overlap (a link inside an HTML block quote).
    """
    blocks = Blocks(text)
    blocks.run()
    inline = Inline(text, frozenset(label for label, _ in blocks.definitions))
    for start, end in blocks.segments:
        inline.run(start, end)
    found = [*blocks.spans, *(Span(*piece) for piece in inline.found)]
    for label, span in blocks.definitions:
        found.append(span if label in inline.used else replace(span, kind=SpanKind.COMMENT))
    return sorted(found, key=lambda span: (span.start, span.end))


def blank(text: str, spans: Iterable[Span], kinds: Collection[SpanKind], fill: str) -> str:
    """`text` of the same length, with the spans of these kinds overwritten by `fill`; line ends stay."""
    pieces: list[str] = []
    done = 0
    for span in spans:
        if span.kind not in kinds or span.end <= done:
            continue
        start = max(span.start, done)
        pieces += text[done:start], _overwrite(text[start : span.end], fill)
        done = span.end
    return "".join([*pieces, text[done:]])


def _overwrite(piece: str, fill: str) -> str:
    return "\n".join(fill * len(line) for line in piece.split("\n"))


ZERO = "\0"  # stands for what takes no room on the page: comments and tags
BLOCK = "\ufffc"  # stands for what a reader sees as something else: code, links, quotes


def prose(text: str, spans: Iterable[Span] | None = None) -> str:
    """`text` of the same length: ZERO over comments and tags, BLOCK over code, quotes, links and images."""
    found = scan(text) if spans is None else list(spans)
    invisible = (SpanKind.COMMENT, SpanKind.TAG)
    opaque = [kind for kind in SpanKind if kind not in invisible]
    return blank(blank(text, found, invisible, ZERO), found, opaque, BLOCK)
