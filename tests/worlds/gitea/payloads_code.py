"""JSON shapes of everything that is read from git: commits, branches, files, pull requests, reviews, statuses.

Rule: shas and diffs come from the real repository at the time of the call.
"""

from __future__ import annotations

import base64
from typing import Any

from tests.worlds.gitea import state as s
from tests.worlds.gitea.gitstore import Commit, Entry, Person
from tests.worlds.gitea.payloads import ALL, Json, Shapes, is_draft

FAILURES = {"error", "failure", "warning"}


class CodeShapes(Shapes):
    """Adds the shapes that need git."""

    # ------------------------------------------------------------ commits and branches

    def _person(self, person: Person) -> Json:
        known = next((u for u in self.state.users.values() if u.email and u.email == person.email), None)
        return {"name": person.name, "email": person.email, "username": known.login if known else ""}

    def commit(self, repo: s.Repo, sha: str) -> Json:
        """A PayloadCommit."""
        commit = self.world.git.commit(repo.id, sha)
        return {
            "id": commit.sha,
            "message": commit.message,
            "url": self.web(repo, f"/commit/{commit.sha}"),
            "author": self._person(commit.author),
            "committer": self._person(commit.committer),
            "verification": None,
            "timestamp": commit.date,
            "added": commit.added or None,
            "removed": commit.removed or None,
            "modified": commit.modified or None,
        }

    def branch(self, repo: s.Repo, name: str, sha: str, viewer: s.User | None) -> Json:
        write = self.state.can(viewer, repo, "write")
        return {
            "name": name,
            "commit": self.commit(repo, sha),
            "protected": self.world.protected(repo, name),
            "required_approvals": 0,
            "enable_status_check": False,
            "status_check_contexts": [],
            "user_can_push": write and not self.world.protected(repo, name),
            "user_can_merge": write,
            "effective_branch_protection_name": "",
        }

    # ------------------------------------------------------------ files

    def file(self, repo: s.Repo, ref: str, commit: str, entry: Entry, content: bytes | None) -> Json:
        """A ContentsResponse; in a listing of a directory there is no content."""
        kind = {"tree": "dir", "blob": "file", "commit": "submodule"}[entry.type]
        at = f"/contents/{entry.path}?ref={ref}"
        is_file = kind == "file"
        return {
            "name": entry.path.rsplit("/", 1)[-1],
            "path": entry.path,
            "sha": entry.sha,
            "last_commit_sha": commit,
            "type": kind,
            "size": entry.size,
            "encoding": None if content is None else "base64",
            "content": None if content is None else base64.b64encode(content).decode(),
            "target": None,
            "url": self.api(repo, at),
            "html_url": self.web(repo, f"/src/branch/{ref}/{entry.path}"),
            "git_url": self.api(repo, f"/git/{'blobs' if is_file else 'trees'}/{entry.sha}"),
            "download_url": self.web(repo, f"/raw/branch/{ref}/{entry.path}") if is_file else None,
            "submodule_git_url": None,
            "_links": {"self": self.api(repo, at), "git": "", "html": ""},
        }

    def file_commit(self, repo: s.Repo, commit: Commit) -> Json:
        """The `commit` of an answer to a write."""

        def when(person: Person) -> Json:
            return {"name": person.name, "email": person.email, "date": commit.date}

        return {
            "url": self.api(repo, f"/git/commits/{commit.sha}"),
            "sha": commit.sha,
            "created": commit.date,
            "html_url": self.web(repo, f"/commit/{commit.sha}"),
            "author": when(commit.author),
            "committer": when(commit.committer),
            "parents": [{"url": "", "sha": parent, "created": commit.date} for parent in commit.parents],
            "message": commit.message,
            "tree": {"url": self.api(repo, f"/git/trees/{commit.tree}"), "sha": commit.tree, "created": commit.date},
        }

    # ------------------------------------------------------------ pull requests

    def _end(self, repo: s.Repo, label: str, ref: str, sha: str, gone: bool, rights: Json) -> Json:
        return {
            "label": label,
            "ref": ref,
            "sha": sha,
            "repo_id": -1 if gone else repo.id,
            "repo": None if gone else self.repo(repo, rights),
        }

    def pull(self, issue: s.Issue, viewer: s.User | None = None) -> Json:
        """A PullRequest: `id` is its own, `url` is a page, `assignees` is an empty list when there are none."""
        repo, pull = self.state.repos[issue.repo_id], issue.pull
        if pull is None:
            raise RuntimeError(f"#{issue.number} is no pull request")
        rights = ALL if viewer is None else self.rights(viewer, repo)
        head, base = repo.branch(pull.head), repo.branch(pull.base)
        head_sha = head if head and pull.merged_at is None else pull.head_sha
        head_ref = pull.head if head else f"refs/pull/{issue.number}/head"
        files, added, deleted = self.world.git.counts(repo.id, pull.merge_base, head_sha)
        page, assignees = self.issue_web(issue), self.assignees_of(issue, viewer)
        merged = pull.merged_at is not None
        mergeable = pull.mergeable and issue.state == "open" and not is_draft(issue.title)
        return {
            "id": pull.id,
            "url": page,
            "number": issue.number,
            "user": self.user(self.state.user(issue.user_id), viewer),
            "title": issue.title,
            "body": issue.body,
            "labels": self.labels_of(issue),
            "milestone": self.milestone_of(issue),
            "assignee": assignees[0] if assignees else None,
            "assignees": assignees,
            "requested_reviewers": [self.user(self.state.user(n), viewer) for n in pull.reviewers],
            "requested_reviewers_teams": [],
            "state": issue.state,
            "draft": is_draft(issue.title),
            "is_locked": issue.locked,
            "comments": self.comment_count(issue),
            "review_comments": len(self.state.comments_of(issue, "code")),
            "additions": added,
            "deletions": deleted,
            "changed_files": files,
            "html_url": page,
            "diff_url": f"{page}.diff",
            "patch_url": f"{page}.patch",
            "mergeable": mergeable,
            "merged": merged,
            "merged_at": self.time(pull.merged_at),
            "merge_commit_sha": pull.merge_sha,
            "merged_by": self.user(self.state.user(pull.merged_by), viewer) if pull.merged_by else None,
            "allow_maintainer_edit": False,
            "base": self._end(repo, pull.base, pull.base, base or pull.merge_base, False, rights),
            "head": self._end(repo, pull.head, head_ref, head_sha, head is None, rights),
            "merge_base": pull.merge_base,
            "due_date": None,
            "created_at": self.time(issue.created),
            "updated_at": self.time(issue.updated),
            "closed_at": self.time(issue.closed),
            "pin_order": 0,
            "content_version": issue.content_version,
        }

    def review(self, review: s.Review, viewer: s.User | None) -> Json:
        issue = self.state.repos[review.repo_id].issues[review.number]
        lines = [c for c in self.state.comments_of(issue, "code") if c.review_id == review.id]
        page = self.issue_web(issue)
        return {
            "id": review.id,
            "user": self.user(self.state.user(review.user_id), viewer),
            "team": None,
            "state": review.state,
            "body": review.body,
            "commit_id": review.commit_id,
            "stale": False,
            "official": False,
            "dismissed": False,
            "comments_count": len(lines),
            "submitted_at": self.time(review.submitted),
            "updated_at": self.time(review.submitted),
            "html_url": f"{page}#issuecomment-{review.id}",
            "pull_request_url": page,
        }

    def review_comment(self, comment: s.Comment, viewer: s.User | None) -> Json:
        """A line comment: positions are line numbers of the file, not of the diff."""
        issue = self.state.repos[comment.repo_id].issues[comment.number]
        return {
            "id": comment.id,
            "body": comment.body,
            "user": self.user(self.state.user(comment.user_id), viewer),
            "resolver": None,
            "pull_request_review_id": comment.review_id,
            "created_at": self.time(comment.created),
            "updated_at": self.time(comment.updated),
            "path": comment.path,
            "commit_id": comment.commit_id,
            "original_commit_id": "",
            "diff_hunk": "",
            "position": comment.line,
            "original_position": comment.old_line,
            "html_url": f"{self.issue_web(issue)}#issuecomment-{comment.id}",
            "pull_request_url": self.issue_web(issue),
        }

    # ------------------------------------------------------------ commit statuses

    def status(self, status: s.CommitStatus, viewer: s.User | None) -> Json:
        """The field is `status` here, `state` in the request and in the combined answer."""
        repo = self.state.repos[status.repo_id]
        return {
            "id": status.index,
            "status": status.state,
            "target_url": status.target_url,
            "description": status.description,
            "url": self.api(repo, f"/statuses/{status.sha}"),
            "context": status.context,
            "creator": self.user(self.state.user(status.creator_id), viewer),
            "created_at": self.time(status.created),
            "updated_at": self.time(status.created),
        }

    def combined(self, repo: s.Repo, sha: str, latest: list[s.CommitStatus], viewer: s.User | None) -> Json:
        return {
            "state": combined_state([status.state for status in latest]),
            "sha": sha,
            "total_count": len(latest),
            "statuses": [self.status(status, viewer) for status in latest],
            "repository": self.repo(repo, self.rights(viewer, repo), viewer),
            "commit_url": self.api(repo, f"/commits/{sha}"),
            "url": self.api(repo, f"/commits/{sha}/status"),
        }


def combined_state(states: list[str]) -> Any:
    """A warning counts as a failure; no status at all is pending."""
    if FAILURES & set(states):
        return "failure"
    return "success" if states and set(states) <= {"success", "skipped"} else "pending"
