"""Which parts of a project's settings files decide about its gates.

One rule: what cannot be parsed counts as changed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from configparser import ConfigParser, Error


def same_sections(name: str, before: bytes | None, after: bytes | None) -> bool:
    """Whether two versions of the file `name` agree in all that decides about gates; None = the file is not there."""
    if before is None or after is None:
        return False
    parse = _PARSERS[name]
    try:
        return parse(before) == parse(after)
    except (ValueError, Error, RecursionError):
        return False


def _pyproject(data: bytes) -> object:
    parsed = tomllib.loads(data.decode())
    return parsed.get("tool"), parsed.get("build-system"), parsed.get("dependency-groups")


def _package_json(data: bytes) -> object:
    """All but what describes the package: scripts, runners' and linters' settings, workspaces, dependencies."""
    parsed = json.loads(data)
    if not isinstance(parsed, dict):
        raise ValueError("not an object")
    harmless = {
        "version",
        "description",
        "keywords",
        "author",
        "contributors",
        "homepage",
        "bugs",
        "license",
        "funding",
    }
    return {key: value for key, value in parsed.items() if key not in harmless}


def _ini(data: bytes) -> object:
    parser = ConfigParser(interpolation=None)
    parser.read_string(data.decode())
    return {name: dict(parser[name]) for name in parser.sections() if name not in ("metadata", "options")}


_PARSERS: Mapping[str, Callable[[bytes], object]] = {
    "pyproject.toml": _pyproject,
    "package.json": _package_json,
    "setup.cfg": _ini,
    "tox.ini": _ini,
}
SECTIONED = frozenset(_PARSERS)
