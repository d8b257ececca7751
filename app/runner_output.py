"""What well-known test runners say at the end of their output: how many tests ran, how much is covered.

One rule: it only helps where no report is declared, so what it does not recognise it leaves open.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_WINDOW = 512  # characters of a line that are looked at
_LINES = 20_000  # the last lines


@dataclass(frozen=True, slots=True)
class Said:
    counts: Mapping[str, int]  # tests, failures, errors, skipped: what summaries say, added up
    none_ran: bool  # a runner said that it found nothing, and no other ran anything
    coverage: float | None


_WORDS = {
    "passed": "tests", "passing": "tests", "xfailed": "tests", "xpassed": "tests", "example": "tests",
    "examples": "tests",
    "failed": "failures", "failing": "failures", "failure": "failures", "failures": "failures", "fail": "failures",
    "error": "errors", "errors": "errors", "skipped": "skipped", "pending": "skipped", "ignored": "skipped",
    "todo": "skipped", "tests": "tests",
}  # fmt: skip
_AMOUNT = re.compile(
    r"\b(\d{1,9}) (passed|failed|errors?|failures?|skipped|passing|failing|pending|ignored|xfailed|xpassed|todo"
    r"|examples?)\b"
)
# Lines that end a run. The first group holds amounts with their words.
_SUMMARIES = (
    re.compile(
        r"^=* ?(\d{1,9} (?:passed|failed|errors?|skipped|xfailed|xpassed|deselected|warnings?)\b.*) in [\d.]+m?s\b"
    ),
    re.compile(r"^test result: \w+\. (.*)"),  # cargo
    re.compile(r"^Tests:\s+(.*\d total)"),  # jest
    re.compile(r"^\s*Tests\s+(\d.*)\(\d+\)"),  # vitest
    re.compile(r"^\s*(\d{1,9} (?:passing|failing|pending)\b)"),  # mocha
    re.compile(r"^(\d{1,9} examples?, .*)"),  # rspec
)
_UNITTEST = re.compile(r"^Ran (\d{1,9}) tests? in ")
_UNITTEST_END = re.compile(r"^(?:FAILED|OK) \(([a-z0-9=, ]+)\)")
_NAMED = re.compile(r"\b(failures|errors|skipped)=(\d{1,9})")
_NODE = re.compile(r"^(?:#|\u2139) (tests|fail|skipped) (\d{1,9})$")
_NONE = (
    re.compile(r"^=* ?no tests ran\b"),
    re.compile(r"^NO TESTS RAN\b"),
    re.compile(r"^Ran 0 tests\b"),
    re.compile(r"^No tests found\b", re.IGNORECASE),
    re.compile(r"^No test files found\b", re.IGNORECASE),
    re.compile(r"^No tests were found\b"),
    re.compile(r"^running 0 tests\b"),
    re.compile(r"^0 examples, 0 failures\b"),
    re.compile(r"^\s*0 passing\b"),
    re.compile(r"^\?\s.*\[no test files\]"),
    re.compile(r"^ok\s.*\[no tests to run\]"),
    re.compile(r"^1\.\.0\b"),
)
_COVERAGE = (
    re.compile(r"^TOTAL\s.*?\b(\d{1,3}(?:\.\d+)?)%"),
    re.compile(r"^All files\s*\|\s*(\d{1,3}(?:\.\d+)?)\s*\|"),
    re.compile(r"^total:\s.*\s(\d{1,3}(?:\.\d+)?)%"),
)
_GO_COVERAGE = re.compile(r"\bcoverage: (\d{1,3}(?:\.\d+)?)% of statements")


def read(output: str) -> Said:
    """What the runners of this output said. Takes time linear in the output."""
    lines = [line[:_WINDOW].rstrip() for line in output.splitlines()[-_LINES:]]
    counts: dict[str, int] = {}
    for line in lines:
        for key, amount in _amounts(line):
            counts[key] = counts.get(key, 0) + amount
    packages = any(
        line.startswith("ok ") or line.startswith("ok\t") for line in lines if "[no tests to run]" not in line
    )
    nothing = any(pattern.search(line) for line in lines for pattern in _NONE)
    return Said(counts, nothing and not counts.get("tests") and not packages, _covered(lines))


def _amounts(line: str) -> Iterator[tuple[str, int]]:
    if found := _UNITTEST.match(line):
        yield "tests", int(found[1])
    elif found := _UNITTEST_END.match(line):
        yield from ((key, int(amount)) for key, amount in _NAMED.findall(found[1]))
    elif found := _NODE.match(line):
        yield _WORDS[found[1]], int(found[2])
    elif found := next(filter(None, (pattern.match(line) for pattern in _SUMMARIES)), None):
        yield from _summary(found[1])


def _summary(text: str) -> Iterator[tuple[str, int]]:
    """`3 passed, 1 failed`: every amount is of tests, a kind has its own count besides. RSpec says the sum itself."""
    summed = "example" in text
    for amount, word in _AMOUNT.findall(text):
        key = _WORDS[word]
        if key == "tests" or not summed:
            yield "tests", int(amount)
        if key != "tests":
            yield key, int(amount)


def _covered(lines: list[str]) -> float | None:
    """The last total; Go says one figure for each package, of which the lowest counts."""
    for line in reversed(lines):
        for pattern in _COVERAGE:
            if found := pattern.match(line):
                return float(found[1])
    packages = [float(found[1]) for line in lines if (found := _GO_COVERAGE.search(line))]
    return min(packages, default=None)
