"""Reads the commands out of what people write: the one grammar of comments, chat and command line.

One rule: a paid task starts only from words that cannot be meant as a control command.

How a mention is read, in this order:
1. Text that a reader does not see as plain prose (code, quotes, links, images, HTML comments) is ignored.
2. `@mosaic` counts where it stands alone: not inside an address or a longer name, not after a backslash.
   The first one on a line counts.
3. The words after it start with a control verb: they fit its grammar and act, or become a DidYouMean.
   `cancel the subscription endpoint is broken` is asked about, never run.
4. They start with a near miss of one (`cancle`): DidYouMean. The exception: a common English word (`parse`, near
   `pause`) starts a task, unless it stands alone or with a job number.
5. Behind `please`, `can you` or in marks (`**cancel**`) the verb acts if all fits; otherwise it is a task, because
   the line does not start with the verb. The same holds for the line below a mention that stands alone.
6. Anything else is `fix` with a task: after a greeting (`Hey @mosaic, …`) the words behind the mention; in the middle
   of a sentence the whole sentence without the mention. Thanks alone ask for nothing.
7. The text of `fix`, `plan`, `ask`, `answer` and `continue` goes on over the following lines up to the next command.
   A mention with nothing around it is `fix` with an empty text: the issue itself is the task.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from urllib.parse import SplitResult, urlsplit

from app import grammar
from app.grammar import FORMS, SYNONYMS, Form, word_set
from app.markdown import normalise, strip_hidden
from app.mention_scan import Mention, find_mentions, without_mention
from app.types import Command, DidYouMean, Verb

Parsed = Command | DidYouMean

LATER_VERBS = frozenset(
    {
        Verb.PLAN,
        Verb.ASK,
        Verb.REVIEW,
        Verb.APPROVE,
        Verb.DENY,
        Verb.VERBOSE,
        Verb.QUIET,
        Verb.CONFIG,
        Verb.ANSWER,
        Verb.LINK,
        Verb.CI,
    }
)  # understood, and answered with "not there yet"

_FREE = (Form.TEXT, Form.QUESTION)  # forms whose text goes on over the following lines
_LINE_LIMIT = 200  # characters of a line that a "did you mean" repeats
_HELLO = word_set("hey hi hello hallo")
_GREETING = _HELLO | word_set("dear yo ok okay so and then also please pls cc fyi well now attn x")
_THANKFUL = word_set("thanks thank thx ty cheers kudos nice great good well awesome perfect excellent cool")
_THANKS = _THANKFUL | word_set(
    "you so much very a lot for the help job work done lgtm super that this it was is and wow fixing fix quick"
)
_ASKING = re.compile(
    r"(?:(?:please|pls|kindly)\b|(?:can|could|would|will) (?:you|u)\b(?: please\b)?)[\s,]*", re.IGNORECASE | re.ASCII
)
# Between the mention and the words: closing marks and punctuation that touch it, spaces, a dash of its own.
_LEAD = re.compile(r"[*_~)\]\"'|]*[:,;.!]*[*_~]*[ \t]*(?:[–—-]+[ \t]+)?")
_MARKED = re.compile(r"([*_~`\"']+)([A-Za-z]+)\1(?=\s|$|[.,:;!?])", re.ASCII)
_MARKS = " \t,;:-–—([*_~#>|+"


def parse(text: str, bot: str = "mosaic") -> tuple[Parsed, ...]:
    """The commands in a comment, in order; `bot` is the login that is mentioned.

    Never raises; takes time linear in the text, of which the first 65,536 characters count.
    """
    return tuple(parsed for _, parsed in _parse_lines(text, bot))


def parse_line(words: str, bot: str = "mosaic") -> Parsed:
    """One command without the mention, as chat and command line send it. Nothing at all, or thanks, is `help`.

    `bot` is the name under which suggestions are spelled; a mention of it at the start is skipped.
    """
    shown, _ = strip_hidden(normalise(words))
    first, _, below = without_mention(shown.strip(), bot).partition("\n")
    if not _words(first) or _is_thanks(first):
        return Command(Verb.HELP)
    return _with_text(_interpret(first.strip(), bot), below, bot)


def new_commands(text: str, previous: str, bot: str = "mosaic") -> tuple[Parsed, ...]:
    """The commands that an edit from `previous` to `text` added.

    A command on an unchanged line is not new. Rewording a task adds no mention, so it asks for nothing: a request is
    new only when there are more of its verb than before; a control command when its verb, job or code is new.
    """
    old, now = _parse_lines(previous, bot), _parse_lines(text, bot)
    lines = Counter(line for line, _ in old)
    growth = Counter(_kind(parsed) for _, parsed in now)
    growth.subtract(_kind(parsed) for _, parsed in old)
    fresh: list[Parsed] = []
    for line, parsed in now:
        if lines[line] > 0:
            lines[line] -= 1
        elif growth[_kind(parsed)] > 0:
            growth[_kind(parsed)] -= 1
            fresh.append(parsed)
    return tuple(fresh)


def _kind(parsed: Parsed) -> tuple[str, int | None, str]:
    if isinstance(parsed, DidYouMean):
        return "?", None, parsed.line
    return parsed.verb, parsed.job, parsed.code


def _parse_lines(text: str, bot: str) -> list[tuple[str, Parsed]]:
    """Each command with the line it stands on, spaces and case evened out."""
    mentions = find_mentions(text, bot)
    asking = [mention for mention in mentions.found if not _is_chatter(mention)]
    ends = [*(mention.start for mention in asking), len(mentions.source)][1:]
    return [
        (_line(mention), _command(mention, mentions.text(mention.below, end), bot))
        for mention, end in zip(asking, ends, strict=True)
    ]


def _line(mention: Mention) -> str:
    return " ".join(f"{mention.before} @ {mention.after}".casefold().split())


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _is_thanks(text: str) -> bool:
    words = _words(text)
    return bool(words) and words[0] in _THANKFUL and _THANKS.issuperset(words)


def _is_chatter(mention: Mention) -> bool:
    """`thanks @mosaic!`, `@mosaic nice work`, `cc @mosaic`: nothing is asked."""
    before, after = _words(mention.before), _words(mention.after)
    if after and not _is_thanks(mention.after):
        return False
    if before:
        return before[0] in _THANKFUL or before[0] in ("cc", "fyi") or (bool(after) and _GREETING.issuperset(before))
    return bool(after)


def _command(mention: Mention, below: str, bot: str) -> Parsed:
    rest = _LEAD.sub("", mention.after, count=1).rstrip()
    if mention.before.rstrip().endswith("(") and rest.endswith(")") and "(" not in rest:
        rest = rest[:-1].rstrip()
    said = [word for word in _words(mention.before) if word not in _GREETING and not word.isdigit()]
    if not _words(rest) or (said and _is_thanks(rest)):
        return _bare(mention, rest, below, bot) if said else _below(mention, below, bot)
    parsed = _interpret(rest, bot)
    if said and parsed == Command(Verb.FIX, rest):
        parsed = Command(Verb.FIX, f"{mention.before.lstrip(_MARKS).rstrip()} {rest}")
    return _with_text(parsed, below, bot)


def _bare(mention: Mention, rest: str, below: str, bot: str) -> Parsed:
    """A mention at the end of a sentence: the sentence is the task."""
    end = "" if _words(rest) else rest.strip(" *_~)")
    return _with_text(Command(Verb.FIX, mention.before.strip(_MARKS) + end), below, bot)


def _below(mention: Mention, below: str, bot: str) -> Parsed:
    """A mention that stands alone: the lines below are the command, or else the issue itself is the task."""
    first, _, more = below.strip().partition("\n")
    if first:
        return _with_text(_interpret(first.strip(), bot, direct=False), more, bot)
    if _HELLO.intersection(_words(mention.before)):
        return DidYouMean(mention.before.strip(), f"@{bot} help")
    return Command(Verb.FIX)


def _with_text(parsed: Parsed, below: str, bot: str) -> Parsed:
    """The task or question goes on over the following lines; a question that is empty even so is asked about."""
    if isinstance(parsed, DidYouMean) or FORMS[parsed.verb] not in (*_FREE, Form.JOB_TEXT):
        return parsed
    whole = replace(parsed, text=f"{parsed.text}\n{below.rstrip()}".strip())
    if FORMS[parsed.verb] is Form.QUESTION and not whole.text:
        return DidYouMean(parsed.verb.value, f"@{bot} {grammar.suggestion(parsed.verb, '')}")
    return whole


def _interpret(words: str, bot: str, direct: bool = True) -> Parsed:
    """One line of words as a command; `direct` = they stand right behind the mention."""
    bare = _MARKED.sub(r"\2", words, count=1) if _MARKED.match(words) else words
    asked = _ASKING.sub("", bare, count=1) if _ASKING.match(bare) else bare
    direct = direct and asked == words
    word, tail = grammar.first_word(asked), grammar.after_first_word(asked)
    verb = grammar.exact(word)
    if verb is Verb.FIX:
        return Command(verb, tail if direct else words)
    if verb and not tail and FORMS[verb] is Form.QUESTION:
        return Command(verb)
    command = grammar.fit(verb, tail) if verb else None
    if command:
        return command
    meant = verb if direct and verb else _guess(word, tail, direct)
    if meant is None:
        return Command(Verb.FIX, words)
    return DidYouMean(words[:_LINE_LIMIT], f"@{bot} {grammar.suggestion(meant, tail)}"[:_LINE_LIMIT])


def _guess(word: str, tail: str, direct: bool) -> Verb | None:
    """The verb that was probably meant by a word that is none."""
    if grammar.exact(word):
        return None
    if word in SYNONYMS:
        return SYNONYMS[word] if grammar.fit(Verb.STATUS, tail) else None
    meant = grammar.near(word)
    if meant is None or word in grammar.ORDINARY:
        return meant if grammar.job_only(tail) else None
    fits = FORMS[meant] not in _FREE and grammar.fit(meant, tail) is not None
    return meant if direct or fits else None


# ---------------------------------------------------------------- issue references

_SHORT = re.compile(r"(?:(?:([\w.-]+)/)?([\w.-]+))?#([1-9][0-9]{0,17})", re.ASCII)
_PATH = re.compile(r"/([\w.-]+)/([\w.-]+)/(?:issues|pulls)/([1-9][0-9]{0,17})/?", re.ASCII)
_DOTS = (".", "..")


def issue_reference(text: str, base_url: str) -> tuple[str | None, int] | None:
    """`#42`, `repo#42`, `owner/repo#42` or the address of an issue on the forge at `base_url`.

    Returns (repository or None, number); None when `text` is anything else, or an address on another host.
    """
    text = text.strip()[:2000]
    match = _SHORT.fullmatch(text)
    if match is None:
        return _from_url(text, base_url)
    owner, repository, number = match.groups()
    if owner in _DOTS or repository in _DOTS:
        return None
    return (f"{owner}/{repository}" if owner else repository), int(number)


def _from_url(text: str, base_url: str) -> tuple[str | None, int] | None:
    here, base = _split(text), _split(base_url)
    if here is None or base is None or _origin(here) != _origin(base) or here.username is not None:
        return None
    prefix = base.path.rstrip("/")
    match = _PATH.fullmatch(here.path[len(prefix) :]) if here.path.startswith(prefix) else None
    if match is None or match[1] in _DOTS or match[2] in _DOTS:
        return None
    return f"{match[1]}/{match[2]}", int(match[3])


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises on a port that is not a number
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
