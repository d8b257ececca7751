"""runner.reconcile: finds mentions whose webhook never came, for Gitea sends each delivery once and never again.

Its one rule: what is found goes the way of a delivery, under the same key, so that looking can add nothing twice. No
transaction is open while the forge is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Event

from app import queries
from app.clients.gitea import GiteaClient
from app.clients.gitea_types import Notification, Repository, last_number
from app.clients.names import repo_name_ok
from app.edge import connected
from app.gitea_events import Known
from app.gitea_polled import Found, Place
from app.ledger import inbox
from app.ledger import reconcile as ledger
from app.ledger.chain import transaction
from app.queries import Cursor
from app.rules import ServerConfig, most_requests
from app.stitcher.intake import POLL, SOURCE, floods, take
from app.types import Misconfigured, Permanent, Transient
from jobs.runner.look import Look, Looked, Span

log = logging.getLogger("mosaic.reconcile")
FORGE = ledger.FORGE
OVERLAP = timedelta(minutes=5)  # read again each time: a change may become visible later than its own moment says
LISTS = ("comments", "issues")  # of a repository
MOST_PAGES = 100  # of the forge's own lists, 50 lines each
NO_SCOPE_SECONDS = 3600.0  # a token without read:notification is not tried again before

Say = Callable[[str], None]


class Stopped(Exception):
    """This process goes down, or somebody else looks now."""


@dataclass
class Tally:
    """What a round did."""

    repositories: int = 0
    requests: int = 0
    seen: int = 0
    found: int = 0
    waiting: int = 0
    refused: list[str] = field(default_factory=list)


class Reconciler:
    """Looks around on one forge. `keep` is called before each request: it may raise Stopped."""

    def __init__(
        self,
        forge: GiteaClient,
        server: ServerConfig,
        *,
        stop: Event | None = None,
        keep: Callable[[], None] = lambda: None,
        say: Say = log.info,
    ) -> None:
        self.forge, self.server, self.say = forge, server, say
        self.pace = server.reconcile
        self.tally = Tally()
        self.known_pulls: dict[tuple[int, int], datetime] = {}
        self._threads: dict[int, datetime] = {}  # notifications that were followed, as they were then
        self._stop, self._keep = stop or Event(), keep
        self._now: datetime | None = None  # the forge's clock at the last answer
        self._behind = timedelta()  # by how much its Date header is known to lag what it holds
        self._tokens, self._filled = float(self.pace.requests_per_minute), time.monotonic()
        self._quiet_until = 0.0  # monotonic: no notifications until then

    # ------------------------------------------------------------ what a look needs

    def spend(self) -> None:
        """One request: waits while the budget of this minute is used up."""
        while True:
            self._keep()
            now, most = time.monotonic(), float(self.pace.requests_per_minute)
            self._tokens = min(most, self._tokens + (now - self._filled) * most / 60)
            self._filled = now
            if self._tokens >= 1:
                self._tokens -= 1
                self.tally.requests += 1
                return
            if self._stop.wait((1 - self._tokens) * 60 / most):
                raise Stopped

    def heard(self, at: datetime | None, newest: datetime | None) -> None:
        """The forge's own clock: its Date header, unless it holds something later already."""
        if at is not None:
            if newest is not None:
                self._behind = max(self._behind, newest - at)
            self._now = at + self._behind
        elif newest is not None:
            self._now = max(self._now or newest, newest)

    def old_enough(self, moment: datetime) -> bool:
        return self._now is not None and self._now - moment >= timedelta(seconds=self.pace.grace_seconds)

    # ------------------------------------------------------------ the forge's own lists

    def discover(self) -> None:
        """Which repositories the bot can see by now; those that are served are looked at from now on."""
        before = self._cursor("repositories")
        page, seen = 1, 0
        while page <= MOST_PAGES:
            self.spend()
            found = self.forge.lists.repositories(page)
            self.heard(found.at, None)
            with connected():
                for repository in found.items:
                    self._meet(repository, before)
            page, seen = page + 1, seen + len(found.items)
            if not found.items or (found.total is not None and seen >= found.total):
                break
        else:
            log.warning("the bot sees more than %s repositories; those beyond are met by their webhooks", seen)
        if self._now is not None:
            with connected():
                ledger.first_seen(FORGE, ("repositories", "notifications"), self._now)
                ledger.read_to(FORGE, "repositories", self._now)

    def _meet(self, repository: Repository, before: Cursor | None) -> None:
        """A repository made since the last look around counts from its beginning, any other one from now on."""
        if not (self._serves(repository.full_name) and self._now):
            return
        ledger.remember_name(repository.id, repository.full_name, repository.default_branch, repository.private)
        born, last = repository.created_at, before.read_to if before else None
        young = born is not None and last is not None and born > last - OVERLAP
        ledger.first_seen(repository.id, LISTS, born if young and born else self._now)

    def _serves(self, full_name: str) -> bool:
        return repo_name_ok(full_name) and self.server.serves(full_name)

    @staticmethod
    def _cursor(source: str, repository_id: int = FORGE) -> Cursor | None:
        with connected():
            return queries.cursors().get((repository_id, source))

    def notifications(self) -> None:
        """The bot's inbox: one request tells which threads have something new. It is read, never marked as read."""
        cursor = self._cursor("notifications")
        if cursor is None or time.monotonic() < self._quiet_until:
            return
        try:
            threads = self._inbox(cursor.read_to - OVERLAP)
        except Misconfigured as error:
            if error.code != "token_scope":
                raise
            self._quiet_until = time.monotonic() + NO_SCOPE_SECONDS
            log.warning("notifications cannot be read, so that lost mentions are found later: %s", error)
            return
        for thread in sorted(threads, key=lambda one: (one.updated_at, one.id)):
            self._follow(thread, cursor.read_to - OVERLAP)
            if self.old_enough(thread.updated_at):
                self._threads[thread.id] = thread.updated_at
                with connected():
                    ledger.read_to(FORGE, "notifications", thread.updated_at)
        self._threads = {key: at for key, at in self._threads.items() if at >= cursor.read_to - 2 * OVERLAP}

    def _inbox(self, since: datetime) -> list[Notification]:
        threads: list[Notification] = []
        for page in range(1, MOST_PAGES + 1):
            self.spend()
            found = self.forge.lists.notifications(since, page)
            threads += found.items
            self.heard(found.at, max((one.updated_at for one in found.items), default=None))
            if not found.items or (found.total is not None and len(threads) >= found.total):
                break
        return threads

    def _follow(self, thread: Notification, since: datetime) -> None:
        number = last_number(thread.subject_url)
        if thread.subject_type not in ("Issue", "Pull") or not number or not self._serves(thread.repository):
            return
        if self._threads.get(thread.id) == thread.updated_at:
            return
        cursor = self._cursor("comments", thread.repository_id) or self._met_here(thread.repository_id)
        if cursor is None:
            return
        try:
            place = Place(thread.repository_id, thread.repository)
            looked = self._look(place).thread(number, Span(since, cursor.not_before))
        except Permanent as error:
            log.warning("%s#%s cannot be looked at: %s", thread.repository, number, error)
            return
        self._take(looked)

    def _met_here(self, repository_id: int) -> Cursor | None:
        """A notification may name a repository before the list of them does."""
        self.spend()
        repository = self.forge.repository_by_id(repository_id)
        if repository is None:
            return None
        before = self._cursor("repositories")
        with connected():
            self._meet(repository, before)
        return self._cursor("comments", repository_id)

    # ------------------------------------------------------------ one repository

    def places(self) -> list[Place]:
        """The repositories that are served now, the one that was not looked at for longest first."""
        with connected():
            known, cursors = queries.known_repositories(), queries.cursors()
            for repository_id, name in known:
                if not self._serves(name) and (repository_id, LISTS[0]) in cursors:
                    ledger.forget(repository_id)
        return [Place(number, name) for number, name in known if self._serves(name)]

    def visit(self, place: Place, since: datetime | None = None, *, force: bool = False) -> None:
        """Look at one repository, and take what is found. `since` reaches back behind the cursor, for an operator."""
        with connected():
            if self._now is not None:
                ledger.first_seen(place.repository_id, LISTS, self._now)
            cursors = queries.cursors()
        mine = [cursors.get((place.repository_id, source)) for source in LISTS]
        if any(cursor is None or not (cursor.due or force) for cursor in mine):
            return
        comments, issues = (_span(cursor, since) for cursor in mine)
        try:
            looked = self._at(place, comments, issues)
        except Permanent as error:
            self.tally.refused.append(f"{place.full_name}: {error}")
            log.warning("%s cannot be looked at: %s", place.full_name, error)
            with connected():
                ledger.refused(place.repository_id, LISTS, str(error))
            return
        if looked is None:
            return
        self._take(looked)
        self.tally.repositories += 1
        with connected():
            for source, cursor in zip(LISTS, mine, strict=True):
                moment = looked.read_to.get(source, cursor.read_to if cursor else None)
                if moment is not None:
                    ledger.read_to(place.repository_id, source, moment)

    def _at(self, place: Place, comments: Span, issues: Span) -> Looked | None:
        """None: it has a name by now that is not served."""
        try:
            return self._look(place).repository(comments, issues)
        except Permanent as error:
            if error.code != "moved":
                raise
        self.spend()
        repository = self.forge.repository_by_id(place.repository_id)
        if repository is None:
            raise Permanent(f"{place.full_name} is gone, or the bot may not see it any more.", status=404)
        with connected():
            ledger.remember_name(repository.id, repository.full_name, repository.default_branch, repository.private)
            if not self._serves(repository.full_name):
                ledger.forget(repository.id)
                return None
        return self._look(Place(repository.id, repository.full_name)).repository(comments, issues)

    def _look(self, place: Place) -> Look:
        with connected():
            known = Known(*queries.ourselves(place.repository_id))
        if known.self_id is None:
            raise Transient("It is not known yet which account is the bot's own.")
        return Look(self, place, known)

    # ------------------------------------------------------------ taking

    def _take(self, looked: Looked) -> None:
        self.tally.seen += looked.seen
        self.tally.waiting += looked.waiting
        for found in looked.ready:
            with connected():
                self._take_one(found)
        with connected(), transaction():
            for key in looked.ended:
                inbox.release(SOURCE, key, before=looked.began)
        self.known_pulls |= looked.pulls

    def _take_one(self, found: Found) -> None:
        trigger = found.request.trigger
        where = f"{trigger.repository}#{trigger.number}"
        if floods(trigger.actor_id, most_requests(self.server)):
            log.warning("a mention by %s in %s is left: too many requests within an hour", trigger.actor, where)
            return
        taken = take(found.request, found.delivery_id, found.event, found.body, via=POLL)
        if taken is None:
            return
        self.tally.found += 1
        what = f"job {taken.job}" if taken.job else "a command"
        self.say(f"{where}: found a request of {trigger.actor} that no webhook had told ({what})")


def _span(cursor: Cursor | None, since: datetime | None) -> Span:
    if since is not None:
        return Span(since, since)
    assert cursor is not None
    return Span(max(cursor.read_to - OVERLAP, cursor.not_before), cursor.not_before)
