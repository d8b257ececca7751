"""Whom a text mentions, by Gitea's own rule: outside code and link texts, between the right neighbours.

Rule: a mention inside a block quote counts for Gitea.
"""

from __future__ import annotations

import re

from tests.worlds.gitea.state import State, User

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n.*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:\A|\n[ \t]*\n)(?:(?: {4}|\t)[^\n]*(?:\n|\Z))+")
SPAN = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\([^)\n]*\)")
MENTION = re.compile(r"(?:^|(?<=[\s(\[]))@([-\w][-.\w]*?)(?=\s|$|[:,;.?!](?:\s|$)|'|\)|\])")


def stripped(markdown: str) -> str:
    """The text without code and links."""
    text = markdown.replace("\r\n", "\n")
    for pattern in (FENCE, INDENTED, SPAN, LINK):
        text = pattern.sub("\n", text)
    return text


def mentioned(state: State, markdown: str, doer: User) -> set[int]:
    """The ids of the users that a text mentions, without the one who wrote it."""
    names = {match.group(1).lower() for match in MENTION.finditer(stripped(markdown))}
    return {user.id for user in state.users.values() if user.login.lower() in names and user.id != doer.id}
