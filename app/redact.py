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
from functools import lru_cache
from typing import Any

from app.token_shapes import open_key, shapes

MASK = "[redacted]"
SHORTEST = 8  # a shorter secret would mask ordinary words
_LONG = 256  # longer secrets (keys, certificates) get no variants that multiply their length
_DEPTH = 64  # of nested JSON
_SHORT, _KEPT = 8_192, 512  # texts up to so many characters are not looked through again while they are among the last
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")  # keeps every index, unlike lower()
# White space and characters that show nothing: a secret written with these between its letters is still found.
_GAP = re.compile(
    r"[\s\u00ad\u034f\u061c\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]+"
)
_TOKEN_CHARACTERS = re.compile(r"[A-Za-z0-9._~+/=-]*+")

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
        self._short = lru_cache(_KEPT)(self._text)  # the same keys and words come again and again

    def text(self, text: str) -> str:
        """The text without secrets, in time linear in its length."""
        return self._short(text) if len(text) <= _SHORT else self._text(text)

    def _text(self, text: str) -> str:
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
        return _joined([*self._registered(text), *shapes(text)])

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
    """Redacts a text that comes in pieces: what could be the start of a secret is held back until more is known.

    Some of what was shown is kept as context, since what follows may be a secret only because of it.
    """

    _LINE = 512  # an unfinished line is held back up to here
    _OPEN = 4096  # and an unfinished word or secret up to here; beyond, it is masked before its end is known

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._context = max(self._LINE, 8 * redactor.reach)
        self._text = ""
        self._shown = 0  # characters of it that are out
        self._masked = 0  # those up to here are out as a mask, if this is where `_shown` is
        self._open = False  # the text begins within a long token whose start is forgotten

    def feed(self, piece: str) -> str:
        """What may be shown now of all that came so far."""
        self._text += piece
        spans = self._spans()
        return self._show(self._decided(spans), spans)

    def close(self) -> str:
        """The rest."""
        return self._show(len(self._text), self._spans())

    def _spans(self) -> Spans:
        spans = self._redactor.spans(self._text)
        rest = _TOKEN_CHARACTERS.match(self._text) if self._open else None
        return _joined([*spans, rest.span()]) if rest else spans

    def _decided(self, spans: Spans) -> int:
        """How far the text may go out: nothing before it changes whatever comes."""
        text = self._text
        cut = min(
            open_key(text),
            _visible_from_end(text, self._redactor.reach),
            _after_last(text, "\n", self._LINE),
            _after_last(text, " \t\n", self._OPEN),
        )
        for start, end in spans:
            if start < cut < end and cut - max(start, self._shown) <= self._OPEN:
                cut = start
        return max(cut, self._shown)

    def _show(self, cut: int, spans: Spans) -> str:
        parts: list[str] = []
        at = self._shown
        for start, end in spans:
            if end <= at or start >= cut:
                continue
            parts.append(self._text[at : max(at, start)])
            if start >= self._shown or self._masked < self._shown:
                parts.append(MASK)
            at = self._masked = min(end, cut)
        parts.append(self._text[at:cut])
        self._shown = cut
        self._forget(spans)
        return "".join(parts)

    def _forget(self, spans: Spans) -> None:
        drop = self._shown - self._context
        if drop > 0:
            self._open = any(start < drop and self._shown <= end for start, end in spans)
            self._text = self._text[drop:]
            self._shown -= drop
            self._masked -= drop


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
