"""Reports that test and coverage programs write: JUnit, Cobertura, lcov.

One rule: the program under test may have written the file, so reading it is bounded in size, expands no entity, and
says "unreadable" rather than guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from app.types import MosaicError

LIMIT = 16 * 1024 * 1024
_DEPTH = 200


class ReportUnreadable(MosaicError):
    code = "report_unreadable"


@dataclass(frozen=True, slots=True)
class Report:
    """`counts`: tests, failures, errors, skipped of a JUnit report. `coverage`: percent of lines, of the other two."""

    kind: str  # junit | cobertura | lcov
    counts: Mapping[str, int] = field(default_factory=dict)
    coverage: float | None = None


def parse(data: bytes) -> Report:
    """What a report says. The format is told from its content. Raises ReportUnreadable with one sentence."""
    if len(data) > LIMIT:
        raise ReportUnreadable(f"The report has {len(data)} bytes; {LIMIT} are read.")
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        raise ReportUnreadable("The report is empty.")
    return _xml(data.lstrip(b" \t\r\n")) if head.startswith(b"<") else _lcov(data)


# ---------------------------------------------------------------- XML


class _Reader:
    """Takes the elements as they come, so that no tree is built; counts what the two formats need."""

    def __init__(self) -> None:
        self.root = ""
        self.attributes: dict[str, str] = {}
        self.claimed = {"failures": 0, "errors": 0}  # what a suite says of itself
        self.cases: list[set[str]] = []
        self.lines = self.covered = 0
        self._open: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition("}")[2]
        if not self._open:
            self.root, self.attributes = name, dict(attributes)
        if len(self._open) >= _DEPTH:
            raise ReportUnreadable("The report is nested too deeply.")
        if name in ("testsuite", "testsuites"):
            for key in self.claimed:
                self.claimed[key] = max(self.claimed[key], _count(attributes.get(key)))
        elif name == "testcase":
            self.cases.append(set())
        elif self._open and self._open[-1] == "testcase":
            self.cases[-1].add(name)
        elif name == "line" and "methods" not in self._open:  # the lines of methods stand again in their class
            self.lines += 1
            self.covered += _count(attributes.get("hits")) > 0
        self._open.append(name)

    def end(self, tag: str) -> None:
        self._open.pop()

    def close(self) -> None: ...


def _count(text: str | None) -> int:
    """A number of an attribute; what is not a plain number counts as 0."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 12 else 0


def _xml(data: bytes) -> Report:
    reader = _Reader()
    parser = DefusedXMLParser(target=reader, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    try:
        parser.feed(data)
        parser.close()
    except (ParseError, DefusedXmlException, LookupError, ValueError) as error:
        raise ReportUnreadable(f"The report is not well-formed XML ({type(error).__name__}).") from error
    if reader.root in ("testsuite", "testsuites"):
        return Report("junit", counts=_junit(reader))
    if reader.root == "coverage":
        return Report("cobertura", coverage=_cobertura(reader))
    raise ReportUnreadable(f"The report's root element `{reader.root[:40]}` is neither JUnit's nor Cobertura's.")


def _junit(reader: _Reader) -> dict[str, int]:
    """Counted test cases; where a suite claims more failures than its cases show, the claim holds."""
    counts = {
        "tests": len(reader.cases),
        "failures": sum("failure" in found for found in reader.cases),
        "errors": sum("error" in found for found in reader.cases),
        "skipped": sum("skipped" in found for found in reader.cases),
    }
    return counts | {key: max(counts[key], claim) for key, claim in reader.claimed.items()}


def _cobertura(reader: _Reader) -> float:
    """Of the lines listed; a report without lines is measured by its totals."""
    valid, covered = _count(reader.attributes.get("lines-valid")), _count(reader.attributes.get("lines-covered"))
    if reader.lines:
        return _percent(reader.covered, reader.lines)
    if valid:
        return _percent(covered, valid)
    raise ReportUnreadable("The coverage report lists no line.")


# ---------------------------------------------------------------- lcov


def _lcov(data: bytes) -> Report:
    """Counted from the lines (DA); a file without them by its totals (LF, LH)."""
    lines = covered = 0
    listed: dict[bytes, int] = {}
    total, hit, files = 0, 0, 0
    for record in data.splitlines():
        key, _, value = record.strip().partition(b":")
        if key == b"SF":
            listed, total, hit = {}, 0, 0
            files += 1
        elif key == b"DA":
            number, _, rest = value.partition(b",")
            listed[number] = listed.get(number, 0) + _whole(rest.partition(b",")[0])
        elif key == b"LF":
            total = _whole(value)
        elif key == b"LH":
            hit = _whole(value)
        elif key == b"end_of_record":
            lines += len(listed) or total
            covered += sum(hits > 0 for hits in listed.values()) if listed else hit
            listed, total, hit = {}, 0, 0
    if not files or not lines:
        raise ReportUnreadable("The report is neither XML nor an lcov file that lists lines.")
    return Report("lcov", coverage=_percent(covered, lines))


def _whole(value: bytes) -> int:
    return _count(value.strip().decode("ascii", "replace"))


def _percent(part: int, whole: int) -> float:
    """Rounded down to two places: 79.999 must not pass a minimum of 80."""
    if part > whole:
        raise ReportUnreadable(f"The report says that {part} of {whole} lines are covered.")
    return math.floor(part * 10000 / whole) / 100
