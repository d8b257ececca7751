"""One look at one repository: what was asked there that nobody told us. It reads the forge and decides nothing else.

Own words are dropped first, then what is older than our first look, then what is known; only for the rest is the forge
asked for details.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

from app import gitea_polled as polled
from app import queries
from app.clients.gitea import GiteaClient
from app.clients.gitea_activity import Happening, Review
from app.clients.gitea_lists import Page
from app.clients.gitea_types import Comment, Issue
from app.edge import connected
from app.gitea_events import Known
from app.gitea_polled import Found, Place
from app.types import Command, Verb
from jobs.runner.windows import Dated, Read, read_window

T = TypeVar("T")
D = TypeVar("D", bound=Dated)


@dataclass(frozen=True, slots=True)
class Span:
    """From when on a list is read, and what is older than our concern. Both are moments of the forge's."""

    since: datetime
    not_before: datetime

    def new(self, moment: datetime) -> bool:
        """Whether something of that moment can only be known if it was told since the last look."""
        return moment >= max(self.since, self.not_before)


@dataclass
class Looked:
    """What one look brought. `ready` is in the order in which it was asked."""

    began: datetime  # the database's clock before the forge was asked
    ready: list[Found] = field(default_factory=list)
    waiting: int = 0  # too young: their webhooks may still come
    seen: int = 0  # texts that were looked at
    read_to: dict[str, datetime] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)  # keys of assignments that are over
    pulls: dict[tuple[int, int], datetime] = field(default_factory=dict)  # whose reviews need no look until they change


class Hands(Protocol):
    """What a look needs of whoever looks: the budget, the forge's clock, patience."""

    forge: GiteaClient
    known_pulls: dict[tuple[int, int], datetime]

    def spend(self) -> None:
        """Wait until one more request may be made."""

    def heard(self, at: datetime | None, newest: datetime | None) -> None:
        """The forge's clock stood there, and it has something of that moment."""

    def old_enough(self, moment: datetime) -> bool:
        """Whether its webhook would have come by now."""


@dataclass
class Look:
    hands: Hands
    place: Place
    known: Known

    # ------------------------------------------------------------ a whole repository, a single thread

    def repository(self, comments: Span, issues: Span) -> Looked:
        """Everything since the cursors. Both lists are taken up to one moment, so that the order holds."""
        began = _database_clock()
        threads = read_window(self._counted(self.hands.forge.lists.issues), issues.since)
        talk = read_window(self._counted(self.hands.forge.lists.comments), comments.since)
        ends = [end for end in (threads.end, talk.end) if end is not None]
        horizon = min(ends) if ends else None
        looked = Looked(began, seen=len(threads.items) + len(talk.items))
        for source, newest in (("issues", threads.newest), ("comments", talk.newest)):
            if moments := [moment for moment in (newest, horizon) if moment is not None]:
                looked.read_to[source] = min(moments)
        found = [*self._of_issues(threads.items, issues, looked), *self._of_comments(talk.items, comments)]
        return self._sorted(looked, found, horizon)

    def thread(self, number: int, span: Span) -> Looked:
        """One issue or pull request, which a notification named."""
        began = _database_clock()
        issue = self._issue(number)
        if issue is None:
            return Looked(began)
        self.hands.spend()
        talk = self.hands.forge.lists.issue_comments(self.place.full_name, number, span.since)
        self.hands.heard(talk.at, issue.updated_at)
        looked = Looked(began, seen=1 + len(talk.items))
        found = [*self._of_issues((issue,), span, looked), *self._of_comments(talk.items, span, issue)]
        return self._sorted(looked, found, None)

    def _counted(self, read: Callable[[str, datetime, datetime | None, int], Page[D]]) -> Read[D]:
        def page(since: datetime, before: datetime | None, number: int) -> Page[D]:
            self.hands.spend()
            found = read(self.place.full_name, since, before, number)
            self.hands.heard(found.at, max((item.updated_at for item in found.items), default=None))
            return found

        return page

    def _sorted(self, looked: Looked, found: Iterable[Found], horizon: datetime | None) -> Looked:
        for one in sorted(found, key=lambda one: (one.moment, one.request.trigger.object_id)):
            if horizon is not None and one.moment > horizon:
                looked.pulls.clear()  # the next look reads on from there
            elif self.hands.old_enough(one.moment):
                looked.ready.append(one)
            else:
                looked.waiting += 1
                looked.pulls.clear()
        return looked

    # ------------------------------------------------------------ comments

    def _of_comments(self, comments: Iterable[Comment], span: Span, issue: Issue | None = None) -> Iterator[Found]:
        asking = [one for one in comments if self._may_count(one, span) and polled.asks(one.body, self.known)]
        for comment in self._unknown(asking, polled.comment_key):
            before = None
            if comment.updated_at != comment.created_at:
                skip, before = self._edit(comment, span)
                if skip:
                    continue
            thread = issue or self._issue(comment.number)
            found = polled.comment(self.place, thread, comment, self.known, before) if thread else None
            if found and not (_commands_only(found) and self._reacted(comment.number, comment.id)):
                yield found

    def _may_count(self, comment: Comment, span: Span) -> bool:
        return comment.user.id > 0 and not self._own(comment.user.id) and comment.created_at >= span.not_before

    def _edit(self, comment: Comment, span: Span) -> tuple[bool, str | None]:
        """(leave it, the text in which it was a request already). An edit counts for what it adds."""
        with connected():
            before = queries.last_text("comment", comment.id)
        if before is not None:
            return not polled.asks_anew(comment.body, before, self.known), before
        if span.new(comment.created_at):
            return False, None
        # Its first text was nobody's request, or it was answered long ago.
        return self._reacted(comment.number, comment.id), None

    def _reacted(self, number: int, comment: int | None) -> bool:
        """Commands alone make no job that is remembered for ever; our 👀 on them is."""
        assert self.known.self_id is not None
        self.hands.spend()
        return self.hands.forge.lists.reacted(self.place.full_name, number, comment, self.known.self_id)

    # ------------------------------------------------------------ issues

    def _of_issues(self, issues: Iterable[Issue], span: Span, looked: Looked) -> Iterator[Found]:
        threads = list(issues)
        with connected():
            own = queries.own_pulls(self.place.repository_id) if any(one.is_pull for one in threads) else frozenset()
        plain = [one for one in threads if not one.is_pull]
        yield from self._opened(plain, span)
        with connected():
            met = queries.known_requests([polled.assigned_key(one) for one in plain])
        for issue in plain:
            yield from self._silent(issue, span, polled.assigned_key(issue) in met, looked)
        for issue in threads:
            if issue.is_pull and issue.number in own and issue.state == "open":
                yield from self._reviews(issue, span, looked)

    def _opened(self, issues: list[Issue], span: Span) -> Iterator[Found]:
        asking = [
            one
            for one in issues
            if span.new(one.created_at)
            and one.user.id > 0
            and not self._own(one.user.id)
            and polled.asks(polled.words_of(one), self.known)
        ]
        for issue in self._unknown(asking, polled.opened_key):
            found = polled.opened(self.place, issue, self.known)
            if found and not (_commands_only(found) and self._reacted(issue.number, None)):
                yield found

    def _silent(self, issue: Issue, span: Span, met: bool, looked: Looked) -> Iterator[Found]:
        """Assignment and label: the issue says that it is so, its timeline who did it and when."""
        mine = any(self._own(user.id) for user in issue.assignees)
        wanted = self.known.trigger_label.lower()
        labelled = any(label.name.lower() == wanted for label in issue.labels)
        if met and not mine:
            looked.ended.append(polled.assigned_key(issue))
        if not (labelled or (mine and not met)):
            return
        lines = self._timeline(issue, span)
        if mine and not met:
            done = _last(lines, lambda line: line.kind == "assignees" and self._own(line.assignee))
            if done and self._counts(done, span):
                yield from _some(polled.assigned(self.place, issue, done.user, done.at, self.known))
        if labelled:
            done = _last(lines, lambda line: line.kind == "label" and line.label.lower() == wanted)
            if done and self._counts(done, span):
                found = polled.labeled(self.place, issue, done.user, done.at, self.known)
                yield from self._unknown(list(_some(found)), lambda one: one.request.dedup_key)

    def _counts(self, line: Happening, span: Span) -> bool:
        return not line.removed and line.user.id > 0 and not self._own(line.user.id) and span.new(line.at)

    def _timeline(self, issue: Issue, span: Span) -> tuple[Happening, ...]:
        self.hands.spend()
        return self.hands.forge.lists.timeline(
            self.place.full_name, issue.number, max(span.since, span.not_before)
        ).items

    # ------------------------------------------------------------ reviews of our own pull requests

    def _reviews(self, issue: Issue, span: Span, looked: Looked) -> Iterator[Found]:
        """Reviews have no webhook that says enough, and their line comments have none at all."""
        key = (self.place.repository_id, issue.number)
        if key in self.hands.known_pulls and self.hands.known_pulls[key] >= issue.updated_at:
            return
        for review in self._all_reviews(issue.number):
            if review.state != "PENDING" and self._review_counts(review, span):
                yield from _some(self._review(issue, review))
            if review.lines:
                self.hands.spend()
                lines = self.hands.forge.lists.review_lines(self.place.full_name, issue.number, review.id).items
                yield from self._of_comments(lines, span, issue)
        if self.hands.old_enough(issue.updated_at):
            looked.pulls[key] = issue.updated_at

    def _review_counts(self, review: Review, span: Span) -> bool:
        mine = review.user.id <= 0 or self._own(review.user.id)
        return not mine and span.new(review.submitted_at) and polled.asks(review.body, self.known)

    def _review(self, issue: Issue, review: Review) -> Found | None:
        fresh = self._unknown([review], polled.review_key)
        return polled.review(self.place, issue, review, self.known) if fresh else None

    def _all_reviews(self, number: int) -> Iterator[Review]:
        page, seen = 1, 0
        while True:
            self.hands.spend()
            found = self.hands.forge.lists.reviews(self.place.full_name, number, page)
            yield from found.items
            seen, page = seen + len(found.items), page + 1
            if not found.items or (found.total is not None and seen >= found.total):
                return

    # ------------------------------------------------------------ shared

    def _own(self, user_id: int) -> bool:
        return user_id == self.known.self_id

    def _issue(self, number: int) -> Issue | None:
        if not number:
            return None
        self.hands.spend()
        return self.hands.forge.issue(self.place.full_name, number)

    def _unknown(self, items: Sequence[T], key: Callable[[T], str]) -> list[T]:
        keys = {key(item): item for item in items}
        if not keys:
            return []
        with connected():
            met = queries.known_requests(keys)
        return [item for name, item in keys.items() if name not in met]


def _database_clock() -> datetime:
    with connected():
        return queries.now()


def _commands_only(found: Found) -> bool:
    return not any(isinstance(one, Command) and one.verb is Verb.FIX for one in found.request.commands)


def _last(lines: Iterable[Happening], fits: Callable[[Happening], bool]) -> Happening | None:
    return max((line for line in lines if fits(line)), key=lambda line: line.at, default=None)


def _some(found: Found | None) -> Iterator[Found]:
    if found is not None:
        yield found
