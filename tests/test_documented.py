"""What an operator meets is documented: reasons, settings, metrics, events, commands, found in the code itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli import LATER, _parser
from app.metrics import METRICS
from app.settings_table import SETTINGS
from app.types import REASONS, JobStatus, StepStatus
from app.voice_status import _WAITS
from app.waiting import _AWAY

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# What stands in a name that is put together from a status. A job is made pending, and is `started` when it runs.
STATUSES = {
    "status.value": [status.value for status in StepStatus if status.terminal],
    "to.value": [status.value for status in JobStatus if status not in (JobStatus.PENDING, JobStatus.RUNNING)],
}
READS = {("app/audit.py", "row[1], row[2]")}  # an `event` that checks a recorded one


def code(root: Path = ROOT) -> Iterator[tuple[str, ast.Module]]:
    for folder in ("app", "handlers", "jobs"):
        for path in sorted((root / folder).rglob("*.py")):
            yield str(path.relative_to(root)), ast.parse(path.read_text())


def kinds(node: ast.expr) -> list[str] | None:
    """The kinds that an argument can be; None when that cannot be read."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        parts = kinds(node.body), kinds(node.orelse)
        return None if None in parts else [kind for part in parts for kind in part or ()]
    if isinstance(node, ast.JoinedStr) and len(node.values) == 2:
        before, after = node.values
        if isinstance(before, ast.Constant) and isinstance(after, ast.FormattedValue):
            ends = STATUSES.get(ast.unparse(after.value))
            return [f"{before.value}{end}" for end in ends] if ends else None
    return None


Forwarders = dict[str, int]  # function that passes a kind on → the place of that argument


def forwarders(tree: ast.Module) -> Forwarders:
    """Functions of a module that take a kind as a parameter and record it, by themselves or by another such one."""
    found: Forwarders = {}
    while True:
        more = {
            function.name: place
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and (place := passed_on(function, found)) is not None
        }
        if more == found:
            return found
        found = more


def passed_on(function: ast.FunctionDef, known: Forwarders) -> int | None:
    parameters = [parameter.arg for parameter in function.args.args]
    for _, _, argument in recordings(function, known):
        if isinstance(argument, ast.Name) and argument.id in parameters:
            return parameters.index(argument.id) - (parameters[0] == "self")
    return None


def recordings(tree: ast.AST, known: Forwarders) -> Iterator[tuple[str, ast.Call, ast.expr]]:
    """(what is called, the call, the kind): of `….event(kind, …)`, `event(step, kind, …)` and forwarders."""
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and call.args):
            continue
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if called == "event":
            likely = [argument for argument in call.args[:2] if kinds(argument)]
            yield called, call, likely[0] if likely else call.args[min(1, len(call.args) - 1)]
        elif called in known and known[called] < len(call.args):
            yield called, call, call.args[known[called]]


def recorded(trees: Iterator[tuple[str, ast.Module]]) -> tuple[set[str], set[tuple[str, str]]]:
    """Kinds that the code records, and the calls of which that cannot be read."""
    found: set[str] = set()
    unread: set[tuple[str, str]] = set()
    for name, tree in trees:
        known = forwarders(tree)
        for _, call, argument in recordings(tree, known):
            said = kinds(argument)
            if said:
                found.update(said)
            elif not (isinstance(argument, ast.Name) and within(tree, call, known)):
                unread.add((name, ", ".join(map(ast.unparse, call.args[:2]))))
    return found, unread - READS


def within(tree: ast.Module, call: ast.Call, known: Forwarders) -> bool:
    """Whether a call stands in a function that only passes a kind on."""
    return any(
        isinstance(function, ast.FunctionDef) and function.name in known and call in ast.walk(function)
        for function in ast.walk(tree)
    )


def listed(name: str) -> set[str]:
    """What stands in backticks in the first column of the tables of a document."""
    cells = [line.split("|")[1] for line in (DOCS / name).read_text().splitlines() if line.startswith("|")]
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def test_every_event_is_documented() -> None:
    found, unread = recorded(code())
    assert unread == set(), "an event whose kind cannot be read from the code: name it where it is recorded"
    assert {"job.created", "step.started", "worker.lost", "gate.passed", "pr.updated"} <= found
    assert found - listed("events.md") == set(), "add a row to docs/events.md"


def test_an_event_that_nobody_listed_is_found() -> None:
    def of(text: str) -> tuple[set[str], set[tuple[str, str]]]:
        return recorded(iter([("made.py", ast.parse(text))]))

    assert of("entry.event('a.b', actor=a)\nsteps.event(row, 'c.d' if x else 'e.f')") == ({"a.b", "c.d", "e.f"}, set())
    assert of("def tell(job, kind): job.event(kind)\ndef more(k): tell(j, k)\nmore('g.h')") == ({"g.h"}, set())
    assert of("entry.event(name)") == (set(), {("made.py", "name")})


def test_no_event_is_documented_that_is_not_recorded() -> None:
    words = {kind for _, tree in code() for kind in strings(tree)} | recorded(code())[0]
    assert {kind for kind in listed("events.md") if "." in kind} - words == set(), "take the row out of docs/events.md"


def strings(tree: ast.Module) -> Iterator[str]:
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


@pytest.mark.parametrize("code", REASONS)
def test_every_reason_is_documented_in_the_same_words(code: str) -> None:
    reason = REASONS[code]
    row = f"| `{code}` | {reason.status.value} | {reason.cause} | {reason.next_action} |"
    assert row in (DOCS / "reasons.md").read_text().splitlines(), f"docs/reasons.md needs this row:\n{row}"


def ends(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(how, code): every reason that the code gives to a step or a job by name."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        given = named.get("code") if name == "Refuse" else named.get("conclude") if name == "Done" else None
        if name in ("Failed", "Conclude", "HandBack", "refusal") and call.args:
            given = call.args[0]
        if name == "conclude" and len(call.args) > 1:
            given = call.args[1]
        found = [given.body, given.orelse] if isinstance(given, ast.IfExp) else [given]
        for value in found:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield name, value.value


STEPS_ONLY = {"cancelled", "gate_red"}  # a job ends as cancelled_by_user, gates_failed


def test_every_reason_that_the_code_gives_is_in_the_table_or_has_words_for_the_wait() -> None:
    """An unknown one would end a job as `internal_error`, without a word on what to do."""
    given = {(how, code) for _, tree in code() for how, code in ends(tree)}
    assert {("Failed", "gate_red"), ("Refuse", "no_gates"), ("HandBack", "disk_full"), ("Done", "done")} <= given
    assert {word for how, word in given if how != "HandBack"} - set(REASONS) == STEPS_ONLY
    waits = {word for how, word in given if how == "HandBack"}
    assert waits - set(_AWAY) == waits - set(_WAITS) == set(), (
        "say in app/waiting.py and app/voice_status.py what it waits for"
    )


def test_no_reason_is_documented_that_is_gone() -> None:
    assert listed("reasons.md") == set(REASONS)


@pytest.mark.parametrize("code", [code for code, reason in REASONS.items() if reason.status is JobStatus.FAILED])
def test_every_failure_names_a_next_action(code: str) -> None:
    assert REASONS[code].cause.endswith(".") and REASONS[code].next_action.endswith(".")


def test_every_reason_that_the_code_gives_is_in_the_table() -> None:
    """`Failed("code", …)` and `conclude="code"`; codes of single steps are known by their own table below."""
    for name, tree in code():
        for call in ast.walk(tree):
            if isinstance(call, ast.Call):
                for word in call.keywords:
                    if word.arg == "conclude" and isinstance(word.value, ast.Constant) and word.value.value:
                        assert word.value.value in REASONS, f"{name}:{call.lineno}"


def test_every_metric_is_documented() -> None:
    assert {name for name in listed("operations.md") if name.startswith("mosaic_")} == set(METRICS)


def test_every_setting_is_documented() -> None:
    assert {row.name for row in SETTINGS} <= listed("settings.md")


def test_every_setting_that_a_document_names_exists() -> None:
    names = {row.name for row in SETTINGS}
    own = {"MOSAIC_APP_PASSWORD", "MOSAIC_OWNER_PASSWORD"}  # of deploy/compose alone
    for path in (ROOT / "README.md", *DOCS.rglob("*.md"), *(p for p in (ROOT / "deploy").rglob("*") if p.is_file())):
        said = set(re.findall(r"MOSAIC_[A-Z][A-Z_]*[A-Z](?![A-Z_*])", path.read_text()))
        families = {name for name in said if any(other.startswith(f"{name}_") for other in names)}
        assert {name.removesuffix("_FILE") for name in said} - names - own - families == set(), path


def test_every_command_that_a_document_names_exists() -> None:
    action = next(action for action in _parser()._actions if action.dest == "command")
    verbs = set(action.choices or ()) | set(LATER)
    for path in (ROOT / "README.md", *DOCS.rglob("*.md")):
        said = set(re.findall(r"`mosaic ([a-z]+)", path.read_text()))
        assert said - verbs == set(), path
