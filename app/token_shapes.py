"""Secrets known by their looks or their place: tokens, credentials in addresses and headers, private keys.

One rule: linear in the text, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Shapes of well-known tokens. Repeats are possessive and a start is guarded where a failed try could be a long one, so
# that the time stays linear. A percent-encoded character may stand before a token.
_START = r"(?:(?<![A-Za-z0-9_-])|(?<=%[0-9A-Fa-f]{2}))"
_TOKEN = re.compile(
    r"(?:gta|gtr|gho|ghp|ghu|ghs|ghr)_[A-Za-z0-9]{20,}+[A-Za-z0-9_]*+"
    r"|(?:sk_live|sk_test|rk_live|npm|hf)_[A-Za-z0-9]{20,}+[A-Za-z0-9_]*+"
    r"|mos_[A-Za-z0-9_-]{32,}+"
    r"|whsec_[A-Za-z0-9+/=]{16,}+"
    r"|github_pat_[A-Za-z0-9_]{20,}+"
    rf"|{_START}(?:sk|glpat|gldt|pypi|xox[abeprs]|xapp)-[A-Za-z0-9_-]{{16,}}+"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|AIza[A-Za-z0-9_-]{35}"
    rf"|{_START}eyJ[A-Za-z0-9_-]{{8,}}+\.[A-Za-z0-9_-]{{8,}}+(?:\.[A-Za-z0-9_-]*+)?"
)
# A value after a word that announces a credential.
_ANNOUNCED = re.compile(
    r"(?i)\b(?:authorization|x-api-key|private-token)[\"']?[ \t]*+[:=][ \t]*+[\"']?(?:(?:bearer|basic|token)[ \t]++)?"
    r"(?P<value>[a-z0-9._~+/=-]{8,}+)"
    r"|\bbearer[ \t]++(?P<bearer>[a-z0-9._~+/=-]{16,}+)"
    r"|\btoken[ \t]++(?P<token>[a-z0-9]{32,}+)"
)
_USER_INFO = re.compile(r"://([^\s/@]{1,512}+)@")
_KEY_BEGIN, _KEY_END = "-----BEGIN ", "-----END "
_KEY_REACH = 16_384  # characters of a private key without an end that are masked


def shapes(text: str) -> Iterator[tuple[int, int]]:
    """Tokens known by their looks, credentials in addresses and headers, private keys."""
    yield from (match.span() for match in _TOKEN.finditer(text))
    for match in _USER_INFO.finditer(text):
        if ":" in match[1] or len(match[1]) >= 16:
            yield match.span(1)
    for match in _ANNOUNCED.finditer(text):
        yield match.span(match.lastgroup or 0)
    yield from _private_keys(text)


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    at = text.find(_KEY_BEGIN)
    while at >= 0:
        stop = at + len(_KEY_BEGIN)
        if "PRIVATE KEY" in text[at : at + 64]:
            end = text.find(_KEY_END, at)
            stop = min(at + _KEY_REACH, len(text)) if end < 0 else _end_of_line(text, end)
            yield at, stop
        at = text.find(_KEY_BEGIN, stop)


def _end_of_line(text: str, at: int) -> int:
    newline = text.find("\n", at, at + 64)
    return newline if newline >= 0 else min(at + 64, len(text))


def open_key(text: str) -> int:
    """Where a private key begins whose end has not come yet."""
    at = text.rfind(_KEY_BEGIN)
    unfinished = at >= 0 and len(text) - at < _KEY_REACH
    return at if unfinished and _end_of_key(text, at) is None else len(text)


def _end_of_key(text: str, at: int) -> int | None:
    end = text.find(_KEY_END, at)
    return None if end < 0 or "\n" not in text[end:] else end
