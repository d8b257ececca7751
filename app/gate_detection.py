"""Which gates a repository without a configuration has, by the files at its root.

One rule: a gate is found where the project itself says how it is tested, linted or built; nothing is invented.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from app.types import GateSpec

Read = Callable[[str], bytes | None]
_BEFORE, _AFTER = 10, 20  # linters and builds run side by side, then tests
_LOOKED_AT = 50  # test files that are searched for an import of pytest
_NPM_DEFAULT = "no test specified"


def detect(files: Collection[str], read: Read) -> tuple[GateSpec, ...]:
    """The gates that the files of a tree suggest, in the order they will run.

    files: every path of the tree; read: a path's content or None. Each gate's `source` is `detected:<file>`. The
    Makefile is asked only for what nothing else offers, since its targets often install things first.
    """
    found: list[GateSpec] = []
    for detector in (_python, _node, _go, _cargo):
        for gate in detector(files, read):
            taken = {other.name for other in found}
            found.append(
                replace(gate, name=f"{gate.name}-{detector.__name__.strip('_')}") if gate.name in taken else gate
            )
    types = {gate.type for gate in found}
    found += [gate for gate in _make(files, read) if gate.type not in types]
    return tuple(sorted(found, key=lambda gate: (gate.order, gate.name)))


def _gate(name: str, kind: str, command: str, source: str) -> GateSpec:
    order = _AFTER if kind in ("test", "coverage") else _BEFORE
    return GateSpec(name=name, type=kind, command=command, order=order, source=f"detected:{source}")


def _text(path: str, files: Collection[str], read: Read) -> str:
    """A root file's text; "" when it is not there."""
    return (read(path) or b"").decode("utf-8", "replace") if path in files else ""


def _toml(text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}  # a file that the project's own tools cannot read either says nothing


# ---------------------------------------------------------------- Python


def _python(files: Collection[str], read: Read) -> Iterator[GateSpec]:
    tools = _toml(_text("pyproject.toml", files, read)).get("tool")
    tools = tools if isinstance(tools, dict) else {}
    setup = _text("setup.cfg", files, read)
    yield from _first("lint", "lint", "ruff check .", {
        "pyproject.toml": "ruff" in tools, "ruff.toml": "ruff.toml" in files, ".ruff.toml": ".ruff.toml" in files,
    })  # fmt: skip
    mypy = tools.get("mypy")
    chosen = isinstance(mypy, dict) and any(key in mypy for key in ("files", "packages", "modules"))
    yield from _first("types", "lint", "mypy" if chosen else "mypy .", {
        "pyproject.toml": mypy is not None, "mypy.ini": "mypy.ini" in files, ".mypy.ini": ".mypy.ini" in files,
        "setup.cfg": "[mypy]" in setup,
    })  # fmt: skip
    yield from _python_tests(files, read, tools, setup)


def _first(name: str, kind: str, command: str, sources: Mapping[str, bool]) -> Iterator[GateSpec]:
    source = next((file for file, says in sources.items() if says), None)
    if source:
        yield _gate(name, kind, command, source)


def _python_tests(files: Collection[str], read: Read, tools: Mapping[str, Any], setup: str) -> Iterator[GateSpec]:
    tests = sorted(path for path in files if re.fullmatch(r"(?:.*/)?(?:test_[^/]*|[^/]*_test|tests)\.py", path))
    importing = next(
        (path for path in tests[:_LOOKED_AT] if re.search(rb"^\s*(?:import|from) pytest\b", read(path) or b"", re.M)),
        "",
    )
    pytest = list(_first("test", "test", "python3 -m pytest -q", {
        "pyproject.toml": "pytest" in tools, "pytest.ini": "pytest.ini" in files,
        "tox.ini": "pytest" in _text("tox.ini", files, read), "setup.cfg": "[tool:pytest]" in setup,
        "conftest.py": "conftest.py" in files, "tests/conftest.py": "tests/conftest.py" in files,
        importing: bool(importing),
    }))  # fmt: skip
    yield from pytest or _unittest(files, tests)


def _unittest(files: Collection[str], tests: list[str]) -> Iterator[GateSpec]:
    """`unittest discover` finds packages below the root, and the files of one directory that is not a package."""
    for folder in ("tests", "test"):
        inside = [path for path in tests if path.startswith(f"{folder}/")]
        if inside:
            package = f"{folder}/__init__.py" in files
            start = "-t ." if package else ""
            yield _gate("test", "test", f"python3 -m unittest discover -s {folder} {start}".strip(), inside[0])
            return
    at_root = [path for path in tests if "/" not in path and path.startswith("test")]
    if at_root:
        yield _gate("test", "test", "python3 -m unittest discover", at_root[0])


# ---------------------------------------------------------------- Node, Go, Rust


def _node(files: Collection[str], read: Read) -> Iterator[GateSpec]:
    try:
        package = json.loads(_text("package.json", files, read) or "{}")
    except (ValueError, RecursionError):
        return  # a file that npm cannot read either says nothing
    scripts = package.get("scripts") if isinstance(package, dict) else None
    if not isinstance(scripts, dict):
        return
    runner = "pnpm" if "pnpm-lock.yaml" in files else "yarn" if "yarn.lock" in files else "npm"
    for name, kind in (("build", "build"), ("lint", "lint"), ("test", "test")):
        script = scripts.get(name)
        if isinstance(script, str) and script.strip() and _NPM_DEFAULT not in script:
            yield _gate(name, kind, f"{runner} run {name}", "package.json")


def _go(files: Collection[str], read: Read) -> Iterator[GateSpec]:
    if "go.mod" in files:
        yield _gate("build", "build", "go build ./...", "go.mod")
        yield _gate("lint", "lint", "go vet ./...", "go.mod")
        if any(path.endswith("_test.go") for path in files):
            yield _gate("test", "test", "go test ./...", "go.mod")


def _cargo(files: Collection[str], read: Read) -> Iterator[GateSpec]:
    if "Cargo.toml" in files:
        offline = " --locked" if "Cargo.lock" in files else ""
        yield _gate("build", "build", f"cargo build{offline}", "Cargo.toml")
        yield _gate("test", "test", f"cargo test{offline}", "Cargo.toml")


# ---------------------------------------------------------------- make


def _make(files: Collection[str], read: Read) -> Iterator[GateSpec]:
    """Targets of the first makefile that GNU make would read. `check` is the tests' usual other name."""
    makefile = next((name for name in ("GNUmakefile", "makefile", "Makefile") if name in files), None)
    targets = _targets(_text(makefile, files, read)) if makefile else set()
    for name, kind in (("build", "build"), ("lint", "lint"), ("test", "test"), ("check", "test")):
        if name in targets and not (name == "check" and "test" in targets):
            yield _gate(name, kind, f"make {name}", makefile or "")


def _targets(text: str) -> set[str]:
    """Names before a colon that assigns nothing."""
    names: set[str] = set()
    for line in text.splitlines():
        head, colon, rest = line[:512].partition(":")
        if (
            colon
            and not line.startswith(("\t", "#", " ", "."))
            and not rest.startswith(("=", ":="))
            and "=" not in head
        ):
            names.update(head.split())
    return names
