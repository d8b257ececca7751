"""What each verb may be followed by, and which words look like a mistyped verb.

One rule: words that start with a control verb never become a paid task; they act, or they are asked about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache

from app.types import Command, Verb


def word_set(words: str) -> frozenset[str]:
    """The words between the spaces."""
    return frozenset(words.split())


class Form(StrEnum):
    """The shape of what follows a verb."""

    TEXT = "[text]"
    QUESTION = "<text>"
    NOTHING = ""
    JOB = "[job]"
    JOB_TEXT = "[job] [text]"
    CODE = "[code] [remark]"


FORMS: Mapping[Verb, Form] = {
    Verb.FIX: Form.TEXT,
    Verb.PLAN: Form.TEXT,
    Verb.ASK: Form.QUESTION,
    Verb.ANSWER: Form.QUESTION,
    Verb.REVIEW: Form.NOTHING,
    Verb.STATUS: Form.JOB,
    Verb.CANCEL: Form.JOB,
    Verb.RETRY: Form.JOB,
    Verb.CONTINUE: Form.JOB_TEXT,
    Verb.WHY: Form.JOB,
    Verb.VERBOSE: Form.JOB,
    Verb.APPROVE: Form.CODE,
    Verb.DENY: Form.CODE,
    Verb.QUIET: Form.NOTHING,
    Verb.CONFIG: Form.NOTHING,
    Verb.LINK: Form.NOTHING,
    Verb.CI: Form.NOTHING,
    Verb.PAUSE: Form.NOTHING,
    Verb.RESUME: Form.NOTHING,
    Verb.HELP: Form.NOTHING,
}

# Words of other tools for the same thing. They are asked about when nothing but a job number follows.
SYNONYMS: Mapping[str, Verb] = {
    "stop": Verb.CANCEL,
    "abort": Verb.CANCEL,
    "kill": Verb.CANCEL,
    "halt": Verb.CANCEL,
    "rerun": Verb.RETRY,
    "restart": Verb.RETRY,
    "redo": Verb.RETRY,
    "again": Verb.RETRY,
    "yes": Verb.APPROVE,
    "ok": Verb.APPROVE,
    "lgtm": Verb.APPROVE,
    "accept": Verb.APPROVE,
    "no": Verb.DENY,
    "reject": Verb.DENY,
    "info": Verb.STATUS,
    "ping": Verb.HELP,
    "hello": Verb.HELP,
    "hi": Verb.HELP,
    "commands": Verb.HELP,
    "usage": Verb.HELP,
}

# Common words within a slip or two of a verb: "parse the header" is a task, not a mistyped `pause`.
ORDINARY = word_set("""
    accel ack angel anger answered answers apk approval approved approver approvers approves approx ark as asc
    ash asks asm asn asp ass assume ast awk blink camel canceled cancels cancer candle cause chance channel clan
    coffin conceal confide configs confine confirm contig continued continues defy den deno dens dent dewy heap
    held hell helm helps hemp improve ink kconfig kelp lan lank lick line links lino lint mask newer pan panel
    parcel parse paused pauses pink plain plane plank plans plant plat play presume preview previews prove psk
    pyconfig quilt quit quite readme recuse reduce refuse regime rehome relied relief relies rename renew rescue
    resize result resumed resumes retro reuse reviewed reviewer reviews revise revised revive rink shy sink
    stacks stages stalls stamps stands stars starts startup state stated states static stats statue statuses
    stays stylus task thy treeview tsconfig verbs verse view way webview whey whl who wry yelp
    """)

_JOB = re.compile(r"(?:(?:the\s+)?job\s*)?#?([1-9][0-9]{0,17})", re.IGNORECASE | re.ASCII)
_AFTER_JOB = re.compile(r"[,:;.]*\s+(?:[–—-]+\s+)?(.+)", re.DOTALL)
_CODE = re.compile(r"([0-9a-f]{8})(?:[\s:,;.!]+|$)", re.IGNORECASE | re.ASCII)
_WORD = re.compile(r"([A-Za-z]+)[.,:;!?*_~)\"']*(?=\s|$)", re.ASCII)
_POLITE = word_set("please pls now this it that the job again thanks then ok")
_VERBS = {verb.value: verb for verb in Verb}
_OBJECTS = _POLITE | word_set("pr pull request change changes")


def first_word(words: str) -> str:
    """The first word in lower case, without the punctuation after it; "" when it is not made of letters alone.

    `retry-after`, `config.py` and `plan_id` are names, not verbs.
    """
    match = _WORD.match(words)
    return match[1].lower() if match else ""


def after_first_word(words: str) -> str:
    """What follows the first word, or all of it when there is none."""
    match = _WORD.match(words)
    return words[match.end() :].strip() if match else words


def exact(word: str) -> Verb | None:
    """The verb that is spelled `word`."""
    return _VERBS.get(word)


@lru_cache(maxsize=1024)
def near(word: str) -> Verb | None:
    """The control verb that `word` is a mistyping of: one slip for verbs of three to five letters, two for longer ones.

    A slip is a letter too many, too few, wrong, or swapped with its neighbour.
    """
    if not 2 <= len(word) <= 12:
        return None
    close = [(distance(word, verb), index, verb) for index, verb in enumerate(FORMS) if verb is not Verb.FIX]
    fitting = [entry for entry in close if entry[0] <= _slips(entry[2])]
    return min(fitting)[2] if fitting else None


def _slips(verb: Verb) -> int:
    return 0 if len(verb) < 3 else 1 if len(verb) < 6 else 2


def distance(left: str, right: str) -> int:
    """Damerau-Levenshtein distance (insert, delete, replace, swap of neighbours), for short words."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        earlier, before, row = before, row, [i]
        for j, b in enumerate(right, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                best = min(best, earlier[j - 2] + 1)
            row.append(best)
    return row[-1]


def fit(verb: Verb, words: str) -> Command | None:
    """The command when `words` fit what `verb` may be followed by; None when they do not.

    A few words of courtesy ("cancel this please") are allowed. A remark without its code is not: a mistyped code
    must never count as an approval without one.
    """
    form = FORMS[verb]
    if form is Form.TEXT or (form is Form.QUESTION and words):
        return Command(verb, words)
    if form is Form.CODE:
        code = _CODE.match(words)
        if code:
            return Command(verb, words[code.end() :].strip(), code=code[1].lower())
    if form in (Form.JOB, Form.JOB_TEXT):
        job = _job(words)
        if job is not None:
            return Command(verb, job=job)
    if form is Form.JOB_TEXT:
        match = _JOB.match(words)
        text = _AFTER_JOB.fullmatch(words[match.end() :]) if match else None
        if match and text:
            return Command(verb, text[1].strip(), job=int(match[1]))
    if form is Form.QUESTION:
        return None
    return Command(verb) if _courtesy(verb, words) else None


def _job(words: str) -> int | None:
    match = _JOB.match(words)
    if match is None:
        return None
    tail = words[match.end() :]
    return int(match[1]) if not tail[:1].isalnum() and _only(_POLITE, tail) else None


def _courtesy(verb: Verb, words: str) -> bool:
    return _only(_OBJECTS if verb is Verb.REVIEW else _POLITE, words)


def _only(allowed: frozenset[str], words: str) -> bool:
    return all(word.strip(".,:;!?").lower() in allowed or not word.strip(".,:;!?") for word in words.split())


def job_only(words: str) -> bool:
    """Whether `words` are nothing, or a job number."""
    return not words or bool(_JOB.fullmatch(words))


def suggestion(verb: Verb, tail: str) -> str:
    """The correct form for someone who wrote `verb`, or nearly, and then `tail`."""
    command = fit(verb, tail)
    if command:
        return " ".join(filter(None, (verb.value, command.code, str(command.job or ""), command.text)))
    if FORMS[verb] is Form.CODE:
        return f"{verb} <code> {tail}".strip()
    return f"{verb} <text>" if FORMS[verb] is Form.QUESTION else verb.value
