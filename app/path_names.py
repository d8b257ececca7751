"""Names of files that git, a shell, a terminal or another system could take for something else.

One rule: it looks at the name alone; a name that cannot be read for certain is odd.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from app.neutral import hidden
from app.path_patterns import folded

_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789\u00b9\u00b2\u00b3"
}


def shown(path: str) -> str:
    """A path as it may stand in a message: what cannot be seen is spelt out."""
    return "".join(f"\\u{{{ord(char):x}}}" if not _plain(char) or char == "`" else char for char in path[:300])


def _plain(char: str) -> bool:
    """Visible, or the ordinary space."""
    return char.isprintable() and not hidden(char)


def odd_name(path: str) -> Iterator[str]:
    """Each reason why this path must not be brought into a repository; none for an ordinary one."""
    if not path or path.startswith("/") or len(path.encode("utf-8", "surrogatepass")) > 1024:
        yield "it is empty, absolute or longer than 1024 bytes"
    if any("\udc80" <= char <= "\udcff" for char in path):
        yield "it is not valid UTF-8"
    elif not all(map(_plain, path)):
        yield "it holds control, direction, invisible or unusual space characters"
    if "\\" in path:
        yield "it holds a backslash"
    yield from {why: None for part in path.split("/") for why in _odd_part(part)}


def _odd_part(part: str) -> Iterator[str]:
    plain = folded(part)
    if part in ("", ".", ".."):
        yield "it holds an empty part, `.` or `..`"
    elif part[-1] in ". " or part[0] == " ":
        yield "a part of it begins with a space or ends with a dot or space"
    if part.startswith("-"):
        yield "a part of it begins with `-` and would be taken for an option"
    if _is_git(plain):
        yield "a part of it can be taken for `.git`"
    if plain.partition(".")[0].partition(":")[0].rstrip(" ") in _DEVICES:
        yield "a part of it is a device name on Windows"
    if len(part.encode("utf-8", "surrogatepass")) > 255:
        yield "a part of it is longer than 255 bytes"


def _is_git(plain: str) -> bool:
    """`.git`, its NTFS stream and short forms (`GIT~1`), and the short forms of .gitmodules and .gitattributes."""
    name = plain.partition(":")[0].rstrip(". ")
    return (
        name == ".git"
        or re.fullmatch(r"(?:git|gitmod|gitatt|gi7eba|gi7d29|gitign|gi250a)[0-9a-f]*~[0-9]+", name) is not None
    )
