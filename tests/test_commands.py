"""The grammar of commands: what acts, what is asked about, what is a task, and what is nothing at all."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.commands import LATER_VERBS, issue_reference, new_commands, parse, parse_line
from app.grammar import FORMS, ORDINARY, Form, distance, exact, near
from app.types import Command, DidYouMean, Verb
from tests.test_markdown import markdown

CONTROL = [verb for verb in Verb if verb is not Verb.FIX]
FREE = [verb for verb in CONTROL if FORMS[verb] in (Form.TEXT, Form.QUESTION)]
BASE = "https://git.example.com/forge"


def fix(text: str = "") -> tuple[Command]:
    return (Command(Verb.FIX, text),)


def asked(line: str, suggestion: str) -> tuple[DidYouMean]:
    return (DidYouMean(line, f"@mosaic {suggestion}"),)


# ---------------------------------------------------------------- where a mention counts


@pytest.mark.parametrize(
    "text",
    [
        "@mosaic status",
        "@MOSAIC STATUS",
        "@mosaic: status",
        "@mosaic, status?",
        "@mosaic - status",
        "(@mosaic) status",
        "(@mosaic status)",
        "[@mosaic] status",
        "**@mosaic** status",
        "**@mosaic status**",
        "_@mosaic_ status",
        '"@mosaic" status',
        "- @mosaic status",
        "- [ ] @mosaic status",
        "# @mosaic status",
        "Hey @mosaic, status",
        "@mosaic please status",
        "@mosaic **status**",
        "@mosaic `status`",
        "@mosaic\nstatus",
        "@mosaic\n\n  status please",
        "text before\r\n@mosaic status\r\ntext after",
        "> quoted\n\n@mosaic status",
        "@mo\u200bsaic sta\u00adtus",
        "<!-- a --> @mosaic <!-- cancel --> status",
        "<b>@mosaic</b> status",
        "<details>\n\n@mosaic status\n\n</details>",
    ],
)
def test_a_mention_in_prose_is_a_command(text: str) -> None:
    assert parse(text) == (Command(Verb.STATUS),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mosaic status",
        "user@mosaic.io status",
        "user@mosaic status",
        "user_@mosaic status",
        "a.b@mosaic status",
        "u\u200bser\u00ad@mosaic status",
        "user\u200b@mosaic status",
        "user<!-- x -->@mosaic status",
        "user<b></b>@mosaic status",
        "`x`@mosaic status",
        "@mosaic.io status",
        "@mosaic-dev status",
        "@mosaic_dev status",
        "@mosaic<!-- -->-dev status",
        "@mosaic2 status",
        "@mosaic/team status",
        "@mosaic@mosaic.io status",
        "@mosaiс status",  # a Cyrillic letter
        "@moſaic status",
        "@@mosaic status",
        "/@mosaic status",
        "\\@mosaic status",
        "@mosaic's status",
        "https://git.example.com/@mosaic status-page",
        "`@mosaic status`",
        "```\n@mosaic status\n```",
        "    @mosaic status",
        "> @mosaic status",
        "> On Monday alice wrote:\n@mosaic status",
        "[@mosaic status](u)",
        "![@mosaic status](u)",
        "<!-- @mosaic status -->",
        "<!--\n\n@mosaic status\n\n-->",
        "[//]: # (@mosaic status)",
        "<img alt='@mosaic status'>",
        "<pre>\n@mosaic status\n</pre>",
        "thanks @mosaic!",
        "Thank you, @mosaic",
        "@mosaic thanks a lot!",
        "@mosaic nice work",
        "cc @mosaic",
        "Hi @mosaic, thanks",
    ],
)
def test_anything_else_is_none(text: str) -> None:
    assert parse(text) == ()


def test_another_bot_has_another_name() -> None:
    assert parse("@mosaic status\n@tess.era status", "tess.era") == (Command(Verb.STATUS),)
    assert parse("@tessXera status", "tess.era") == ()
    assert parse("@tess cancle", "tess") == (DidYouMean("cancle", "@tess cancel"),)


# ---------------------------------------------------------------- control verbs


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("continue", Command(Verb.CONTINUE)),
        ("continue please", Command(Verb.CONTINUE)),
        ("continue 42", Command(Verb.CONTINUE, job=42)),
        ("continue job #42 please", Command(Verb.CONTINUE, job=42)),
        ("continue 42 use the other API", Command(Verb.CONTINUE, "use the other API", job=42)),
        ("continue 42: use it, please", Command(Verb.CONTINUE, "use it, please", job=42)),
        ("continue 42 - use it", Command(Verb.CONTINUE, "use it", job=42)),
        ("continue\n\nUse the other API.\nAnd test it.", Command(Verb.CONTINUE, "Use the other API.\nAnd test it.")),
        ("continue 42 use it\nand test", Command(Verb.CONTINUE, "use it\nand test", job=42)),
    ],
)
def test_a_continuation_takes_a_job_and_a_text(words: str, expected: Command) -> None:
    assert parse(f"@mosaic {words}") == (expected,)


@pytest.mark.parametrize("words", ["continue with it", "continue the refactoring", "continue 1.5", "continue 42a x"])
def test_a_text_without_a_job_is_no_continuation(words: str) -> None:
    assert parse(f"@mosaic {words}") == asked(words, "continue")


def test_the_text_of_a_continuation_ends_at_the_next_command() -> None:
    assert parse("@mosaic continue\nmore\n@mosaic status") == (Command(Verb.CONTINUE, "more"), Command(Verb.STATUS))


@pytest.mark.parametrize("verb", [verb for verb in CONTROL if FORMS[verb] is Form.JOB])
@pytest.mark.parametrize("words", ["42", "#42", "job 42", "Job #42", "the job 42", "42 please", "job 42."])
def test_a_job_may_be_named(verb: Verb, words: str) -> None:
    assert parse(f"@mosaic {verb} {words}") == (Command(verb, job=42),)


@pytest.mark.parametrize("verb", [verb for verb in CONTROL if FORMS[verb] is not Form.QUESTION])
@pytest.mark.parametrize("words", ["", ".", "!", "please", "this, please"])
def test_verbs_alone_and_with_courtesy(verb: Verb, words: str) -> None:
    (command,) = parse(f"@mosaic {verb} {words}")
    assert isinstance(command, Command)
    assert (command.verb, command.job, command.code) == (verb, None, "")


@pytest.mark.parametrize("verb", [Verb.APPROVE, Verb.DENY])
def test_codes_and_remarks(verb: Verb) -> None:
    assert parse(f"@mosaic {verb} 1A2b3c4d") == (Command(verb, code="1a2b3c4d"),)
    assert parse(f"@mosaic {verb} 1a2b3c4d: but use  tabs, please") == (
        Command(verb, "but use  tabs, please", code="1a2b3c4d"),
    )
    for wrong in ("1a2b3c4", "1a2b3c4d5", "1a2b3c4g", "1a2b3c4d-x"):
        assert parse(f"@mosaic {verb} {wrong}") == asked(f"{verb} {wrong}", f"{verb} <code> {wrong}")
    assert parse(f"@mosaic {verb} looks good") == asked(f"{verb} looks good", f"{verb} <code> looks good")


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "9" * 19, "9" * 10_000, "٤٢", "42a", "42please", "42 43"])
def test_what_is_no_job_number_is_asked_about(number: str) -> None:
    (answer,) = parse(f"@mosaic cancel {number}")
    assert isinstance(answer, DidYouMean)
    assert answer.suggestion == "@mosaic cancel"


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("cancel the subscription endpoint is broken", "cancel"),
        ("status codes are wrong", "status"),
        ("help me fix this", "help"),
        ("review the login code", "review"),
        ("Config: the parser fails", "config"),
        ("cancle", "cancel"),
        ("cancle 42", "cancel 42"),
        ("cancle the job that hangs", "cancel"),
        ("statsu", "status"),
        ("rety #7", "retry 7"),
        ("aks why is it red?", "ask why is it red?"),
        ("paln the migration", "plan the migration"),
        ("aprove 1a2b3c4d fine", "approve 1a2b3c4d fine"),
        ("lint", "link"),
        ("stats 3", "status 3"),
        ("stop", "cancel"),
        ("abort 42", "cancel 42"),
        ("stop it", "cancel"),
        ("rerun please", "retry"),
        ("hello", "help"),
        ("ask", "ask <text>"),
        ("please cancle", "cancel"),
    ],
)
def test_lines_that_start_like_a_control_verb_are_asked_about(line: str, suggestion: str) -> None:
    assert parse(f"@mosaic {line}") == asked(line, suggestion)


def test_talk_about_a_command_does_not_start_a_task() -> None:
    assert parse("You can write @mosaic retry to try again") == asked("retry to try again", "retry")
    assert parse("hi @mosaic") == asked("hi", "help")


words = st.text(alphabet="abcdefghij XYZ0123456789.,:;!?'#-äß\n", max_size=40)


@given(st.sampled_from(CONTROL), st.sampled_from(["", " ", ": ", ", ", "! "]), words)
def test_a_line_that_starts_with_a_control_verb_is_never_a_paid_task(verb: Verb, joint: str, tail: str) -> None:
    assume(joint or not tail)
    (answer,) = parse(f"@mosaic {verb}{joint}{tail}")
    assert isinstance(answer, DidYouMean) or answer.verb is verb


@given(st.sampled_from([verb for verb in CONTROL if len(verb) > 3]), st.data(), words)
def test_a_mistyped_control_verb_is_never_a_paid_task(verb: Verb, data: st.DataObject, tail: str) -> None:
    at = data.draw(st.integers(0, len(verb) - 2))
    typo = data.draw(
        st.sampled_from(
            [
                verb[:at] + verb[at + 1] + verb[at] + verb[at + 2 :],
                verb[:at] + verb[at + 1 :],
                verb[:at] + verb[at] + verb[at:],
            ]
        )
    )
    assume(typo not in ORDINARY and exact(typo) is None)
    (answer,) = parse(f"@mosaic {typo} {tail}")
    assert isinstance(answer, DidYouMean)


@given(st.sampled_from(CONTROL), words)
def test_a_suggestion_without_a_gap_is_a_command(verb: Verb, tail: str) -> None:
    for answer in parse(f"@mosaic {verb}x {tail}"):
        if isinstance(answer, DidYouMean) and "<" not in answer.suggestion:
            (command,) = parse(answer.suggestion)
            assert isinstance(command, Command)


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("@mosaic", ""),
        ("(@mosaic)", ""),
        ("@mosaic!", ""),
        ("please @mosaic", ""),
        ("@mosaic fix", ""),
        ("@mosaic fix typo", "typo"),
        ("@mosaic FIX: the typo", "the typo"),
        ("@mosaic add a test", "add a test"),
        ("@mosaic please fix this", "please fix this"),
        ("Hey @mosaic can you fix this?", "can you fix this?"),
        ("Could you fix this, @mosaic?", "Could you fix this?"),
        ("The page crashes, @mosaic please take care", "The page crashes, please take care"),
        ("- The page crashes (@mosaic)", "The page crashes"),
        ("Please repair it, @mosaic thanks", "Please repair it"),
        ("@mosaic parse the header", "parse the header"),
        ("@mosaic improve this", "improve this"),
        ("@mosaic rename it", "rename it"),
        ("@mosaic lint the code", "lint the code"),
        ("@mosaic state is lost", "state is lost"),
        ("@mosaic line 42 is wrong", "line 42 is wrong"),
        ("@mosaic cli prints twice", "cli prints twice"),
        ("@mosaic README is outdated", "README is outdated"),
        ("@mosaic retry-after is ignored", "retry-after is ignored"),
        ("@mosaic config.py is broken", "config.py is broken"),
        ("@mosaic `status` is misspelt", "`status` is misspelt"),
        ("@mosaic .env is read twice", ".env is read twice"),
        ("@mosaic --verbose is ignored", "--verbose is ignored"),
        ("@mosaic please cancel orders when the user leaves", "please cancel orders when the user leaves"),
        ("@mosaic stop the leak", "stop the leak"),
        ("@mosaic 42", "42"),
        ("@mosaic <!-- cancel --> do it", "do it"),
    ],
)
def test_tasks(text: str, task: str) -> None:
    assert parse(text) == fix(task)


def test_a_task_goes_on_to_the_next_command() -> None:
    text = """Intro.
@mosaic fix the parser:

- it drops the last byte
```
@mosaic cancel
```
> @mosaic retry

@mosaic status
not part of anything
@mosaic ask
Why was it
written so?
cc @mosaic
"""
    task = "the parser:\n\n- it drops the last byte\n```\n@mosaic cancel\n```\n> @mosaic retry"
    assert parse(text) == (
        Command(Verb.FIX, task),
        Command(Verb.STATUS),
        Command(Verb.ASK, "Why was it\nwritten so?\ncc @mosaic"),
    )


def test_the_lines_below_a_lone_mention_are_the_task() -> None:
    assert parse("@mosaic\n\nStatus codes are wrong.\nSee the log.") == fix("Status codes are wrong.\nSee the log.")
    assert parse("@mosaic\nretry 7\n@mosaic why") == (Command(Verb.RETRY, job=7), Command(Verb.WHY))


def test_one_command_a_line() -> None:
    assert parse("@mosaic status @mosaic cancel") == asked("status @mosaic cancel", "status")
    assert parse("@mosaic fix a @mosaic cancel") == fix("a @mosaic cancel")


def test_only_64_kilobytes_are_read() -> None:
    assert parse(" \n" * 32_000 + "@mosaic status") == (Command(Verb.STATUS),)
    assert parse(" \n" * 33_000 + "@mosaic status") == ()


@given(markdown | st.text())
def test_any_text_can_be_parsed(text: str) -> None:
    for answer in (*parse(text), *parse("@mosaic " + text), parse_line(text)):
        assert isinstance(answer, Command | DidYouMean)
        if isinstance(answer, DidYouMean):
            assert len(answer.line) <= 200
            assert answer.suggestion.startswith("@mosaic ")


@given(st.sampled_from(["@mosaic cancel", "@mosaic fix it", "user@mosaic x", "@mosaic-dev x"]), words)
def test_hidden_characters_within_the_words_change_nothing(start: str, tail: str) -> None:
    line = f"{start} {tail}".replace("\n", " ")
    assert parse("\u200b".join(line)) == parse(line)


def test_hidden_characters_do_not_end_what_a_reader_sees_as_code_or_quote() -> None:
    assert parse("```\nlog\n``\u200b`\n@mosaic cancel\n```") == ()
    assert parse("> quote\n\u200b\n@mosaic cancel") == ()
    assert parse("``a`\u200b` @mosaic cancel ``") == ()
    assert parse("``\u200b` @mosaic status") == (Command(Verb.STATUS),)


# ---------------------------------------------------------------- without the mention


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("", Command(Verb.HELP)),
        ("  \n", Command(Verb.HELP)),
        ("thanks", Command(Verb.HELP)),
        ("status 42", Command(Verb.STATUS, job=42)),
        ("@mosaic status", Command(Verb.STATUS)),
        ("fix the typo\nin line 3", Command(Verb.FIX, "the typo\nin line 3")),
        ("add a test", Command(Verb.FIX, "add a test")),
        ("ask why?", Command(Verb.ASK, "why?")),
        ("cancle 42", DidYouMean("cancle 42", "@mosaic cancel 42")),
        ("cancel the thing", DidYouMean("cancel the thing", "@mosaic cancel")),
        ("ask", DidYouMean("ask", "@mosaic ask <text>")),
    ],
)
def test_parse_line(line: str, command: Command | DidYouMean) -> None:
    assert parse_line(line) == command


# ---------------------------------------------------------------- edits


@pytest.mark.parametrize(
    ("text", "previous", "new"),
    [
        ("@mosaic fix a", "", fix("a")),
        ("@mosaic fix a", "fix a", fix("a")),
        ("@mosaic fix a", "`@mosaic fix a`", fix("a")),
        ("@mosaic fix a", "@mosaic fix a", ()),
        ("Edited.\n@Mosaic  fix a\nmore words", "@mosaic fix a\nwords", ()),
        ("@mosaic fix the typo", "@mosaic fix teh typo", ()),
        ("@mosaic fix a\n@mosaic fix b", "@mosaic fix a", fix("b")),
        ("@mosaic fix b\n@mosaic fix a", "@mosaic fix a", fix("b")),
        ("@mosaic fix a\n@mosaic retry", "@mosaic fix a", (Command(Verb.RETRY),)),
        ("@mosaic cancel 8", "@mosaic cancel 7", (Command(Verb.CANCEL, job=8),)),
        ("@mosaic cancel", "@mosaic cancle", (Command(Verb.CANCEL),)),
        ("@mosaic plan a", "@mosaic fix a", (Command(Verb.PLAN, "a"),)),
        ("@mosaic retry\n@mosaic retry", "@mosaic retry", (Command(Verb.RETRY),)),
        ("", "@mosaic fix a", ()),
        ("@mosaic approve 1a2b3c4d", "@mosaic approve 00000000", (Command(Verb.APPROVE, code="1a2b3c4d"),)),
    ],
)
def test_an_edit_asks_only_for_what_it_adds(text: str, previous: str, new: tuple[Command, ...]) -> None:
    assert new_commands(text, previous) == new


@given(markdown, markdown)
def test_edits_add_nothing_by_themselves(text: str, other: str) -> None:
    assert new_commands(text, text) == ()
    assert new_commands(text, "") == parse(text)
    assert set(new_commands(text, other)) <= set(parse(text))


# ---------------------------------------------------------------- spelling


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("cancel", "cancel", 0),
        ("cancle", "cancel", 1),
        ("cancl", "cancel", 1),
        ("", "ask", 3),
        ("abcdef", "badcfe", 3),
        ("kitten", "sitting", 3),
    ],
)
def test_distance(left: str, right: str, expected: int) -> None:
    assert distance(left, right) == distance(right, left) == expected


def test_ordinary_words_are_those_that_need_the_exception() -> None:
    assert all(exact(word) is None for word in ORDINARY)
    assert {word for word in ORDINARY if near(word) is None} == set()


def test_every_verb_has_a_form_and_later_verbs_do_not_act() -> None:
    assert set(FORMS) == set(Verb)
    assert set(Verb) - LATER_VERBS == {
        Verb.FIX, Verb.STATUS, Verb.CANCEL, Verb.RETRY, Verb.CONTINUE, Verb.WHY, Verb.PAUSE, Verb.RESUME, Verb.HELP,
    }  # fmt: skip


# ---------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#42", (None, 42)),
        (" repo#42 ", ("repo", 42)),
        ("owner/re.po-1#42", ("owner/re.po-1", 42)),
        (f"{BASE}/owner/repo/issues/42", ("owner/repo", 42)),
        (f"{BASE}/owner/repo/pulls/42/", ("owner/repo", 42)),
        (f"{BASE}/owner/repo/issues/42#issuecomment-7", ("owner/repo", 42)),
        (f"{BASE}/owner/repo/issues/42?a=b", ("owner/repo", 42)),
        ("HTTPS://GIT.example.com:443/forge/owner/repo/issues/42", ("owner/repo", 42)),
        ("42", None),
        ("#0", None),
        ("#" + "9" * 19, None),
        ("#٤٢", None),
        ("a/b/c#42", None),
        ("../x#42", None),
        ("see #42", None),
        ("http://git.example.com/forge/owner/repo/issues/42", None),
        ("https://git.example.com:444/forge/owner/repo/issues/42", None),
        ("https://git.example.com/owner/repo/issues/42", None),
        ("https://git.example.com.evil.io/forge/owner/repo/issues/42", None),
        ("https://git.example.com@evil.io/forge/owner/repo/issues/42", None),
        ("https://x@git.example.com/forge/owner/repo/issues/42", None),
        ("https://git.example.com/forgeX/owner/repo/issues/42", None),
        (f"{BASE}/owner/../issues/42", None),
        (f"{BASE}/owner/repo/commits/42", None),
        ("https://[", None),
        ("https://git.example.com:x/forge/owner/repo/issues/42", None),
    ],
)
def test_issue_references(text: str, expected: tuple[str | None, int] | None) -> None:
    assert issue_reference(text, BASE) == expected
    assert issue_reference(text, BASE + "/") == expected


@given(st.text(), st.text())
def test_any_text_can_be_a_reference(text: str, base: str) -> None:
    issue_reference(text, base)
    issue_reference(f"https://{text}", f"https://{base}")
