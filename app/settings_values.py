"""Turns the text of one setting into its value, by kind.

Every function either returns a value that is safe to use or raises `Invalid`, and never repeats a secret.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from app.settings_table import Setting

Value = str | bytes | int | float | Path | tuple[str, int] | tuple[str, ...] | tuple[bytes, ...] | None


class Invalid(ValueError):
    """A value cannot be used: `what` is wrong (continues the setting's name) and how to `fix` it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}. {fix}")
        self.what = what
        self.fix = fix


def parse(setting: Setting, text: str) -> Value:
    """The value of `setting` for a non-empty `text`."""
    return _KINDS[setting.kind](text, setting)


def absent(setting: Setting) -> Value:
    """What stands for "not set" in a setting of this kind: None, "", b"" or ()."""
    return _ABSENT.get(setting.kind, "")


def is_loopback(host: str) -> bool:
    """True when `host` names this machine itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _show(text: str) -> str:
    return f'"{text}"' if len(text) <= 60 and text.isprintable() else f"a text of {len(text)} characters"


def _text(text: str, setting: Setting) -> str:
    if len(text) > 1024 or not text.isprintable():
        raise Invalid("holds a control character or more than 1024 characters", "Write it again on one line.")
    return text


def _choice(text: str, setting: Setting) -> str:
    if text.lower() not in setting.choices:
        raise Invalid(f"is {_show(text)}", f"Use one of: {', '.join(setting.choices)}.")
    return text.lower()


def _integer(text: str, setting: Setting) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise Invalid(f"is {_show(text)}, which is not a whole number", "Write digits only.")
    return int(_within(int(text), setting))


def _number(text: str, setting: Setting) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Invalid(f"is {_show(text)}, which is not a number", "Write it like 2.50.")
    return _within(value, setting)


def _within(value: float, setting: Setting) -> float:
    low, high = setting.bounds
    if not low <= value <= high:
        raise Invalid(f"is {value:g}", f"Use a number from {low:.15g} to {high:.15g}.")
    return value


def _split(text: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    """The parts of a URL that has one of `schemes`; the text is not repeated, since it may hold a password."""
    fix = f"Write it like {example}."
    if not text.isascii() or re.search(r"[\s\\\x00-\x1f\x7f]", text):
        raise Invalid("is not a valid address", fix)
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  reading it checks it
    except ValueError:
        raise Invalid("is not a valid address", fix) from None
    if parts.scheme not in schemes:
        raise Invalid(f"does not start with {' or '.join(f'{scheme}://' for scheme in schemes)}", fix)
    return parts


def _address(text: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    parts = _split(text, schemes, example)
    if not parts.hostname:
        raise Invalid("names no host", f"Write it like {example}.")
    if "@" in parts.netloc:
        raise Invalid("holds a user or a password", "Take it out: tokens and passwords have settings of their own.")
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise Invalid("holds a ? or #", "Write the address up to there.")
    return parts


def _url(text: str, setting: Setting) -> str:
    example = setting.example or setting.default or "https://host.example.org"
    return _address(text, ("https", "http"), example).geturl().rstrip("/")


def _websocket(text: str, setting: Setting) -> str:
    parts = _address(text, ("wss", "ws"), setting.default)
    return parts._replace(path=parts.path or "/").geturl()


def _database(text: str, setting: Setting) -> str:
    _split(text, ("postgresql", "postgres"), setting.example)
    return text


def _listen(text: str, setting: Setting) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535 or bracketed != (":" in bare):
        raise Invalid(f"is {_show(text)}", f"Write host:port, like {setting.default} or [::1]:8080.")
    if not re.fullmatch(r"[0-9A-Za-z.:-]+", bare):
        raise Invalid(f"is {_show(text)}, which names no host", f"Write host:port, like {setting.default}.")
    return bare, int(port)


def _directory(text: str, setting: Setting) -> Path:
    path = _path(text)
    if path.exists() and not path.is_dir():
        raise Invalid(f"is {path}, which is not a directory", "Name a directory; it is made when it is absent.")
    return path


def _file(text: str, setting: Setting) -> Path:
    path = _path(text)
    if not path.is_file():
        raise Invalid(f"is {path}, and there is no such file", "Correct the path, or remove the setting.")
    return path


def _path(text: str) -> Path:
    if not text.isprintable():
        raise Invalid("holds a control character", "Write the path again on one line.")
    return Path(text).expanduser().absolute()


def _networks(text: str, setting: Setting) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(part.strip(), strict=False)) for part in text.split(","))
    except ValueError:
        raise Invalid(
            f"is {_show(text)}", f"Write addresses or networks with commas between them, like {setting.example}."
        ) from None


def _key(text: str, setting: Setting) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        raise Invalid("is not a public key", "Copy the 64 hexadecimal digits from the platform's page.")
    return text.lower()


def _long_enough(text: str, setting: Setting) -> str:
    low, high = setting.bounds
    if len(text) < low:
        fix = f"Use at least {low:g}, for example from `openssl rand -hex 32`."
        raise Invalid(f"is too short to be safe: {len(text)} characters", fix)
    if len(text) > min(high, 16_384):
        raise Invalid(f"is too long: {len(text)} characters", "Check that it is the value itself and not a whole file.")
    return text


def _token(text: str, setting: Setting) -> str:
    # It travels in a header: a line break or a foreign character there would change the request.
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise Invalid("holds a space, a line break or a character that no token has", "Copy the token again.")
    return _long_enough(text, setting)


def _secret(text: str, setting: Setting) -> bytes:
    return _long_enough(text, setting).encode()


def _rotating(text: str, setting: Setting) -> tuple[bytes, ...]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2:
        raise Invalid(f"holds {len(parts)} values", "Write one, or two with a comma between them while rotating.")
    if "" in parts:
        raise Invalid("holds an empty value", "Remove the comma, or write a value on each side of it.")
    return tuple(_secret(part, setting) for part in parts)


def _tokens(text: str, setting: Setting) -> tuple[str, ...]:
    return tuple(_token(part.strip(), setting) for part in text.split(","))


_KINDS: Mapping[str, Callable[[str, Setting], Value]] = {
    "text": _text,
    "choice": _choice,
    "integer": _integer,
    "number": _number,
    "url": _url,
    "websocket": _websocket,
    "database": _database,
    "listen": _listen,
    "directory": _directory,
    "file": _file,
    "networks": _networks,
    "key": _key,
    "token": _token,
    "tokens": _tokens,
    "secret": _secret,
    "rotating": _rotating,
}
_ABSENT: Mapping[str, Value] = {
    "database": None,
    "file": None,
    "secret": b"",
    "rotating": (),
    "tokens": (),
    "networks": (),
}
