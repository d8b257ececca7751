"""What the practice Gitea knows: plain records in memory, behind one lock; the git data is in real bare repositories.

Rule: a record is changed only while `State.lock` is held.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

ZERO_SHA = "0" * 40
LEVELS = ("none", "read", "write", "admin", "owner")


def now() -> int:
    """Gitea keeps whole seconds."""
    return int(time.time())


@dataclass
class User:
    """A person, a bot or an organisation: they share one table and one name space."""

    id: int
    login: str
    email: str
    full_name: str = ""
    password: str = ""
    is_admin: bool = False
    is_org: bool = False
    members: set[int] = field(default_factory=set)  # owners of the organisation
    created: int = field(default_factory=now)


@dataclass
class Token:
    id: int
    user_id: int
    name: str
    secret: str
    scopes: tuple[str, ...]
    created: int = field(default_factory=now)


@dataclass
class Label:
    id: int
    name: str
    color: str
    description: str = ""
    exclusive: bool = False


@dataclass
class Milestone:
    id: int
    title: str
    description: str = ""
    state: str = "open"
    created: int = field(default_factory=now)


@dataclass
class Pull:
    """The part of a pull request that an issue does not have; `id` is not the issue's id."""

    id: int
    base: str
    head: str
    head_sha: str  # the last one seen; used once the branch is gone
    merge_base: str
    mergeable: bool = False  # an asynchronous check sets it
    merged_at: int | None = None
    merge_sha: str | None = None
    merged_by: int | None = None
    reviewers: list[int] = field(default_factory=list)


@dataclass
class Issue:
    id: int
    repo_id: int
    number: int
    user_id: int
    title: str
    body: str
    state: str = "open"
    locked: bool = False
    labels: list[int] = field(default_factory=list)
    milestone: int | None = None
    assignees: list[int] = field(default_factory=list)
    created: int = field(default_factory=now)
    updated: int = field(default_factory=now)
    closed: int | None = None
    content_version: int = 0
    pull: Pull | None = None


@dataclass
class Comment:
    """`kind`: plain; review (text of a review); code (a line comment or a reply to one); system (a timeline note)."""

    id: int
    repo_id: int
    number: int
    user_id: int
    body: str
    kind: str = "plain"
    review_id: int | None = None
    path: str = ""
    line: int = 0
    old_line: int = 0
    commit_id: str = ""
    event: str = ""  # of a system comment: what the timeline calls it
    about: int = 0  # … and the id of the label, or of who was assigned
    removed: bool = False
    created: int = field(default_factory=now)
    updated: int = field(default_factory=now)


@dataclass
class Review:
    id: int
    repo_id: int
    number: int
    user_id: int
    state: str  # PENDING APPROVED REQUEST_CHANGES COMMENT
    body: str
    commit_id: str
    submitted: int = field(default_factory=now)


@dataclass
class CommitStatus:
    """`id` is the row id (what a webhook says), `index` counts per sha (what the API says)."""

    id: int
    index: int
    repo_id: int
    sha: str
    state: str
    context: str
    target_url: str
    description: str
    creator_id: int
    created: int = field(default_factory=now)


@dataclass
class Hook:
    """`owner` is the id of the repository, or of the organisation, or 0 for a system hook."""

    id: int
    level: str  # repository organization system default
    owner: int
    url: str
    content_type: str
    secret: str
    events: set[str]
    active: bool
    branch_filter: str = ""
    authorization: str = ""
    created: int = field(default_factory=now)
    updated: int = field(default_factory=now)


@dataclass
class Notification:
    id: int
    user_id: int
    repo_id: int
    number: int
    comment_id: int | None = None
    unread: bool = True
    pinned: bool = False
    updated: int = field(default_factory=now)


@dataclass
class Repo:
    id: int
    owner_id: int
    name: str
    private: bool = False
    description: str = ""
    default_branch: str = "main"
    archived: bool = False
    created: int = field(default_factory=now)
    updated: int = field(default_factory=now)
    collaborators: dict[int, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # what the last look at the git repository found
    last_number: int = 0
    issues: dict[int, Issue] = field(default_factory=dict)
    labels: dict[int, Label] = field(default_factory=dict)
    milestones: dict[int, Milestone] = field(default_factory=dict)
    reactions: dict[tuple[str, int], list[tuple[int, str, int]]] = field(default_factory=lambda: defaultdict(list))
    protected: dict[str, bool] = field(default_factory=dict)  # branch glob -> may a writer push
    push_lock: threading.Lock = field(default_factory=threading.Lock)

    def branch(self, name: str) -> str | None:
        """The sha of a branch."""
        return self.refs.get(f"refs/heads/{name}")


GHOST = User(-1, "Ghost", "ghost@invalid")


class State:
    """All records. Numbers of different kinds start far apart, so that code that mixes two of them fails at once."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users: dict[int, User] = {}
        self.tokens: dict[str, Token] = {}
        self.repos: dict[int, Repo] = {}
        self.redirects: dict[tuple[int, str], int] = {}
        self.comments: dict[int, Comment] = {}
        self.reviews: dict[int, Review] = {}
        self.statuses: list[CommitStatus] = []
        self.hooks: dict[int, Hook] = {}
        self.notifications: dict[int, Notification] = {}
        self._ids = {
            kind: itertools.count(start)
            for kind, start in {
                "user": 1, "token": 50, "repo": 11, "issue": 301, "pull": 701, "comment": 1001, "review": 501,
                "label": 201, "milestone": 251, "status": 9001, "hook": 31, "notification": 401,
            }.items()
        }  # fmt: skip

    def next_id(self, kind: str) -> int:
        return next(self._ids[kind])

    def user(self, user_id: int) -> User:
        """The user, or the ghost that stands in for a deleted one."""
        return self.users.get(user_id, GHOST)

    def user_by_name(self, login: str) -> User | None:
        return next((user for user in self.users.values() if user.login.lower() == login.lower()), None)

    def repo_by_name(self, owner: User, name: str) -> Repo | None:
        return next((r for r in self.repos.values() if r.owner_id == owner.id and r.name.lower() == name.lower()), None)

    def add_user(self, login: str, **fields: object) -> User:
        user = User(self.next_id("user"), login, **fields)  # type: ignore[arg-type]
        self.users[user.id] = user
        return user

    def add_token(self, user: User, name: str, scopes: tuple[str, ...], secret: str | None = None) -> Token:
        token = Token(self.next_id("token"), user.id, name, secret or secrets.token_hex(20), scopes)
        self.tokens[token.secret] = token
        return token

    def full_name(self, repo: Repo) -> str:
        return f"{self.user(repo.owner_id).login}/{repo.name}"

    def comments_of(self, issue: Issue, *kinds: str) -> list[Comment]:
        """The comments of an issue in the order of their ids."""
        return [
            c
            for c in self.comments.values()
            if c.repo_id == issue.repo_id and c.number == issue.number and c.kind in kinds
        ]

    def level(self, user: User | None, repo: Repo) -> str:
        """What `user` may do with `repo`: one of LEVELS."""
        if user is not None:
            owner = self.user(repo.owner_id)
            if user.is_admin or user.id == owner.id or user.id in owner.members:
                return "owner"
            if user.id in repo.collaborators:
                return repo.collaborators[user.id]
        return "none" if repo.private else "read"

    def can(self, user: User | None, repo: Repo, level: str) -> bool:
        return LEVELS.index(self.level(user, repo)) >= LEVELS.index(level)
