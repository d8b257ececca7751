"""What of a Markdown text counts as plain prose, and that hostile text costs no more than its length."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.commands import parse
from app.markdown import BLOCK, LIMIT, ZERO, normalise, prose, scan, strip_hidden
from app.markdown_inline import SpanKind

FRAGMENTS = [
    "@mosaic cancel",
    "text",
    " ",
    "    ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "> ",
    "- ",
    "1. ",
    "```",
    "``",
    "`",
    "~~~",
    "[",
    "](u)",
    "](",
    '](u "t',
    "]",
    "![",
    "[l]: /u\n",
    "[l]",
    "<!--",
    "-->",
    "<b>",
    "</b>",
    "<code>",
    "</code>",
    "<pre>",
    "</pre>",
    "<blockquote>",
    "</blockquote>",
    "<a b='",
    "# ",
    "---\n",
    "\\",
    "(",
    ")",
    "https://x/",
    "\0",
    "\u200b",
    "é",
]
markdown = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join)

SEEN = [
    "X",
    "a\nX",
    "# X",
    "- [ ] X",
    "- a\n\n  X",
    "- a\n    X",
    "1. a\n2. X",
    "a\n    X",
    "`a` X `b`",
    "`a X",
    "``a` X",
    "\\`X`",
    "```\na\n```\nX",
    "```\na\n````\nX",
    "- ```\n  a\n\nX",
    "> a\n\nX",
    "> ```\nX",
    "> # a\nX",
    "[X]",
    "[a][b] X",
    "[a] (X)",
    "[a](b c X)",
    "[a](b) X",
    "<b>X</b>",
    "<!-- a --> X",
    "<!-- a\n\nb -->\nX",
    "a <!-- b\n\nX",
    "<code>a</code> X",
    "a < b X > c",
    "https://a/b X",
    "[l]: /u\nX",
    "    code\nX",
    "<blockquote>a</blockquote>X",
    "<div>\nX\n</div>",
    "a\n<pre>b</pre>\nX",
    "[^1]: X",
    "***\nX",
    "a\n    > X",
    "-    - a\n    > X",
    "<!--> X",
    "a <!--> X",
    "[a [b](u) X](v)",
    "[![a](u) X",
    ') [a](u "X)',
]
UNSEEN = [
    "`X`",
    "``a ` X``",
    "a `b\nX` c",
    "```\nX\n```",
    "```py\nX",
    "~~~\n```\nX\n~~~",
    "````\n```\nX\n````",
    "   ```\nX\n   ```",
    "- ```\n  X\n  ```",
    "1. a\n   ```\n   X\n   ```",
    "> X",
    ">X",
    "   > X",
    "> > X",
    "- > X",
    "> a\nX",
    "> a\n> ```\n> X",
    "    X",
    "\tX",
    "a\n\n    X",
    "- a\n\n      X",
    "-     X",
    "[X](u)",
    "[a X b](u)",
    "[a](X)",
    "[a](<X>)",
    '[a](u "X")',
    "[a](u 'X')",
    '[a](u ") X")',
    "[a](u (X))",
    "![X](u)",
    "[![X](u)](v)",
    "![X [b](u) c](v)",
    "[X][l]\n\n[l]: /u",
    "[l][X]\n\n[x]: /u",
    "[X]\n\n[x]: /u",
    '[l]: /u "X"',
    "[l]: /u\n'X'",
    "[//]: # (X)",
    "<!-- X -->",
    "<!-- a\n\nX\n\n-->",
    "<!-- X",
    "a <!-- X --> b",
    "<code>X</code>",
    "<code>a <code>X</code> b</code>",
    "<blockquote>\n\nX\n\n</blockquote>",
    "<pre>\n\nX\n\n</pre>",
    "<pre>\nX",
    "<script>X</script>",
    "<a href=u>X</a>",
    "<img alt='X'>",
    '<img title="a > X">',
    "<https://a/X>",
    "https://a/X",
    "www.a.b/X",
    "mailto:a@X",
]


@pytest.mark.parametrize("text", SEEN)
def test_prose_is_seen(text: str) -> None:
    assert "X" in prose(text)


@pytest.mark.parametrize("text", UNSEEN)
def test_what_is_not_prose_is_blanked(text: str) -> None:
    assert "X" not in prose(text)


def test_comments_and_tags_take_no_room_and_all_else_is_opaque() -> None:
    assert prose("a<!-- b -->c <b>d</b> `e`") == f"a{ZERO * 10}c {ZERO * 3}d{ZERO * 4} {BLOCK * 3}"


def test_a_definition_that_no_link_uses_is_a_comment() -> None:
    kinds = [span.kind for span in scan("[used]\n\n[used]: /u\n[unused]: /v")]
    assert kinds == [SpanKind.LINK, SpanKind.DEFINITION, SpanKind.COMMENT]


def test_hidden_characters_are_removed_and_counted() -> None:
    assert strip_hidden("a\u200bb\u00ad\U000e0041c\ufe0f\u3164\x1b\td\n") == ("abc\td\n", 6)
    assert strip_hidden("plain\ttext\n") == ("plain\ttext\n", 0)


def test_line_ends_become_one_kind_and_long_texts_are_cut() -> None:
    assert normalise("a\r\nb\rc\n") == "a\nb\nc\n"
    assert len(normalise("a" * (LIMIT + 5))) == LIMIT


@given(markdown | st.text())
def test_any_text_keeps_its_length_and_its_lines(text: str) -> None:
    seen = prose(text)
    assert len(seen) == len(text)
    assert [at for at, char in enumerate(seen) if char == "\n"] == [at for at, char in enumerate(text) if char == "\n"]
    assert all(new in (old, BLOCK, ZERO) for old, new in zip(text, seen, strict=True))


@given(st.text(alphabet="abc xyz,.:;!?", max_size=60).filter(lambda text: not text.startswith("   ")))
def test_plain_words_are_left_alone(text: str) -> None:
    assert prose(text) == text


# ---------------------------------------------------------------- linear time

UNITS = [
    "`",
    "``",
    "` ``",
    "`a``",
    "<!--",
    "<!-- --",
    "-->",
    "[",
    "]",
    "![",
    "[a](",
    "[a](b",
    '[a](b "',
    "[a](b 'c",
    "[a](<",
    "[a][",
    "[a][b]",
    "[[a]]",
    '<a b="',
    "<a b='",
    "<a b ",
    "<a:",
    "<x@",
    "(",
    "\\",
    "> ",
    ">",
    "- ",
    "  - ",
    "1. ",
    "\n",
    "``` \n",
    "~~~\n",
    "<pre>",
    "<blockquote>",
    "</blockquote>",
    "<a>",
    "</a>",
    "* * ",
    "_ ",
    "=\n",
    "-\n",
    "\t",
    "www.",
    "https://",
    "[a]: b\n",
    "[b]: x\n\n[b]",
    "@mosaic ",
    "x@mosaic",
    "*@mosaic",
    "@mosaic\n",
    "@mosaic cancel\n",
    "@mosaic fix a\n",
    "@mosaic<!-- -->",
    "\0",
    "\u200b@",
    "@mosaic (",
    "**",
]
SHAPES: list[Callable[[int], str]] = [
    lambda n: "[a](b" * (n // 10) + " " * (n // 2) + ")" * (n // 10),
    lambda n: "- " * (n // 4) + "x\n" + "y\n" * (n // 4),
    lambda n: '[a](b "' * (n // 14) + "x" * (n // 2),
    lambda n: "[" * (n // 2) + "]" * (n // 2) + "\n\n[a]: b",
    lambda n: "`" + "".join("`" * (k % 50) + " " for k in range(n // 26)),
    lambda n: "<b>" * (n // 7) + "</b>" * (n // 7),
    lambda n: "@mosaic fix\n" + "> " * (n // 2),
    lambda n: "@mosaic " + " " * n + "x",
    lambda n: "@mosaic " + "*" * n,
    lambda n: "*" * n + "@mosaic",
]


class Counted(str):
    """A text that counts the characters over which searches in it run."""

    searched = 0

    def find(self, *arguments: Any) -> int:
        found = super().find(*arguments)
        self.searched += (found if found >= 0 else _end(self, *arguments)) - arguments[1]
        return found

    def rfind(self, *arguments: Any) -> int:
        found = super().rfind(*arguments)
        self.searched += _end(self, *arguments) - max(found, arguments[1])
        return found


def _end(text: str, sought: str, start: int = 0, end: int | None = None) -> int:
    return len(text) if end is None else end


def lines_run(call: Callable[[], object]) -> int:
    """How many lines of Python `call` runs: a measure of work that no clock disturbs."""
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line" and frame.f_code.co_filename != __file__
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def assert_linear(build: Callable[[int], str]) -> None:
    small, large = Counted(build(1500)), Counted(build(6000))
    for function in (prose, parse):
        few, many = lines_run(lambda f=function: f(small)), lines_run(lambda f=function: f(large))
        assert many <= 5 * few + 2000, f"{function.__name__}: {few} lines for {len(small)}, {many} for {len(large)}"
    assert large.searched <= 5 * small.searched + 20 * len(small)


@pytest.mark.parametrize("unit", UNITS)
def test_work_grows_with_the_length_when_a_piece_repeats(unit: str) -> None:
    assert_linear(lambda n: (unit * n)[:n])
    assert_linear(lambda n: "@mosaic x " + (unit * n)[:n])


@pytest.mark.parametrize("build", SHAPES)
def test_work_grows_with_the_length_for_nested_shapes(build: Callable[[int], str]) -> None:
    assert_linear(build)


@pytest.mark.parametrize("unit", UNITS)
def test_a_text_of_64_kilobytes_is_read_to_its_end(unit: str) -> None:
    text = (unit * LIMIT)[:LIMIT]
    assert len(prose(text)) == LIMIT
    assert isinstance(parse("@mosaic status\n" + text), tuple)
