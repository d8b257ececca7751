"""Where the settings' texts come from: the environment, completed by a `.env` file.

A `.env` file is one NAME=VALUE a line, with quotes and comments; nothing in it is expanded or executed.
"""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.settings_table import BY_NAME, SETTINGS
from app.types import MosaicError

_LINE = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*(.*)", re.DOTALL)
_SINGLE = re.compile(r"'([^']*)'[ \t]*(?:#.*)?")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"[ \t]*(?:#.*)?')
_COMMENT = re.compile(r"(?:^|[ \t])#.*")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that keeps Mosaic from starting: the setting, what is wrong with it, and how to put it right."""

    name: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.name} {self.what}. {self.fix}"


class SettingsError(MosaicError):
    """The settings cannot be used; `problems` holds all of them, so that one look is enough."""

    code = "settings_invalid"

    def __init__(self, role: str, problems: tuple[Problem, ...]) -> None:
        count = "1 setting needs" if len(problems) == 1 else f"{len(problems)} settings need"
        listed = "".join(f"\n- {problem}" for problem in problems)
        super().__init__(f"Mosaic cannot start as `{role}`: {count} attention.{listed}")
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Dotenv:
    """What a file holds: `values` by name (the last one wins), and for each bad line its number and what is wrong."""

    values: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[tuple[int, str], ...] = ()


def parse_dotenv(text: str) -> Dotenv:
    """Read the text of a `.env` file. A line is never repeated in a fault: it may hold a secret."""
    values: dict[str, str] = {}
    faults: list[tuple[int, str]] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(stripped)
        value = _unquote(match[2]) if match else None
        if match is None:
            faults.append((number, "is not of the form NAME=VALUE"))
        elif value is None:
            faults.append((number, "has a quote that is not closed, or text after the closing quote"))
        else:
            values[match[1]] = value
    return Dotenv(values, tuple(faults))


def _unquote(text: str) -> str | None:
    """The value without quotes and comment; None when a quote is left open."""
    if text.startswith("'"):
        match = _SINGLE.fullmatch(text)
        return match[1] if match else None
    if text.startswith('"'):
        match = _DOUBLE.fullmatch(text)
        return re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), match[1]) if match else None
    return _COMMENT.sub("", text, count=1).strip()


@dataclass(slots=True)
class Source:
    values: dict[str, str]
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def settings_source(environ: Mapping[str, str], dotenv: Path | None) -> dict[str, str]:
    """The environment, completed by the MOSAIC_* names of the `.env` file; the environment wins.

    Input for `environment_for`. SettingsError when the file cannot be read.
    """
    source = read_source(environ, dotenv)
    if source.problems:
        raise SettingsError("cli", tuple(source.problems))
    return source.values


def read_source(environ: Mapping[str, str], dotenv: Path | None) -> Source:
    source = Source(dict(environ))
    if dotenv is None or not dotenv.exists():
        return source
    try:
        found = parse_dotenv(dotenv.read_text(encoding="utf-8"))
    except (OSError, UnicodeError):
        source.problems.append(Problem(str(dotenv), "cannot be read as UTF-8 text", "Correct the file, or remove it."))
        return source
    for line, what in found.faults:
        fix = "Write NAME=VALUE; put a value with spaces or # into quotes."
        source.problems.append(Problem(f"{dotenv} line {line}", what, fix))
    for name, value in found.values.items():
        # NAME and NAME_FILE are two spellings of one setting: one in the environment hides both in the file.
        if name.startswith("MOSAIC_") and not any(environ.get(key) for key in _spellings(name)):
            source.values[name] = value
    if _holds_secret(found.values) and stat.S_IMODE(dotenv.stat().st_mode) & 0o077:
        source.warnings.append(f"{dotenv} holds secrets and can be read by other accounts: run `chmod 600 {dotenv}`.")
    return source


def _spellings(name: str) -> tuple[str, str]:
    plain = name.removesuffix("_FILE") if name not in BY_NAME else name
    return plain, f"{plain}_FILE"


def _holds_secret(values: Mapping[str, str]) -> bool:
    return any(setting.secret and values.get(setting.name) for setting in SETTINGS)


def _known_names() -> set[str]:
    return set(BY_NAME) | {f"{setting.name}_FILE" for setting in SETTINGS if setting.secret}


def unknown_names(values: Mapping[str, str]) -> list[str]:
    """A warning for every MOSAIC_* name that is not a setting, with the nearest one that is."""
    known = {name.removeprefix("MOSAIC_"): name for name in sorted(_known_names())}
    warnings = []
    for name in sorted(name for name in values if name.startswith("MOSAIC_") and name not in known.values()):
        near = difflib.get_close_matches(name.removeprefix("MOSAIC_"), known, n=1, cutoff=0.7)
        hint = f" Did you mean {known[near[0]]}?" if near else ""
        warnings.append(f"{name} is not a setting of Mosaic and has no effect.{hint}")
    return warnings
