"""Finds where a text mentions the bot in plain prose, at most once a line.

One rule: what a reader sees decides; hidden characters and comments neither make nor hide a mention.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress

from app.markdown import ZERO, blank, is_hidden, normalise, prose, scan, strip_hidden
from app.markdown_inline import SpanKind

_BEFORE = frozenset("([{<>\"'“”‘’«»,;:!?|–—…、。（【「")  # besides white space
_NEVER_AFTER = frozenset("@/\\=+&%$#")
_NAME_GOES_ON = frozenset("-_.'’")  # when a letter or digit follows
_EMPHASIS = frozenset("*_~")


@dataclass(frozen=True, slots=True)
class Mention:
    """A line that mentions the bot, as the author wrote it, without hidden characters and comments."""

    before: str  # on the same line
    after: str  # on the same line
    start: int  # offset of the line in `Mentions.source`
    below: int  # offset of the next line


@dataclass(frozen=True, slots=True)
class Mentions:
    found: tuple[Mention, ...]
    source: str

    def text(self, start: int, end: int) -> str:
        return self.source[start:end].replace(ZERO, "")


def find_mentions(text: str, bot: str) -> Mentions:
    """The mentions of `@bot` in the first 65,536 characters of `text`."""
    raw = normalise(text)
    shown, hidden = strip_hidden(raw)
    if not _name(bot).search(shown):
        return Mentions((), raw)
    # The page is laid out with the hidden characters in place: dropped too early, they could open a code block.
    spans = scan(raw)
    source, seen = blank(raw, spans, (SpanKind.COMMENT,), ZERO), prose(raw, spans)
    if hidden:
        keep = [not is_hidden(char) for char in raw]
        source, seen = "".join(compress(source, keep)), "".join(compress(seen, keep))
    return Mentions(tuple(_lines(source, seen, bot)), source)


def without_mention(words: str, bot: str) -> str:
    """`words` without a mention at their start."""
    match = _name(bot).match(words)
    alone = match and _stands_alone(words, 0, match.end())
    return words[match.end() :].lstrip(" \t:,") if match and alone else words


@lru_cache(maxsize=8)
def _name(bot: str) -> re.Pattern[str]:
    return re.compile("@" + re.escape(bot), re.IGNORECASE | re.ASCII)


def _lines(source: str, visible: str, bot: str) -> list[Mention]:
    lines: list[Mention] = []
    below = 0
    for match in _name(bot).finditer(visible):
        if match.start() < below or not _stands_alone(visible, match.start(), match.end()):
            continue
        start = max(visible.rfind("\n", below, match.start()) + 1, below)
        newline = visible.find("\n", match.end())
        end = len(visible) if newline < 0 else newline
        below = end + 1
        left, right = _through_zero(visible, match.start(), match.end())
        before, after = source[start:left], source[right:end]
        lines.append(Mention(before.replace(ZERO, ""), after.replace(ZERO, ""), start, below))
    return lines


def _through_zero(text: str, start: int, end: int) -> tuple[int, int]:
    """`start` and `end` moved outwards past the tags and comments that touch them."""
    while start > 0 and text[start - 1] == ZERO:
        start -= 1
    while text[end : end + 1] == ZERO:
        end += 1
    return start, end


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether `text[start:end]` is a word of its own; emphasis and what takes no room on the page is looked through."""
    before = start - 1
    while before >= 0 and (text[before] in _EMPHASIS or text[before] == ZERO):
        before -= 1
    if before >= 0 and not (text[before].isspace() or text[before] in _BEFORE):
        return False
    _, end = _through_zero(text, end, end)
    after, then = text[end : end + 1], text[end + 1 : end + 2]
    if after.isalnum() or after in _NEVER_AFTER:
        return False
    return not (after in _NAME_GOES_ON and then.isalnum())
