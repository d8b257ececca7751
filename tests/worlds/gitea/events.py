"""What happened, told to every hook that listens: payloads, coarse and fine event names, whose rights are stated.

Rule: nobody is filtered out; what the bot does itself is told too, and every hook gets its own delivery.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

from tests.worlds.gitea import state as s
from tests.worlds.gitea.payloads import ALL, NONE

if TYPE_CHECKING:
    from tests.worlds.gitea.world import World

Json = dict[str, Any]
FEED_MAX_COMMITS = 5

# fine type -> what X-Gitea-Event says
COARSE = {
    "issue_assign": "issues",
    "issue_label": "issues",
    "issue_milestone": "issues",
    "pull_request_comment": "issue_comment",
    "pull_request_assign": "pull_request",
    "pull_request_label": "pull_request",
    "pull_request_milestone": "pull_request",
    "pull_request_sync": "pull_request",
    "pull_request_review_request": "pull_request",
    "pull_request_review_approved": "pull_request_approved",
    "pull_request_review_rejected": "pull_request_rejected",
    "pull_request_review_comment": "pull_request_comment",
}
FINE = ["create", "delete", "fork", "push", "wiki", "repository", "release", "package", "status", "workflow_run",
        "workflow_job", "issues", "issue_comment", "pull_request", *COARSE]  # fmt: skip
ISSUES = {"issues", "issue_assign", "issue_label", "issue_milestone", "issue_comment"}
REVIEWS = {"pull_request_review_approved", "pull_request_review_rejected", "pull_request_review_comment"}
GROUPS = {
    "issues": ISSUES,
    "issues_only": {"issues"},
    "pull_request": {name for name in FINE if name.startswith("pull_request")},
    "pull_request_only": {"pull_request"},
    "pull_request_review": REVIEWS,
}
REVIEW_TYPES = {
    "APPROVED": "pull_request_review_approved",
    "REQUEST_CHANGES": "pull_request_review_rejected",
    "COMMENT": "pull_request_review_comment",
}


def wanted(names: list[str]) -> set[str]:
    """The fine events that the names of a hook switch on; none at all means push."""
    out: set[str] = set()
    for name in names or ["push"]:
        out |= GROUPS.get(name, {name} & set(FINE))
    return out


class Events:
    """Builds payloads at the moment of the action and hands one copy to each hook."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.state = world.state

    # ------------------------------------------------------------ fan-out

    def _hooks(self, repo: s.Repo, fine: str, branch: str | None) -> list[s.Hook]:
        owners = {"repository": repo.id, "organization": repo.owner_id, "user": repo.owner_id, "system": 0}
        return [
            hook
            for hook in self.state.hooks.values()
            if hook.active
            and fine in hook.events
            and owners.get(hook.level) == hook.owner
            and (branch is None or not hook.branch_filter or fnmatch.fnmatch(branch, hook.branch_filter))
        ]

    def send(self, repo: s.Repo, fine: str, payload: Json, branch: str | None = None) -> None:
        """One delivery for each hook of the repository, of its owner, and of the system."""
        for hook in self._hooks(repo, fine, branch):
            self.world.deliveries.submit(hook, COARSE.get(fine, fine), fine, payload)

    def _user(self, user: s.User) -> Json:
        return self.world.shapes.user(user)

    def _repo(self, repo: s.Repo, rights: Json) -> Json:
        return self.world.shapes.repo(repo, rights)

    def _rights(self, user_id: int, repo: s.Repo) -> Json:
        return self.world.shapes.rights(self.state.user(user_id), repo)

    # ------------------------------------------------------------ issues and pull requests

    def thread(
        self,
        issue: s.Issue,
        doer: s.User,
        kind: str,
        action: str,
        rights: str,
        *,
        changes: Json | None = None,
        moved: Json | None = None,
        reviewer: Json | None = None,
        review: Json | None = None,
    ) -> None:
        """An issue or PR event. `kind`: "" (bare), assign, label, milestone, sync, review_request, or a review's type.

        `rights` says whose permissions the payload carries: sender, author or owner.
        """
        repo, fine = self.state.repos[issue.repo_id], self._fine(issue, kind)
        if not self._hooks(repo, fine, None):
            return
        whose = {"sender": doer.id, "author": issue.user_id}
        stated = self._rights(whose[rights], repo) if rights in whose else ALL
        payload: Json = {"action": action} | (moved or {}) | {"number": issue.number}
        payload |= {"changes": changes} if changes else {}
        if issue.pull is None:
            payload["issue"] = self.world.shapes.issue(issue)
        else:
            payload |= {"pull_request": self.world.shapes.pull(issue), "requested_reviewer": reviewer}
        payload |= {"repository": self._repo(repo, stated), "sender": self._user(doer), "commit_id": ""}
        payload |= {"review": review} if issue.pull else {}
        self.send(repo, fine, payload)

    @staticmethod
    def _fine(issue: s.Issue, kind: str) -> str:
        if kind.startswith("pull_request_"):
            return kind
        if issue.pull is None:
            return f"issue_{kind}" if kind else "issues"
        return f"pull_request_{kind}" if kind else "pull_request"

    def opened(self, issue: s.Issue, doer: s.User) -> None:
        """One click, up to four and more deliveries, in this order."""
        self.thread(issue, doer, "", "opened", "author")
        if issue.labels:
            self.labels(issue, doer)
        if issue.milestone:
            self.thread(issue, doer, "milestone", "milestoned", "sender")
        for _ in issue.assignees:
            self.thread(issue, doer, "assign", "assigned", "sender")

    def labels(self, issue: s.Issue, doer: s.User, action: str = "label_updated") -> None:
        """Does not say which label."""
        self.thread(issue, doer, "label", action, "owner" if issue.pull else "author")

    def synchronized(self, issue: s.Issue, doer: s.User, before: str, after: str) -> None:
        moved = {"before": before, "after": after} if self.world.at_least(1, 27) else {}
        self.thread(issue, doer, "sync", "synchronized", "owner", moved=moved)

    def reviewed(self, review: s.Review, issue: s.Issue, doer: s.User) -> None:
        """The text of the review only: line comments are in no webhook."""
        kind = REVIEW_TYPES[review.state]
        content = {"type": kind, "content": review.body}
        self.thread(issue, doer, kind, "reviewed", "author", review=content)

    def comment(self, comment: s.Comment, doer: s.User, action: str, changes: Json | None = None) -> None:
        """A comment on an issue or PR, or a reply below a line comment; rights are the sender's."""
        repo = self.state.repos[comment.repo_id]
        issue = repo.issues[comment.number]
        payload: Json = {"action": action, "issue": self.world.shapes.issue(issue)}
        if issue.pull is not None:
            payload["pull_request"] = self.world.shapes.pull(issue)
        payload["comment"] = self.world.shapes.comment(comment)
        payload |= {"changes": changes} if changes else {}
        payload |= {"repository": self._repo(repo, self._rights(doer.id, repo)), "sender": self._user(doer)}
        payload["is_pull"] = issue.pull is not None
        self.send(repo, "pull_request_comment" if issue.pull else "issue_comment", payload)

    # ------------------------------------------------------------ repositories, refs, statuses

    def repository(self, repo: s.Repo, doer: s.User, action: str) -> None:
        owner = self._user(self.state.user(repo.owner_id))
        payload = {"action": action, "repository": self._repo(repo, ALL), "organization": owner}
        self.send(repo, "repository", payload | {"sender": self._user(doer)})

    def created(self, repo: s.Repo, doer: s.User, ref: str, sha: str) -> None:
        """The short name of the ref, and nobody's rights."""
        kind, short = ("tag", ref[10:]) if ref.startswith("refs/tags/") else ("branch", ref[11:])
        payload = {"sha": sha, "ref": short, "ref_type": kind, "repository": self._repo(repo, NONE)}
        self.send(repo, "create", payload | {"sender": self._user(doer)}, short)

    def deleted(self, repo: s.Repo, doer: s.User, ref: str) -> None:
        kind, short = ("tag", ref[10:]) if ref.startswith("refs/tags/") else ("branch", ref[11:])
        payload = {"ref": short, "ref_type": kind, "pusher_type": "user", "repository": self._repo(repo, ALL)}
        self.send(repo, "delete", payload | {"sender": self._user(doer)}, short)

    def push(self, repo: s.Repo, doer: s.User, ref: str, before: str, after: str) -> None:
        """The full name of the ref; at most five commits, newest first, and the true number of them."""
        commits = self._pushed(repo, ref, before, after)
        shown = [self.world.shapes.commit(repo, sha) for sha in commits[:FEED_MAX_COMMITS]]
        user = self._user(doer)
        payload = {
            "ref": ref,
            "before": before,
            "after": after,
            "compare_url": self.world.shapes.web(repo, f"/compare/{before}...{after}"),
            "commits": shown,
            "total_commits": len(commits),
            "head_commit": self.world.shapes.commit(repo, after),
            "repository": self._repo(repo, ALL),
            "pusher": user,
            "sender": user,
        }
        self.send(repo, "push", payload, ref.removeprefix("refs/heads/"))

    def _pushed(self, repo: s.Repo, ref: str, before: str, after: str) -> list[str]:
        git = self.world.git
        if ref.startswith("refs/tags/"):
            return []
        if before != s.ZERO_SHA:
            return git.rev_list(repo.id, f"{before}..{after}")
        default = f"refs/heads/{repo.default_branch}"
        if ref == default or default not in repo.refs:
            return git.rev_list(repo.id, after, limit=10)
        return git.rev_list(repo.id, after, f"^{default}")

    def status(self, status: s.CommitStatus, doer: s.User) -> None:
        """No action; `id` is the row's, not the API's."""
        repo = self.state.repos[status.repo_id]
        at = self.world.shapes.time(status.created)
        payload = {
            "commit": self.world.shapes.commit(repo, status.sha),
            "context": status.context,
            "created_at": at,
            "description": status.description,
            "id": status.id,
            "repository": self._repo(repo, ALL),
            "sender": self._user(doer),
            "sha": status.sha,
            "state": status.state,
            "target_url": status.target_url,
            "updated_at": at,
        }
        self.send(repo, "status", payload)
