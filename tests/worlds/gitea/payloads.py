"""JSON shapes of users, repositories, issues, comments, labels, hooks and notifications, as Gitea writes them.

Rule: `viewer` is who asked through the API; None is a webhook, where nobody's private fields are shown.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.worlds.gitea import state as s

if TYPE_CHECKING:
    from tests.worlds.gitea.world import World

Json = dict[str, Any]
ZERO_TIME = "0001-01-01T00:00:00Z"
ALL = {"admin": True, "push": True, "pull": True}
NONE = {"admin": False, "push": False, "pull": False}
REPO_SETTINGS = {
    "has_code": True, "has_issues": True, "has_wiki": True, "has_pull_requests": True, "has_projects": True,
    "has_releases": True, "has_packages": False, "has_actions": False, "ignore_whitespace_conflicts": False,
    "internal_tracker": {
        "enable_time_tracker": True, "allow_only_contributors_to_track_time": True, "enable_issue_dependencies": True,
    },
    "allow_merge_commits": True, "allow_rebase": True, "allow_rebase_explicit": True, "allow_squash_merge": True,
    "default_delete_branch_after_merge": False, "default_merge_style": "merge", "default_allow_maintainer_edit": False,
    "avatar_url": "", "internal": False, "mirror_interval": "", "object_format_name": "sha1",
    "mirror_updated": ZERO_TIME, "topics": [], "licenses": None,
}  # fmt: skip


class Shapes:
    """Makes the JSON of every record that is not a pull request, a review or a commit."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.state = world.state

    # ------------------------------------------------------------ small parts

    def time(self, seconds: int | None) -> str | None:
        """RFC 3339 in the zone of the server, not UTC."""
        if seconds is None:
            return None
        zone = timezone(timedelta(hours=self.world.utc_offset))
        return datetime.fromtimestamp(seconds, zone).isoformat().replace("+00:00", "Z")

    def web(self, repo: s.Repo, rest: str = "") -> str:
        return f"{self.world.url}/{self.state.full_name(repo)}{rest}"

    def api(self, repo: s.Repo, rest: str = "") -> str:
        return f"{self.world.url}/api/v1/repos/{self.state.full_name(repo)}{rest}"

    def issue_web(self, issue: s.Issue) -> str:
        kind = "pulls" if issue.pull else "issues"
        return self.web(self.state.repos[issue.repo_id], f"/{kind}/{issue.number}")

    # ------------------------------------------------------------ people

    def user(self, user: s.User, viewer: s.User | None = None) -> Json:
        """A user; no field says that it is a bot. Webhooks get a placeholder for the e-mail."""
        private = viewer is not None and (viewer.is_admin or viewer.id == user.id)
        host = urlsplit(self.world.url).hostname
        return {
            "id": user.id,
            "login": user.login,
            "login_name": "",
            "source_id": 0,
            "full_name": user.full_name,
            "email": user.email if viewer else f"{user.id}+{user.login.lower()}@noreply.{host}",
            "avatar_url": f"{self.world.url}/avatars/{user.id}",
            "html_url": f"{self.world.url}/{user.login}",
            "language": "",
            "is_admin": private and user.is_admin,
            "last_login": ZERO_TIME,
            "created": self.time(user.created),
            "restricted": False,
            "active": private,
            "prohibit_login": False,
            "location": "",
            "website": "",
            "description": "",
            "visibility": "public",
            "followers_count": 0,
            "following_count": 0,
            "starred_repos_count": 0,
            "username": user.login,
        }

    def org(self, user: s.User) -> Json:
        return {
            "id": user.id,
            "name": user.login,
            "full_name": user.full_name,
            "email": user.email,
            "avatar_url": f"{self.world.url}/avatars/{user.id}",
            "description": "",
            "website": "",
            "location": "",
            "visibility": "public",
            "repo_admin_change_team_access": False,
            "username": user.login,
        }

    # ------------------------------------------------------------ repositories

    def rights(self, user: s.User | None, repo: s.Repo) -> Json:
        """The `permissions` of a repository for one user."""
        names = {"admin": "admin", "push": "write", "pull": "read"}
        return {key: self.state.can(user, repo, level) for key, level in names.items()}

    def repo(self, repo: s.Repo, permissions: Json, viewer: s.User | None = None) -> Json:
        name, host = self.state.full_name(repo), urlsplit(self.world.url).hostname
        open_issues = [i for i in repo.issues.values() if i.state == "open"]
        return {
            "id": repo.id,
            "owner": self.user(self.state.user(repo.owner_id), viewer),
            "name": repo.name,
            "full_name": name,
            "description": repo.description,
            "empty": not repo.refs,
            "private": repo.private,
            "fork": False,
            "template": False,
            "mirror": False,
            "size": 24,
            "language": "",
            "languages_url": self.api(repo, "/languages"),
            "html_url": self.web(repo),
            "url": self.api(repo),
            "link": "",
            "ssh_url": f"git@{host}:{name}.git",
            "clone_url": self.web(repo, ".git"),
            "original_url": "",
            "website": "",
            "stars_count": 0,
            "forks_count": 0,
            "watchers_count": 1,
            "open_issues_count": sum(i.pull is None for i in open_issues),
            "open_pr_counter": sum(i.pull is not None for i in open_issues),
            "release_counter": 0,
            "default_branch": repo.default_branch,
            "archived": repo.archived,
            "created_at": self.time(repo.created),
            "updated_at": self.time(repo.updated),
            "archived_at": ZERO_TIME,
            "permissions": permissions,
            **REPO_SETTINGS,
        }

    # ------------------------------------------------------------ issues

    def label(self, repo: s.Repo, label: s.Label) -> Json:
        return {
            "id": label.id,
            "name": label.name,
            "exclusive": label.exclusive,
            "is_archived": False,
            "color": label.color,
            "description": label.description,
            "url": self.api(repo, f"/labels/{label.id}"),
        }

    def milestone(self, milestone: s.Milestone) -> Json:
        return {
            "id": milestone.id,
            "title": milestone.title,
            "description": milestone.description,
            "state": milestone.state,
            "open_issues": 0,
            "closed_issues": 0,
            "created_at": self.time(milestone.created),
            "updated_at": None,
            "closed_at": None,
            "due_on": None,
        }

    def labels_of(self, issue: s.Issue) -> list[Json]:
        """Always a list, empty when there is none."""
        repo = self.state.repos[issue.repo_id]
        return [self.label(repo, repo.labels[n]) for n in issue.labels if n in repo.labels]

    def milestone_of(self, issue: s.Issue) -> Json | None:
        repo = self.state.repos[issue.repo_id]
        return self.milestone(repo.milestones[issue.milestone]) if issue.milestone in repo.milestones else None

    def assignees_of(self, issue: s.Issue, viewer: s.User | None) -> list[Json]:
        return [self.user(self.state.user(n), viewer) for n in issue.assignees]

    def comment_count(self, issue: s.Issue) -> int:
        return len(self.state.comments_of(issue, "plain", "review", "code"))

    def issue(self, issue: s.Issue, viewer: s.User | None = None) -> Json:
        """`assignees` is null when there are none, `repository.owner` is a string."""
        repo = self.state.repos[issue.repo_id]
        assignees = self.assignees_of(issue, viewer)
        pull = issue.pull
        return {
            "id": issue.id,
            "url": self.api(repo, f"/issues/{issue.number}"),
            "html_url": self.issue_web(issue),
            "number": issue.number,
            "user": self.user(self.state.user(issue.user_id), viewer),
            "original_author": "",
            "original_author_id": 0,
            "title": issue.title,
            "body": issue.body,
            "ref": "",
            "assets": [],
            "labels": self.labels_of(issue),
            "milestone": self.milestone_of(issue),
            "projects": None,
            "assignee": assignees[0] if assignees else None,
            "assignees": assignees or None,
            "state": issue.state,
            "is_locked": issue.locked,
            "comments": self.comment_count(issue),
            "created_at": self.time(issue.created),
            "updated_at": self.time(issue.updated),
            "closed_at": self.time(issue.closed),
            "due_date": None,
            "time_estimate": 0,
            "pull_request": None
            if pull is None
            else {
                "merged": pull.merged_at is not None,
                "merged_at": self.time(pull.merged_at),
                "draft": is_draft(issue.title),
                "html_url": self.issue_web(issue),
            },
            "repository": {
                "id": repo.id,
                "name": repo.name,
                "owner": self.state.user(repo.owner_id).login,
                "full_name": self.state.full_name(repo),
            },
            "pin_order": 0,
            "content_version": issue.content_version,
        }

    def comment(self, comment: s.Comment, viewer: s.User | None = None) -> Json:
        """Exactly one of `issue_url` and `pull_request_url` is filled, and both are pages, not API addresses."""
        issue = self.state.repos[comment.repo_id].issues[comment.number]
        page = self.issue_web(issue)
        return {
            "id": comment.id,
            "html_url": f"{page}#issuecomment-{comment.id}",
            "pull_request_url": page if issue.pull else "",
            "issue_url": "" if issue.pull else page,
            "user": self.user(self.state.user(comment.user_id), viewer),
            "original_author": "",
            "original_author_id": 0,
            "body": comment.body,
            "assets": [],
            "created_at": self.time(comment.created),
            "updated_at": self.time(comment.updated),
        }

    def happening(self, comment: s.Comment, viewer: s.User | None = None) -> Json:
        """A line of the timeline. Of a label, the body is "1" when it was put on and empty when it was taken off."""
        repo = self.state.repos[comment.repo_id]
        label = repo.labels.get(comment.about) if comment.event == "label" else None
        who = self.state.users.get(comment.about) if comment.event == "assignees" else None
        body = ("" if comment.removed else "1") if comment.event == "label" else comment.body
        return {
            **self.comment(comment, viewer),
            "type": comment.event or {"plain": "comment", "review": "review"}.get(comment.kind, comment.body),
            "body": "" if comment.event == "assignees" else body,
            "label": self.label(repo, label) if label else None,
            "assignee": self.user(who, viewer) if who else None,
            "removed_assignee": comment.event == "assignees" and comment.removed,
        }

    # ------------------------------------------------------------ notifications

    def notification(self, note: s.Notification, viewer: s.User) -> Json:
        repo = self.state.repos[note.repo_id]
        issue = repo.issues[note.number]
        latest = self.state.comments.get(note.comment_id) if note.comment_id else None
        merged = issue.pull is not None and issue.pull.merged_at is not None
        return {
            "id": note.id,
            "repository": self.repo(repo, self.rights(viewer, repo), viewer),
            "subject": {
                "title": issue.title,
                "url": self.api(repo, f"/{'pulls' if issue.pull else 'issues'}/{issue.number}"),
                "latest_comment_url": self.api(repo, f"/issues/comments/{latest.id}") if latest else "",
                "html_url": self.issue_web(issue),
                "latest_comment_html_url": f"{self.issue_web(issue)}#issuecomment-{latest.id}" if latest else "",
                "type": "Pull" if issue.pull else "Issue",
                "state": "merged" if merged else issue.state,
            },
            "unread": note.unread,
            "pinned": note.pinned,
            "updated_at": self.time(note.updated),
            "url": f"{self.world.url}/api/v1/notifications/threads/{note.id}",
        }


def is_draft(title: str) -> bool:
    """Only the title makes a draft."""
    return title.lower().startswith(("wip:", "[wip]"))
