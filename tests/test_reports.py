"""Reports as real programs write them, and as hostile ones might."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.reports import LIMIT, Report, ReportUnreadable, parse

JUNIT = b"""<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="a" errors="1" failures="1" skipped="1" tests="4">
<testcase name="ok"/><testcase name="bad"><failure message="x">trace</failure></testcase>
<testcase name="worse"><error/></testcase><testcase name="not"><skipped/></testcase>
</testsuite></testsuites>"""


def test_junit_counts_its_cases() -> None:
    assert parse(JUNIT) == Report("junit", {"tests": 4, "failures": 1, "errors": 1, "skipped": 1})
    assert parse(b"<testsuite><testcase/></testsuite>").counts["tests"] == 1
    assert parse(b"\xef\xbb\xbf <testsuites/>").counts == {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    assert (
        parse(b'<n:testsuite xmlns:n="urn:x"><n:testcase><n:failure/></n:testcase></n:testsuite>').counts["failures"]
        == 1
    )


def test_junit_of_a_suite_that_claims_more_failures_than_it_shows() -> None:
    report = parse(b'<testsuite tests="3" failures="2" errors="1"><testcase/><testcase/><testcase/></testsuite>')
    assert (report.counts["failures"], report.counts["errors"]) == (2, 1)


def test_junit_of_real_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n@pytest.mark.skip\ndef test_c(): pass\n"
    )
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=r.xml"], cwd=tmp_path)
    assert parse((tmp_path / "r.xml").read_bytes()).counts == {"tests": 3, "failures": 1, "errors": 0, "skipped": 1}


def test_cobertura_counts_lines_once() -> None:
    lines = b'<line number="1" hits="1"/><line number="2" hits="0"/><line number="3" hits="5"/>'
    methods = b"<methods><method><lines>%s</lines></method></methods>"
    cobertura = (
        b'<coverage line-rate="1"><classes><class>' + methods + b"<lines>%s</lines></class></classes></coverage>"
    )
    assert parse(cobertura % (lines[:27], lines)) == Report("cobertura", coverage=66.66)
    assert parse(b'<coverage lines-valid="8" lines-covered="7"/>').coverage == 87.5


def test_coverage_is_rounded_down() -> None:
    assert parse(b'<coverage lines-valid="100000" lines-covered="79999"/>').coverage == 79.99


def test_lcov() -> None:
    text = b"TN:\nSF:a.js\nDA:1,1\nDA:2,0\nDA:3,7,hash\nLF:3\nLH:3\nend_of_record\nSF:b.js\nLF:5\nLH:5\nend_of_record\n"
    assert parse(text) == Report("lcov", coverage=87.5)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"   \n",
        b"not a report",
        b"<testsuite>",
        b"<html><body/></html>",
        b"<coverage/>",
        b"\x00\x01\x02",
        b"<\xff\xfe>",
        b"SF:a\n",
        b"SF:a\nend_of_record\n",
        b'<?xml version="1.0" encoding="nonsense"?><testsuite/>',
        b"<testsuite/><testsuite/>",
        b'<coverage lines-valid="5" lines-covered="9"/>',
        b"SF:a\nLF:1\nLH:2\nend_of_record\n",
        b"DA:1,1\nend_of_record\n",
        b'<coverage lines-valid="nan" lines-covered="nan" line-rate="0.99"/>',
    ],
)
def test_unreadable(data: bytes) -> None:
    with pytest.raises(ReportUnreadable) as raised:
        parse(data)
    assert str(raised.value).endswith(".")


@pytest.mark.parametrize(
    "data",
    [
        b'<!DOCTYPE a [<!ENTITY x "y">]><testsuite>&x;</testsuite>',
        b'<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><testsuite><testcase name="&b;"/></testsuite>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><testsuite/>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><testsuite><testcase>&x;</testcase></testsuite>',
    ],
)
def test_entities_and_document_types_are_refused(data: bytes) -> None:
    with pytest.raises(ReportUnreadable):
        parse(data)


def test_size_and_depth_are_bounded() -> None:
    with pytest.raises(ReportUnreadable, match="bytes"):
        parse(b"<testsuite>" + b" " * LIMIT + b"</testsuite>")
    with pytest.raises(ReportUnreadable, match="deeply"):
        parse(b"<testsuite>" * 100_000)
    assert parse(b"<testsuite>" + b"<testcase/>" * 200_000 + b"</testsuite>").counts["tests"] == 200_000


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(alphabet="<>/testsuitecasecoverageSF:DALH,=\"' \n0189", max_size=200).map(str.encode)
)
def test_any_bytes_get_an_answer_or_the_one_error(data: bytes) -> None:
    try:
        report = parse(data)
    except ReportUnreadable:
        return
    assert report.kind in ("junit", "cobertura", "lcov")
    assert report.coverage is None or 0 <= report.coverage <= 100
