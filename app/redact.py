"""Keep secrets out of everything that is stored or sent.

One rule: it is a seat belt. A secret that must not leak is kept out of the process; here we catch what slipped through.
Caught: a registered secret (8 characters or more) raw and in its usual encodings, also when spread over white space or
invisible characters, and anything that has the shape of a well-known token. Not caught: compression, a second layer of
base64, XOR, a secret split over two texts.
"""

from __future__ import annotations

import base64
import codecs
import html
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

MASK = "[redacted]"
SHORTEST = 8  # a shorter secret would mask ordinary words
_LONG = 256  # longer secrets (keys, certificates) get no variants that multiply their length
_DEPTH = 64  # of nested JSON
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")  # keeps every index, unlike lower()
# White space and characters that show nothing: a secret written with these between its letters is still found.
_GAP = re.compile(
    r"[\s\u00ad\u034f\u061c\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]+"
)
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

Spans = list[tuple[int, int]]


def variants(secret: str) -> tuple[set[str], set[str]]:
    """The forms in which a secret is looked for: as written, and those whose case does not matter (in lower case)."""
    raw = secret.encode("utf-8", "surrogatepass")
    exact = {secret, secret[::-1], html.escape(secret), *_for_addresses(secret)}
    exact |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    exact |= set(_base64(raw))
    folded = {raw.hex(), *_base32(raw)}
    if len(secret) <= _LONG:
        exact |= {codecs.encode(secret, "rot13"), "".join(f"&#{ord(char)};" for char in secret)}
        folded |= {"".join(f"{lead}{byte:02x}" for byte in raw) for lead in ("%", "\\x")}
        folded |= {"".join(f"&#x{ord(char):x};" for char in secret), ":".join(f"{byte:02x}" for byte in raw)}
    return _sought(exact), {form.translate(_LOWER) for form in _sought(folded)}


def _for_addresses(secret: str) -> Iterator[str]:
    for safe in ("", "/"):
        yield urllib.parse.quote(secret, safe, errors="replace")
        yield urllib.parse.quote_plus(secret, safe, errors="replace")


def _sought(forms: Iterable[str]) -> set[str]:
    """As they stand in a text without gaps; what has become too short would match by chance."""
    return {bare for form in forms if len(bare := _GAP.sub("", form)) >= SHORTEST}


def _base64(raw: bytes) -> Iterator[str]:
    """The characters that depend on the secret alone, for each of the three places it can have in a longer text."""
    for before in range(3):
        padded = bytes(before) + raw
        first = -(-before * 8 // 6)
        last = len(padded) * 8 // 6
        for encoded in (base64.b64encode(padded), base64.urlsafe_b64encode(padded)):
            yield encoded.decode()[first:last]


def _base32(raw: bytes) -> Iterator[str]:
    for before in range(5):
        padded = bytes(before) + raw
        yield base64.b32encode(padded).decode()[-(-before * 8 // 5) : len(padded) * 8 // 5].lower()


class Redactor:
    """Replaces secrets by `[redacted]`. `secrets`: the registered ones; those below 8 characters are left out."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        exact: set[str] = set()
        folded: set[str] = set()
        for secret in {part for given in secrets for part in _parts(given) if len(part) >= SHORTEST}:
            plain, lower = variants(secret)
            exact |= plain
            folded |= lower
        self._exact = sorted(exact, key=lambda form: (-len(form), form))
        self._folded = sorted(folded, key=lambda form: (-len(form), form))
        self.reach = max(map(len, [*self._exact, *self._folded]), default=0)

    def text(self, text: str) -> str:
        """The text without secrets, in time linear in its length."""
        return _masked(text, self.spans(text))

    def value(self, value: Any, depth: int = 0) -> Any:
        """JSON-like data with every string redacted, keys too; nested deeper than 64 it is replaced as a whole."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            return self.text(value.decode("utf-8", "replace"))
        if depth >= _DEPTH and isinstance(value, dict | list | tuple | set | frozenset):
            return MASK
        if isinstance(value, dict):
            return {self.value(key, depth + 1): self.value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item, depth + 1) for item in value]
        return value

    def spans(self, text: str) -> Spans:
        """Where secrets stand: sorted, not overlapping."""
        return _joined([*self._registered(text), *_shapes(text)])

    def _registered(self, text: str) -> Iterator[tuple[int, int]]:
        if not self.reach:
            return
        bare = _GAP.sub("", text)
        found = [*_all(bare, self._exact), *_all(bare.translate(_LOWER), self._folded)]
        if not found:
            return
        where = _origins(text) if len(bare) != len(text) else range(len(text))
        for start, end in found:
            yield where[start], where[end - 1] + 1


def _parts(secret: str) -> Iterator[str]:
    """A secret of many lines also leaks line by line."""
    yield secret.strip()
    lines = secret.split("\n")
    if len(lines) > 1:
        yield from (line.strip() for line in lines if len(line.strip()) >= 16 and not line.startswith("-----"))


def _origins(text: str) -> list[int]:
    """For each character that `_GAP` leaves, its place in the text."""
    where: list[int] = []
    at = 0
    for gap in _GAP.finditer(text):
        where.extend(range(at, gap.start()))
        at = gap.end()
    where.extend(range(at, len(text)))
    return where


def _all(text: str, needles: Iterable[str]) -> Iterator[tuple[int, int]]:
    for needle in needles:
        at = text.find(needle)
        while at >= 0:
            yield at, at + len(needle)
            at = text.find(needle, at + len(needle))


def _shapes(text: str) -> Iterator[tuple[int, int]]:
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


def _joined(spans: Spans) -> Spans:
    joined: Spans = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _masked(text: str, spans: Spans) -> str:
    parts: list[str] = []
    at = 0
    for start, end in spans:
        parts += (text[at:start], MASK)
        at = end
    return "".join([*parts, text[at:]]) if spans else text


class Stream:
    """Redacts a text that comes in pieces: what could be the start of a secret is held back until more is known."""

    _LINE = 512  # an unfinished line is held back up to here
    _CONTEXT = 64  # the word that announces a credential
    _OPEN = 4096  # and an unfinished word up to here; a token that is longer is masked before its end is known

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""
        self._swallow = False  # in the rest of such a token

    def feed(self, piece: str) -> str:
        """What may be shown now of all that came so far."""
        self._held += self._swallowed(piece)
        spans = self._redactor.spans(self._held)
        cut = self._decided(spans)
        shown = _masked(self._held[:cut], [span for span in spans if span[0] < cut])
        self._held = self._held[cut:]
        return shown

    def close(self) -> str:
        """The rest."""
        rest, self._held = self._redactor.text(self._held), ""
        return rest

    def _swallowed(self, piece: str) -> str:
        if not self._swallow:
            return piece
        rest = piece.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~+/=-")
        self._swallow = not rest
        return rest

    def _decided(self, spans: Spans) -> int:
        """How much of what is held may go: nothing before it changes whatever comes."""
        text = self._held
        key = _open_key(text)
        cut = min(
            key,
            _visible_from_end(text, self._redactor.reach),
            _after_last(text, "\n", self._LINE),
            _after_last(text, " \t\n", self._OPEN),
        )
        for start, end in spans:
            if end == key == len(text) and end - start > self._OPEN:
                self._swallow = True
                return end
            if end == len(text):  # it may go on, and it may be one only for the word before it
                return min(cut, max(0, start - self._CONTEXT))
            if start < cut < end:
                return end
        return cut


def _visible_from_end(text: str, wanted: int) -> int:
    """Where the last `wanted` visible characters begin; white space stretches them over eight times that at most."""
    if not wanted:
        return len(text)
    tail = text[-8 * wanted :]
    where = _origins(tail)
    return len(text) - len(tail) + (where[-wanted] if len(where) > wanted else 0)


def _after_last(text: str, chars: str, limit: int) -> int:
    """Where what follows the last of `chars` begins, at most `limit` from the end."""
    at = max(0, len(text) - limit)
    return max(at, *(text.rfind(char, at) + 1 for char in chars))


def _open_key(text: str) -> int:
    """Where a private key begins whose end has not come yet."""
    at = text.rfind(_KEY_BEGIN)
    unfinished = at >= 0 and len(text) - at < _KEY_REACH
    return at if unfinished and _end_of_key(text, at) is None else len(text)


def _end_of_key(text: str, at: int) -> int | None:
    end = text.find(_KEY_END, at)
    return None if end < 0 or "\n" not in text[end:] else end
