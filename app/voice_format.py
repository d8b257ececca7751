"""How numbers, names and foreign words are written in the texts that leave us.

One rule: whatever comes from outside passes through here or through app.neutral before it is put into a sentence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from app import neutral
from app.types import REASONS, GateResult, Job, JobStatus, Reason, Verb

TITLE_LIMIT = 255  # characters of a title or status description that Gitea stores
_LOGIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,38}[A-Za-z0-9_])?", re.ASCII)
_DRAFT = re.compile(r"(?:wip:|\[wip\]|draft:)\s*", re.IGNORECASE)
_SKIP_CI = re.compile(r"\[\s*(?:skip ci|ci skip|no ci|skip actions|actions skip)\s*\]", re.IGNORECASE)
_REFERENCE = re.compile(r"https?://|[#!](?=[0-9])", re.IGNORECASE)
_MENTION = re.compile(r"(?<![^\W_])@(?=\w)")


def one_line(text: str, limit: int) -> str:
    """`text` on one line without control and format characters, cut at `limit` characters."""
    shown = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text[: limit * 4])
    flat = " ".join(shown.split())
    return flat if len(flat) <= limit else flat[: limit - 1].rstrip() + "…"


def said(text: str, limit: int = 300) -> str:
    """Foreign words inside a sentence of ours."""
    return _no_marker(neutral.neutralise(one_line(text, limit)))


def code(text: str, limit: int = 200) -> str:
    """Foreign words as a code span that they cannot close: nothing in it mentions anyone or means anything."""
    return _no_marker(neutral.code(one_line(text, limit)))


def _no_marker(safe: str) -> str:
    """Code may hold `<!--` unharmed, but our own markers are found by their text, so nobody else may write one."""
    return safe.replace("<!--", "<! --")


def cell(text: str) -> str:
    """A piece of Markdown inside a table cell."""
    return text.replace("|", "\\|")


def title(text: str, limit: int = TITLE_LIMIT) -> str:
    """Foreign words as a title or commit subject.

    Gitea reads references, closing words and CI marks there and knows no escaping: their signs are taken out, and
    those of mentions.
    """
    flat = _MENTION.sub("", _SKIP_CI.sub(" ", _REFERENCE.sub(" ", one_line(text, 4 * limit))))
    while _DRAFT.match(flat.lstrip()):
        flat = _DRAFT.sub("", flat.lstrip(), count=1)
    return one_line(flat, limit)


def duration(seconds: float) -> str:
    """`45s`, `6m 12s`, `1h 05m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def brief_duration(seconds: float) -> str:
    """As `duration`, with a tenth below ten seconds: the time of a gate."""
    return f"{seconds:.1f}s" if 0 <= seconds < 9.95 else duration(seconds)


def short(number: float) -> str:
    """`950`, `31k`, `1.2M`."""
    if number < 1000:
        return str(int(number))
    return f"{number / 1000:.0f}k" if number < 999_500 else f"{number / 1e6:.1f}M"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def spent(job: Job) -> str:
    """`31k tokens · $0.42`; "" before anything was spent."""
    parts = [f"{short(job.tokens)} tokens"] if job.tokens else []
    if job.cost_usd > 0:
        parts.append(f"${job.cost_usd:.2f}")
    return " · ".join(parts)


def login(job: Job) -> str:
    """The requester's login on the forge; "" when the request came from elsewhere or the name is odd."""
    source, _, name = job.requester.partition(":")
    return name if source == "gitea" and _LOGIN.fullmatch(name) else ""


def requester(job: Job) -> str:
    """Who asked, without notifying them."""
    name = login(job)
    return code(name) if name else who(job.requester)


def who(actor: str) -> str:
    """An actor of the ledger. Under which account the operator sits at the machine is nobody's business."""
    return "the operator" if actor.startswith("cli:") else code(actor)


def reason_of(job: Job) -> Reason | None:
    """Why the job ends; known a little before the job is terminal."""
    return REASONS.get(job.reason) if job.reason else None


def outcome(job: Job) -> JobStatus:
    """The state to show: the outcome as soon as it is known."""
    reason = reason_of(job)
    return reason.status if reason else job.status


def addressed(text: str, bot: str) -> str:
    """Our own text with the commands spelled for this bot's login."""
    return text.replace("`@mosaic ", f"`@{bot} ")


def command(verb: Verb | str, bot: str) -> str:
    return f"`@{bot} {verb}`"


def counts(gate: GateResult) -> str:
    """`2 of 40 tests failed`, `40 tests`, `coverage 81.5 %`; "" when nothing was counted."""
    parts = [_tests(gate.counts)] if gate.counts.get("tests") else []
    if gate.coverage is not None:
        parts.append(f"coverage {gate.coverage:.1f} %")
    return ", ".join(parts)


def _tests(found: Mapping[str, int]) -> str:
    total, bad = found["tests"], found.get("failures", 0) + found.get("errors", 0)
    text = f"{bad} of {plural(total, 'test')} failed" if bad else plural(total, "test")
    skipped = found.get("skipped", 0)
    return f"{text}, {skipped} skipped" if skipped else text


def verdict(gate: GateResult) -> str:
    """`exit code 1`, `time limit reached`, `killed`."""
    if gate.timed_out:
        return "time limit reached"
    return "no exit code" if gate.exit_code is None else f"exit code {gate.exit_code}"


def mark(passed: bool, required: bool = True) -> str:
    return "✅" if passed else "❌" if required else "⚠️"


def joined_lines(*blocks: str) -> str:
    """Paragraphs with an empty line between them; empty ones are left out."""
    return "\n\n".join(block for block in blocks if block)


def bullets(rows: Iterable[str], limit: int, total: int) -> str:
    """A list of at most `limit` of `total` rows, with a last line that counts the rest."""
    shown = [f"- {row}" for _, row in zip(range(limit), rows, strict=False)]
    if total > limit:
        shown.append(f"- … and {total - limit} more")
    return "\n".join(shown)
