"""The whole practice forge: its records, its git repositories, its hooks, and what follows from a push.

Rule: everything that changes a ref goes through `refs_changed`, so that events come from what git really holds.
"""

from __future__ import annotations

import fnmatch
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

from tests.worlds.gitea import state as s
from tests.worlds.gitea.chores import Chores
from tests.worlds.gitea.deliveries import Deliveries
from tests.worlds.gitea.events import Events
from tests.worlds.gitea.faults import Faults
from tests.worlds.gitea.gitstore import GitStore
from tests.worlds.gitea.payloads_code import CodeShapes

AFTERWARDS = 0.02  # seconds until work in the background starts, e.g. the test whether a PR can be merged


class World:
    """One forge. `url` is set when the server knows its port."""

    def __init__(self, data: Path, admin_token: str, *, allowed_hosts: str = "loopback", utc_offset: int = 1) -> None:
        self.url = ""
        self.version = "1.27.0"
        self.utc_offset = utc_offset
        self.admin_token = admin_token
        self.state = s.State()
        self.git = GitStore(data)
        self.shapes = CodeShapes(self)
        self.events = Events(self)
        self.deliveries = Deliveries(allowed_hosts)
        self.faults = Faults()
        self.chores = Chores(self.report)
        self.stopping = threading.Event()
        self.requests: deque[dict[str, Any]] = deque(maxlen=20000)
        self.errors: list[str] = []  # faults of this program, as tracebacks
        admin = self.state.add_user("root-admin", email="root-admin@forge.invalid", is_admin=True)
        self.state.add_token(admin, "start", ("all",), admin_token)

    def start(self) -> None:
        self.deliveries.start()
        self.chores.start()

    def stop(self) -> None:
        self.stopping.set()
        self.chores.stop()
        self.deliveries.stop()

    def report(self, text: str) -> None:
        """A fault of the practice forge itself: never hidden, always in `errors`."""
        self.errors.append(text)
        sys.stderr.write(text)

    def at_least(self, major: int, minor: int) -> bool:
        """Whether the version that is claimed has a feature."""
        numbers = self.version.split("+")[0].split("-")[0].split(".")
        return (int(numbers[0]), int(numbers[1])) >= (major, minor)

    def idle(self, timeout: float = 10.0) -> bool:
        """Waits until nothing is going on in the background and every delivery has been answered."""
        return self.chores.idle(timeout) and self.deliveries.idle(timeout)

    def protected(self, repo: s.Repo, branch: str) -> bool:
        """Whether a rule keeps writers from pushing to a branch."""
        return any(not push and fnmatch.fnmatch(branch, glob) for glob, push in repo.protected.items())

    # ------------------------------------------------------------ refs

    def refs_changed(self, repo: s.Repo, doer: s.User, only: str | None = None) -> None:
        """Compares the refs with what was known and tells what happened: create and push, push, delete.

        `only` limits the look to one ref: what an API call has just written.
        """
        found = self.git.refs(repo.id)
        names = {only} if only else {*found, *repo.refs}
        for ref in sorted(names):
            before, after = repo.refs.get(ref), found.get(ref)
            if before == after:
                continue
            repo.updated = s.now()
            if after is None:
                del repo.refs[ref]
                self._ref_deleted(repo, doer, ref)
            else:
                repo.refs[ref] = after
                self._ref_moved(repo, doer, ref, before, after)

    def _ref_moved(self, repo: s.Repo, doer: s.User, ref: str, before: str | None, after: str) -> None:
        if before is None:
            self.events.created(repo, doer, ref, after)
        self.events.push(repo, doer, ref, before or s.ZERO_SHA, after)
        for issue in self.open_pulls(repo):
            if issue.pull and ref == f"refs/heads/{issue.pull.head}" and before:
                self._head_moved(repo, issue, doer, before, after)

    def _ref_deleted(self, repo: s.Repo, doer: s.User, ref: str) -> None:
        self.events.deleted(repo, doer, ref)
        for issue in self.open_pulls(repo):
            if issue.pull and ref in {f"refs/heads/{issue.pull.head}", f"refs/heads/{issue.pull.base}"}:
                self.close(issue, doer)

    def open_pulls(self, repo: s.Repo) -> list[s.Issue]:
        return [i for i in repo.issues.values() if i.pull and i.state == "open"]

    def _head_moved(self, repo: s.Repo, issue: s.Issue, doer: s.User, before: str, after: str) -> None:
        """The PR hears of a push later, in the background: `synchronized` trails `push`."""

        def work() -> None:
            with self.state.lock:
                if repo.id in self.state.repos and issue.number in repo.issues and issue.pull:
                    self.refresh_pull(repo, issue)
                    issue.updated = s.now()
                    self.note(issue, doer, "pushed")
                    self.events.synchronized(issue, doer, before, after)

        self.chores.later(AFTERWARDS, work)

    def refresh_pull(self, repo: s.Repo, issue: s.Issue) -> None:
        """Recomputes what depends on the two branches; whether it can be merged comes later still."""
        pull = issue.pull
        head, base = (repo.branch(pull.head), repo.branch(pull.base)) if pull else (None, None)
        if pull is None or head is None or base is None:
            return
        pull.head_sha, pull.mergeable = head, False
        pull.merge_base = self.git.merge_base(repo.id, base, head) or base
        self.git.set_ref(repo.id, f"refs/pull/{issue.number}/head", head)

        def check() -> None:
            clean = self.git.merge_tree(repo.id, base, head) is not None
            with self.state.lock:
                if pull.head_sha == head:
                    pull.mergeable = clean

        self.chores.later(AFTERWARDS, check)

    # ------------------------------------------------------------ things that several calls do

    def note(self, issue: s.Issue, doer: s.User, text: str, **fields: Any) -> s.Comment:
        """A line of the timeline: takes a comment id, but is no text comment."""
        return self.add_comment(issue, doer, text, "system", **fields)

    def note_labels(self, issue: s.Issue, doer: s.User, before: list[int], after: list[int]) -> None:
        """One line for each label that came or went."""
        for label in [n for n in before if n not in after] + [n for n in after if n not in before]:
            self.note(issue, doer, "changed labels", event="label", about=label, removed=label in before)

    def note_assignee(self, issue: s.Issue, doer: s.User, user_id: int, gone: bool) -> None:
        text = "unassigned" if gone else "assigned"
        self.note(issue, doer, text, event="assignees", about=user_id, removed=gone)

    def add_comment(self, issue: s.Issue, doer: s.User, body: str, kind: str, **fields: Any) -> s.Comment:
        number = self.state.next_id("comment")
        comment = s.Comment(number, issue.repo_id, issue.number, doer.id, body, kind, **fields)
        self.state.comments[number] = comment
        return comment

    def close(self, issue: s.Issue, doer: s.User) -> None:
        self.set_state(issue, doer, "closed")

    def set_state(self, issue: s.Issue, doer: s.User, value: str) -> None:
        """Closes or opens again; nothing is told when it already is so."""
        if issue.state == value:
            return
        issue.state, issue.updated = value, s.now()
        issue.closed = s.now() if value == "closed" else None
        self.note(issue, doer, value)
        self.events.thread(issue, doer, "", "closed" if value == "closed" else "reopened", "author")

    def notify(self, issue: s.Issue, doer: s.User, mentioned: set[int], comment: s.Comment | None = None) -> None:
        """Unread notifications for the owner, for who takes part, and for who was mentioned; never for the doer."""
        repo = self.state.repos[issue.repo_id]
        writers = {c.user_id for c in self.state.comments_of(issue, "plain", "code", "review")}
        people = {repo.owner_id, issue.user_id, *issue.assignees, *writers, *mentioned} - {doer.id}
        for user_id in people:
            user = self.state.users.get(user_id)
            if user is None or user.is_org or not self.state.can(user, repo, "read"):
                continue
            known = next(
                (
                    n
                    for n in self.state.notifications.values()
                    if (n.user_id, n.repo_id, n.number) == (user_id, repo.id, issue.number)
                ),
                None,
            )
            if known is None:
                known = s.Notification(self.state.next_id("notification"), user_id, repo.id, issue.number)
                self.state.notifications[known.id] = known
            known.unread, known.updated, known.comment_id = True, s.now(), comment.id if comment else None
