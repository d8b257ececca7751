"""The texts that rules may hold: paths, patterns, names, commands. Each is checked where it is read, and never again.

A validator's message continues after the key: "setup.cache must be a path inside the repository".
"""

from __future__ import annotations

import json
import re
from typing import Annotated

from pydantic import AfterValidator, Field

EXPECT_LIMIT = 200  # characters of an `expect`


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else f"{text[:40]}…", ensure_ascii=False)


def _plain(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds a line break or a character that cannot be seen.")
    return text


def _command(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("is empty. Write the command as you would type it.")
    return text


def _relative(text: str) -> str:
    """A path inside the repository; also the form of a pattern."""
    if (
        text.startswith(("-", "~"))
        or not text.strip("/ ")
        or "\\" in text
        or any(part in (".", "..") for part in text.split("/"))
    ):
        raise ValueError(f"must be a path inside the repository, not {_quoted(text)}.")
    return text


def _below(text: str) -> str:
    if text.startswith("/") or text.lower().split("/")[0] == ".git":
        raise ValueError(f"must be a path inside the repository, not {_quoted(text)}.")
    return text


def _report(text: str) -> str:
    return _below(_relative(_plain(text))) if text else text


def _branch_prefix(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)*[/-]", text) or text.startswith(
        "refs/"
    ):
        raise ValueError('must be letters, digits, - and _, ending in / or -, such as "mosaic/".')
    return text


def _gate_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", text):
        raise ValueError(f'must be at most 40 small letters, digits and -, such as "unit-tests", not {_quoted(text)}.')
    return text


def _repository(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._*?-]+/[A-Za-z0-9._*?-]+", text):
        raise ValueError(f'must hold names of the form "owner/name" or "owner/*", not {_quoted(text)}.')
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError(f"must be an absolute path, not {_quoted(text)}.")
    return text


def _expect(text: str) -> str:
    """A text, or a /regular expression/ that cannot run away on a long output."""
    if len(text) < 2 or not (text.startswith("/") and text.endswith("/")):
        return text
    pattern = text[1:-1]
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is not a regular expression: {error}.") from None
    # Without escapes and [classes], what is left shows the structure.
    shape = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", _kind_of_atom, pattern, flags=re.DOTALL)
    if re.search(r"\)[*+{]|\(\?[^:]|=", shape) or len(re.findall(r"[*+]|\{\d*,", shape)) > 3:
        raise ValueError(
            "may use at most three of * and +, none of them after a group, no back reference and no look-around, "
            "so that it is quick on any output."
        )
    return text


def _kind_of_atom(atom: re.Match[str]) -> str:
    return "=" if re.match(r"\\[1-9]", atom[0]) else "c"  # a back reference, or one character


def _lower(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.lower().removeprefix("@") for name in names)  # Gitea compares logins without regard to case


Text = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_plain)]
Command = Annotated[str, Field(max_length=4000), AfterValidator(_command)]
RelativePath = Annotated[Text, AfterValidator(_relative), AfterValidator(_below)]
Pattern = Annotated[Text, AfterValidator(_relative)]
Repository = Annotated[Text, AfterValidator(_repository)]
AbsolutePath = Annotated[Text, AfterValidator(_absolute)]
Logins = Annotated[tuple[Text, ...], AfterValidator(_lower)]
BranchPrefix = Annotated[str, Field(max_length=40), AfterValidator(_branch_prefix)]
GateName = Annotated[str, AfterValidator(_gate_name)]
Expect = Annotated[str, Field(max_length=EXPECT_LIMIT), AfterValidator(_expect)]
Report = Annotated[str, Field(max_length=200), AfterValidator(_report)]
