"""Redaction against the encodings a leak really comes in, and comments that must be harmless whatever they quote."""

from __future__ import annotations

import base64
import codecs
import gzip
import html
import json
import re
import time
import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.neutral import code, fenced, hidden, neutralise, plain, shortened
from app.redact import MASK, Redactor, Stream

SECRET = 'Tr0ub4dor/&3+<"x">é'
RAW = SECRET.encode()
ENCODINGS: dict[str, Callable[[], str]] = {
    "as it is": lambda: SECRET,
    "url": lambda: urllib.parse.quote(SECRET),
    "url, slashes too": lambda: urllib.parse.quote(SECRET, safe=""),
    "form": lambda: urllib.parse.quote_plus(SECRET),
    "html": lambda: html.escape(SECRET),
    "json": lambda: json.dumps(SECRET),
    "json, unicode kept": lambda: json.dumps(SECRET, ensure_ascii=False),
    "hex": RAW.hex,
    "HEX": lambda: RAW.hex().upper(),
    "hex with colons": lambda: RAW.hex(":"),
    "every byte percent-encoded": lambda: "".join(f"%{byte:02X}" for byte in RAW),
    "every byte escaped": lambda: "".join(f"\\x{byte:02x}" for byte in RAW),
    "character references": lambda: "".join(f"&#{ord(char)};" for char in SECRET),
    "reversed": lambda: SECRET[::-1],
    "rot13": lambda: codecs.encode(SECRET, "rot13"),
    "base64": lambda: base64.b64encode(RAW).decode(),
    "base64, one byte before": lambda: base64.b64encode(b"a" + RAW + b"zz").decode(),
    "base64, two bytes before": lambda: base64.b64encode(b"ab" + RAW + b"z").decode(),
    "base64 for urls": lambda: base64.urlsafe_b64encode(RAW).decode(),
    "base64 in lines": lambda: "\n".join(re.findall(".{1,8}", base64.b64encode(RAW).decode())),
    "base32": lambda: base64.b32encode(RAW).decode(),
    "base32, three bytes before": lambda: base64.b32encode(b"abc" + RAW + b"z").decode(),
    "spaces between": lambda: " ".join(SECRET),
    "lines between": lambda: "\n".join(SECRET),
    "invisible characters between": lambda: "\u200b".join(SECRET),
}


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("encoded", ENCODINGS.values(), ids=ENCODINGS)
def test_a_secret_is_found_in_every_usual_encoding(encoded: Callable[[], str]) -> None:
    leak = encoded()
    text = f"before {leak} after"
    found = Redactor([SECRET]).text(text)
    assert MASK in found and found.startswith("before ") and found.endswith(" after")
    middle = leak.strip('"')[6:-6]
    assert middle not in found


@pytest.mark.parametrize(
    "missed",
    [
        base64.b64encode(base64.b64encode(RAW)).decode(),
        base64.b64encode(gzip.compress(RAW, mtime=0)).decode(),
    ],
)
def test_what_is_known_to_be_missed(missed: str) -> None:
    """Published, so that nobody relies on it: the control is that the secret is not in the process."""
    assert Redactor([SECRET]).text(missed) == missed


@pytest.mark.parametrize(
    "token",
    [
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2_" * 6,
        "gta_" + "0f" * 20,
        "sk-ant-api03-" + "x-Y_z" * 8,
        "glpat-" + "a1b2" * 5,
        "AKIA" + "ABCD1234" * 2,
        "xoxb-1234567890-abcdefghij",
        "mos_" + "Ab-_" * 11,
        "AIza" + "a" * 35,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    ],
)
def test_well_known_tokens_need_no_registration(token: str) -> None:
    for text in (f"token={token}", f"({token})", f"https://x/?a%3D{token}", f'{{"k":"{token}"}}'):
        found = Redactor().text(text)
        assert MASK in found and token[6:] not in found


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://bot:hunter2@git.example/x.git", f"https://{MASK}@git.example/x.git"),
        ("Authorization: Bearer abcdef0123456789", f"Authorization: Bearer {MASK}"),
        ("authorization: token abcdef0123456789", f"authorization: token {MASK}"),
        ("'X-Api-Key': 'abcdef0123456789'", f"'X-Api-Key': '{MASK}'"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----\nb", f"a\n{MASK}\nb"),
    ],
)
def test_credentials_are_known_by_their_place(text: str, kept: str) -> None:
    assert Redactor().text(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "risk-assessment-for-the-something-project",
        "npm_config_registry",
        "unexpected token /usr/lib/python3/dist-packages/x.py",
        "git@example.org:a/b.git",
        "https://git@example.org/a",
        "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----",
        "docker run docker",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert Redactor(["docker", "", "  "]).text(text) == text


def test_values_of_any_shape() -> None:
    value = {"a": [SECRET, {"b": (f"x{SECRET}", 1, None, True, 2.5)}], SECRET: b"\xff" + RAW}
    assert Redactor([SECRET]).value(value) == {
        "a": [MASK, {"b": [f"x{MASK}", 1, None, True, 2.5]}],
        MASK: f"\ufffd{MASK}",
    }
    deep: object = SECRET
    for _ in range(50_000):
        deep = [deep]
    assert SECRET not in str(Redactor([SECRET]).value(deep))


def test_a_secret_of_many_lines_is_found_line_by_line() -> None:
    secret = "-----BEGIN KEY-----\nline-one-0123456789\nline-two-0123456789\n-----END KEY-----"
    assert "line-two" not in Redactor([secret]).text("x line-two-0123456789 y")


VISIBLE = st.characters(exclude_categories=("C", "Z", "M"))


@settings(deadline=None)
@given(st.text(VISIBLE, min_size=8, max_size=40), st.text(max_size=60), st.text(max_size=60))
def test_no_registered_secret_comes_through(secret: str, before: str, after: str) -> None:
    assert secret not in Redactor([secret]).text(before + secret + after).replace(MASK, "\0")


PIECES = st.lists(
    st.sampled_from(
        [
            SECRET,
            SECRET[:7],
            SECRET[7:],
            "word ",
            "\n",
            " ",
            "ghp_" + "a1B2" * 9,
            "é",
            "x" * 300,
            base64.b64encode(RAW).decode(),
            " token ",
        ]
    ),
    max_size=30,
)


@settings(deadline=None)
@given(PIECES, st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_a_stream_shows_what_the_whole_text_would(pieces: list[str], sizes: list[int]) -> None:
    text, redactor = "".join(pieces), Redactor([SECRET])
    stream, shown, at = Stream(redactor), [], 0
    for number in range(len(text)):
        size = sizes[number % len(sizes)]
        shown.append(stream.feed(text[at : at + size]))
        at += size
        if at >= len(text):
            break
    shown.append(stream.close())
    joined = "".join(shown)
    assert SECRET not in joined and base64.b64encode(RAW).decode() not in joined and "a1B2" * 9 not in joined
    assert joined == redactor.text(text)


def test_a_stream_waits_for_the_end_of_a_private_key_and_of_a_token() -> None:
    stream = Stream(Redactor())
    shown = stream.feed("a\n-----BEGIN PRIVATE KEY-----\nMIIE") + stream.feed("vQIB\n-----END PRIVATE KEY-----\nb\n")
    assert shown + stream.close() == f"a\n{MASK}\nb\n"
    stream = Stream(Redactor())
    shown = (
        "".join(stream.feed("sk-" + "abcdefgh" * 100) for _ in range(20)) + stream.feed("tail end\n") + stream.close()
    )
    assert shown == f"{MASK} end\n"


def test_without_secrets_a_stream_holds_back_no_finished_line() -> None:
    assert Stream(Redactor()).feed("one line\n") == "one line\n"


# ---------------------------------------------------------------- comments


def visible_prose(text: str) -> str:
    """What stands outside fences and code spans."""
    out, fence = [], ""
    for line in text.split("\n"):
        opened = re.match(r"(`{3,})[^`]*$", line)
        if fence:
            fence = "" if line == fence else fence
        elif opened:
            fence = opened[1]
        else:
            out.append(re.sub(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", "", line))
    return "\n".join(out)


HOSTILE = [
    "hi @alice, closes #12, fixes owner/repo#3 and !4",
    "![x](https://evil.example/p.png?d=1)",
    "[click](https://evil.example)",
    "<img src=https://evil.example/x>",
    "<!-- mosaic:hidden -->",
    "https://evil.example/@bob www.evil.example",
    "- a\n  ```\nb @alice\n```\n@code\n``\n@z\n```\n@alice",
    "~~~\n```\n~~~\n@alice\n```",
    "foo ` bar\n`@alice`",
    "|`a | @alice `|\n|--|--|",
    "```\n```\t\n@alice\n```",
    "```\n \t```\n@alice\n```\n@alice",
    "`a`https://x.example/`@alice`",
    "\\`@alice`",
    "``@alice`",
    "> ```\n> @alice",
    "$`$@alice$`$",
    "&#64;alice &commat;alice",
    "[a]: https://evil.example '\n@alice'",
    "```` ` ````@alice` ```",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_prose_mentions_refers_and_loads_nothing(text: str) -> None:
    prose = visible_prose(neutralise(text))
    assert not re.search(r"@\w|[#!]\d(?!\d*;)|[!\]]\[|\[\w*\]|://|www\.|<|(?<!&)&(?!(amp|lt|#\d+);)", prose), (
        neutralise(text)
    )
    assert "@alice" not in prose


def test_prose_keeps_its_form() -> None:
    text = "# Done\n\n- **one** thing\n- `code @x #1`\n\n1. see `a.py`\n> quote\n\n```python\nprint('@x #1')\n```\nend"
    assert neutralise(text) == text


MARKS = ["`", "``", "```", "\n", " ", "@alice", "|", "\\", "~~~", "<", "https://x.y", "#1", "$", "    ", "> ", "- "]


@settings(deadline=None)
@given(st.lists(st.sampled_from(MARKS), max_size=25))
def test_no_arrangement_of_marks_lets_a_mention_out(parts: list[str]) -> None:
    prose = visible_prose(neutralise("".join(parts)))
    assert "@alice" not in prose and "<" not in prose and "https://" not in prose


def test_hidden_and_terminal_characters_go() -> None:
    text = "\x1b[31mred\x1b[0m\x1b]8;;http://x\x07 link\x9b1m a\u202eb\u200bc\U000e0041\ufe0f\u2066\x00\x08\r\n"
    text += "next\u2028line"
    assert plain(text) == "red link abc\nnext\nline"
    assert all(
        not hidden(char) or char == "\n" for char in plain("".join(map(chr, range(0x3000)))) if char not in "\t\n"
    )
    assert plain("naïve 日本語 🙂 ü\t|") == "naïve 日本語 🙂 ü\t|"


def test_a_fence_cannot_be_closed_from_inside() -> None:
    block = fenced("a\n```\n`````\n@alice")
    fence = block.split("text")[0]
    assert fence == "``````" and block.endswith(f"\n{fence}") and block.count(fence) == 2
    assert len(fenced("x" * 100_000, 1000)) < 1100
    assert code("a`b``c") == "```a`b``c```" and code("`x`") == "`` `x` ``" and code("a\nb") == "`a b`"


def test_shortening_keeps_the_end() -> None:
    short = shortened("first " + "x" * 10_000 + " last", 100)
    assert short.startswith("first ") and short.endswith(" last") and "characters left out" in short
    assert len(neutralise("@" * 70_000)) <= 60_000


BAD = [
    "`",
    "` ",
    "`|",
    "<!--",
    "@",
    "\x1b[",
    "\x1b]",
    "sk-",
    "eyJ",
    "eyJa.",
    "://",
    "token ",
    "-----BEGIN PRIVATE KEY-----",
    "bearer ",
    "a",
    "www.",
    "é\u200b",
    "[](",
    "![",
    "\\",
    "~",
    "authorization: ",
    "&#",
    "x@y:",
    "\n```\n",
]


@pytest.mark.parametrize("unit", BAD)
def test_time_is_linear(unit: str) -> None:
    """Eight times the text may not take sixty times as long: what is quadratic takes sixty-four times."""
    redactor = Redactor([SECRET])

    def work(size: int) -> float:
        text = (unit * size)[:size]
        began = time.process_time()
        for task in (neutralise, fenced, plain, redactor.text, lambda text: neutralise(text, 10**9)):
            task(text)
        return time.process_time() - began

    small = max(min(work(8_000) for _ in range(3)), 0.002)
    assert work(64_000) < 30 * small
