"""Make text of strangers (agents, gates, users) harmless inside a comment that Mosaic writes.

One rule: it works in one pass over the text, and what it cannot be sure to be code it treats as prose.
Gitea finds mentions and closing references in the Markdown source with code left out, so prose gets character
references (`&#64;`), which show the same and mean nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import takewhile

LIMIT = 60_000  # characters of one comment
_ESCAPE_CODES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]?"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*+(?:\x07|\x1b\\|\x9c)?"  # OSC and other strings
    r"|\x1b[ -/]*+[0-~]?"
)
_UNUSUAL = re.compile(r"[^\t\n -~]+")
# Letters and marks that show nothing although their category says otherwise.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0") | frozenset(
    map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
)
_ENTITIES = {"<": "&lt;", "@": "&#64;", "[": "&#91;", "$": "&#36;", "&": "&amp;", "\\": "&#92;"}
_SPECIAL = re.compile(r"[<@\[$`&#!\\]|~{3,}+|[A-Za-z][A-Za-z0-9+.-]{0,31}+://|(?i:www\.)")
_RUN = re.compile(r"`++")
_ADDRESS_END = re.compile(r"[\s`<>\"|]")


def plain(text: str) -> str:
    """Without terminal codes, control characters, text direction overrides and all else that hides."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _ESCAPE_CODES.sub("", text)
    return _UNUSUAL.sub(lambda run: "".join(map(_shown, run[0])), text)


def hidden(char: str) -> bool:
    """Whether a reader would not see this character, or see the others in another order."""
    return unicodedata.category(char) in ("Cf", "Cc", "Co", "Cn", "Cs") or char in _INVISIBLE


def _shown(char: str) -> str:
    if char in "\u2028\u2029":
        return "\n"
    return "" if hidden(char) else char


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters, mostly from the end, and a line that says how many are missing."""
    if len(text) <= limit:
        return text
    head, tail = limit // 4, limit - limit // 4
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - tail :]}"


def fenced(text: str, limit: int = 20_000) -> str:
    """A code block that the text cannot end: its fence is longer than any run of backticks inside."""
    body = shortened(plain(text), limit).strip("\n")
    fence = "`" * max(3, _longest_run(body) + 1)
    return f"{fence}text\n{body}\n{fence}"


def _longest_run(text: str) -> int:
    return max((end - start for start, end in (run.span() for run in _RUN.finditer(text))), default=0)


def _run_end(text: str, at: int) -> int:
    run = _RUN.match(text, at)
    return run.end() if run else at


def code(text: str) -> str:
    """One line as inline code, whatever backticks it holds."""
    line = " ".join(plain(text).split())
    ticks = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}" if line else "` `"


def neutralise(text: str, limit: int = LIMIT) -> str:
    """Markdown prose that mentions nobody, refers to and closes nothing, loads and links nothing, and hides nothing.

    Headings, lists, emphasis and code stay; HTML becomes visible text, addresses become code, links become text.
    At most `limit` characters come out.
    """
    text = plain(text)
    room = limit
    while len(safe := "\n".join(_blocks(shortened(text, room).split("\n")))) > limit:
        room = room * 3 // 4
    return safe


def _blocks(lines: list[str]) -> Iterator[str]:
    """Prose, and code blocks. A fence counts only in the first column, where no list or quote can end it unseen, and it
    is written anew, longer than any run inside."""
    queue = iter(lines)
    for line in queue:
        run = _run_end(line, 0)
        if run < 3 or "`" in line[run:]:
            yield "".join(_prose(line))
            continue
        body = "\n".join(takewhile(lambda inner, run=run: not _closes(inner, run), queue))  # type: ignore[misc]
        fence = "`" * max(3, _longest_run(body) + 1)
        yield fence + "".join(filter(str.isalnum, line[run:].strip()[:20]))
        yield body
        yield fence


def _closes(line: str, run: int) -> bool:
    bare = line.strip(" \t")
    return len(bare) >= run and not bare.strip("`")


def _prose(line: str) -> Iterator[str]:
    """One line. A run of backticks that no other closes on this line is shown, since it could close on the next one."""
    closers = _closers(line)
    at = 0
    while special := _SPECIAL.search(line, at):
        start, found = special.start(), special[0]
        yield line[at:start]
        at = special.end()
        if found == "`":
            at = _run_end(line, start)
            close = closers.get(start)
            if close is None or "|" in line[start:close]:  # a bar may be the border of a table's cell, inside code too
                yield "&#96;" * (at - start)
            else:
                at = close
                yield line[start:at]
        elif found[0] == "~":
            yield "&#126;" * len(found)
        elif len(found) > 1:
            at = _address_end(line, at)
            yield _apart(line, start, at)
        elif found in "#!":
            after = line[at : at + 1]
            yield f"&#{ord(found)};" if after.isdigit() or (found == "!" and after == "[") else found
        else:
            yield _ENTITIES[found]
    yield line[at:]


def _address_end(line: str, at: int) -> int:
    """Where it ends; punctuation behind it belongs to the sentence."""
    end = _ADDRESS_END.search(line, at)
    stop = end.start() if end else len(line)
    return at + len(line[at:stop].rstrip(".,;:!?)]}'"))


def _apart(line: str, start: int, end: int) -> str:
    """An address as code, kept away from backticks beside it, which would change where the code begins or ends."""
    before = " " if line[:start].endswith("`") else ""
    after = " " if line.startswith("`", end) else ""
    return f"{before}{code(line[start:end])}{after}"


def _closers(line: str) -> dict[int, int]:
    """For each run of backticks that opens a code span, where the span ends: the next run of the same length."""
    runs = [match.span() for match in _RUN.finditer(line)]
    following: dict[int, int] = {}  # length -> end of the nearest run of that length to the right
    closers: dict[int, int] = {}
    for start, end in reversed(runs):
        if end - start in following:
            closers[start] = following[end - start]
        following[end - start] = end
    return closers
