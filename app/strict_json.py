"""JSON from outside, made safe at the door: no NaN, no duplicate keys, no lone surrogates, no NUL, bounded depth.

Python's parser accepts all of these; PostgreSQL, hashes and people do not.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 64
_NESTING = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)  # strings, finished or not, and brackets


class BadJson(ValueError):
    """The text is not the JSON object that was expected; `str()` says why."""


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object from bytes. NUL characters are dropped, everything else that is odd is refused."""
    try:
        text = raw.decode("utf-8")
        _check_depth(text)
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except BadJson:
        raise
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadJson(f"not valid JSON: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise BadJson("not a JSON object")
    cleaned: dict[str, Any] = _clean(value)
    return cleaned


def _check_depth(text: str) -> None:
    depth = 0
    for token in _NESTING.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise BadJson("nested too deeply")
        elif token[0] in "]}":
            depth -= 1


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadJson("a key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise BadJson(f"{name} is not JSON")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadJson("a lone surrogate") from None
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value
