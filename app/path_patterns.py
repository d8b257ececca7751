"""Patterns for paths, with the meaning they have in a .gitignore file.

One rule: when in doubt a path matches. Case, Unicode form, invisible characters and trailing dots make no difference,
since on some disk that the repository is checked out on they make none.
"""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from functools import lru_cache


def folded(path: str) -> str:
    """The path as the most forgiving file system would read it."""
    return "/".join(_folded_part(part) for part in path.replace("\\", "/").split("/"))


def _folded_part(part: str) -> str:
    visible = "".join(
        char for char in unicodedata.normalize("NFKC", part) if unicodedata.category(char) not in ("Cf", "Cc")
    )
    bare = visible.rstrip(". ") or visible  # Windows drops them; "." and ".." stay
    return unicodedata.normalize("NFKC", bare.casefold())


def matches(pattern: str, path: str) -> bool:
    """Whether `pattern` covers `path`: itself, a directory above it, or (see `_holds`) a directory the pattern is in.

    Without a slash, or with one only at the end, a pattern fits at any depth; else from the root. `**` stands for any
    number of directories, `*`, `?` and `[...]` for characters within one name.
    """
    segments = _segments(pattern)
    parts = tuple(part for part in folded(path).split("/") if part)
    return bool(segments) and (_covers(segments, parts) or _holds(segments, parts))


@lru_cache(maxsize=4096)
def _segments(pattern: str) -> tuple[str, ...]:
    body = pattern.strip()
    names = tuple(part for part in folded(body).split("/") if part)
    anywhere = "/" not in body.rstrip("/")
    return ("**", *names) if anywhere and names and names[0] != "**" else names


def _covers(segments: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether the pattern fits a leading piece of the path. `reached`: how many segments are used up, in every way."""
    last = len(segments)
    reached = _skipping(segments, {0})
    for part in parts:
        step = {at for at in reached if at < last and segments[at] == "**"}
        step |= {at + 1 for at in reached if at < last and segments[at] != "**" and _name(segments[at]).fullmatch(part)}
        reached = _skipping(segments, step)
        if last in reached:
            return True
    return False


def _skipping(segments: tuple[str, ...], reached: set[int]) -> set[int]:
    """A `**` may stand for nothing; the last one stands for everything below, and for the directory's own name too."""
    for at in sorted(reached):
        while at < len(segments) and segments[at] == "**":
            at += 1
            reached = reached | {at}
    return reached


def _holds(segments: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether the path is a directory on the way to what is protected: a file or link in its place replaces it."""
    literal = []
    for segment in segments:
        if re.search(r"[*?\[]", segment):
            break
        literal.append(segment)
    return 0 < len(parts) <= len(literal) and len(parts) < len(segments) and list(parts) == literal[: len(parts)]


@lru_cache(maxsize=4096)
def _name(segment: str) -> re.Pattern[str]:
    """One name of a pattern; `fnmatch` makes expressions that do not backtrack from star to star."""
    return re.compile(fnmatch.translate(segment.replace("[^", "[!")))
