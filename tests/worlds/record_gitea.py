"""Records what a Gitea sends for the actions that Mosaic has to understand: `python -m tests.worlds.record_gitea`.

One file for each delivery, `tests/fixtures/gitea/<fine event>__<detail>.json`, holding the exact bytes of the body.
The header X-Gitea-Event-Type is the first half of the name; X-Gitea-Event follows from it (COARSE in the practice
Gitea's `events`). People: `mosaic` is the bot (write), alice owns the repository, bob has read, carol has write.
Recorded from the practice Gitea; REAL_GITEA_URL and REAL_GITEA_ADMIN_TOKEN record from a real one, on which these
names must be free.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.worlds.forge import Forge
from tests.worlds.gitea import PracticeGitea
from tests.worlds.mailbox import Letter, Mailbox

PLACE = Path(__file__).resolve().parent.parent / "fixtures" / "gitea"
EVENTS = ("issues", "issue_assign", "issue_label", "issue_milestone", "issue_comment", "pull_request", "push", "create")
MENTION = "@mosaic fix this"


class Recorder:
    """The actors, their repository, and the mailbox that its hook sends to."""

    def __init__(self, forge: Forge, box: Mailbox) -> None:
        self.forge, self.box = forge, box
        self.bot = forge.make_user("mosaic")
        self.alice, self.bob, self.carol = (forge.make_user(name) for name in ("alice", "bob", "carol"))
        self.repo = forge.make_repo("alice", "calc", {"calc.py": "def add(a, b):\n    return a - b\n"})
        for account, may in ((self.bot, "write"), (self.bob, "read"), (self.carol, "write")):
            forge.collaborator(self.repo, account.login, may)
        forge.hook(self.repo, box.url, "a secret of the recorder", EVENTS)

    def keep(self, what: str, detail: str) -> Letter:
        """The next delivery of this kind becomes a file."""
        [letter] = self.box.wait(what)
        PLACE.mkdir(parents=True, exist_ok=True)
        (PLACE / f"{what.split()[0]}__{detail}.json").write_bytes(letter.body)
        return letter

    def issues(self) -> None:
        """One click with everything in it; then what is assigned and labelled later."""
        forge, alice, repo = self.forge, self.alice, self.repo
        label, bug = forge.make_label(repo, "mosaic"), forge.make_label(repo, "bug")
        milestone = forge.call("POST", f"/repos/{repo}/milestones", alice.token, {"title": "one"})["id"]
        more = {"labels": [label], "milestone": milestone, "assignees": ["mosaic"]}
        number = forge.open_issue(alice.token, repo, "add() subtracts", f"It should add.\n\n{MENTION}", **more)[
            "number"
        ]
        self.keep("issues opened", "one_click")
        self.keep("issue_label label_updated", "one_click")
        self.keep("issue_milestone milestoned", "one_click")
        self.keep("issue_assign assigned", "one_click")
        forge.assign(alice.token, repo, number, "mosaic", "carol")
        self.keep("issue_assign assigned", "somebody_else_too")
        forge.assign(alice.token, repo, number, "mosaic")
        self.keep("issue_assign unassigned", "somebody_else")
        forge.assign(alice.token, repo, number)
        self.keep("issue_assign unassigned", "the_bot")
        forge.edit_issue(alice.token, repo, number, body=f"It should add numbers.\n\n{MENTION}")
        self.keep("issues edited", "edited_body")
        other = forge.open_issue(alice.token, repo, "Another", "", labels=[bug])["number"]
        self.keep("issues opened", "no_mention")
        self.keep("issue_label label_updated", "another_label")
        forge.label(self.carol.token, repo, other, "mosaic")
        self.keep("issue_label label_updated", "by_somebody_else")
        self.comments(other)

    def comments(self, number: int) -> None:
        forge, repo = self.forge, self.repo
        asked = forge.comment(self.alice.token, repo, number, MENTION)["id"]
        self.keep("issue_comment created", "mention")
        forge.edit_comment(self.alice.token, repo, asked, f"{MENTION}, please do")
        self.keep("issue_comment edited", "no_new_mention")
        forge.delete_comment(self.alice.token, repo, asked)
        self.keep("issue_comment deleted", "deleted")
        words = forge.comment(self.bob.token, repo, number, "It is wrong.")["id"]
        self.keep("issue_comment created", "no_mention")
        forge.edit_comment(self.alice.token, repo, words, f"It is wrong.\n\n{MENTION}")
        self.keep("issue_comment edited", "mention_added_by_maintainer")
        forge.comment(self.bob.token, repo, number, MENTION)
        self.keep("issue_comment created", "by_reader")
        own = forge.comment(self.bot.token, repo, number, f"You wrote: {MENTION}")["id"]
        self.keep("issue_comment created", "by_the_bot")
        forge.edit_comment(self.alice.token, repo, own, MENTION)
        self.keep("issue_comment edited", "of_the_bot_by_maintainer")

    def pulls(self, place: Path) -> None:
        forge, alice, repo = self.forge, self.alice, self.repo
        checkout = forge.clone(alice.token, repo, place)
        checkout.commit({"calc.py": "def add(a, b):\n    return a + b\n"}, MENTION)
        checkout.push("by-hand")
        self.keep("create", "branch")
        self.keep("push", "branch")
        number = forge.open_pull(alice.token, repo, "by-hand", "main", "Add", MENTION)["number"]
        self.keep("pull_request opened", "mention")
        forge.comment(alice.token, repo, number, MENTION)
        self.keep("pull_request_comment created", "mention")
        pull = f"/repos/{repo}/pulls/{number}"
        line = {"path": "calc.py", "new_position": 2, "body": MENTION}
        review = forge.call("POST", f"{pull}/reviews", self.carol.token, {"event": "COMMENT", "comments": [line]})["id"]
        self.keep("pull_request_review_comment reviewed", "line_comment")
        forge.call("POST", f"{pull}/reviews", self.carol.token, {"event": "APPROVED", "body": MENTION})
        self.keep("pull_request_review_approved reviewed", "mention")
        [thread] = forge.call("GET", f"{pull}/reviews/{review}/comments", alice.token)
        forge.call("POST", f"{pull}/comments/{thread['id']}/replies", alice.token, {"body": MENTION})
        self.keep("pull_request_comment created", "reply_in_thread")


def main() -> None:
    url, token = os.environ.get("REAL_GITEA_URL", ""), os.environ.get("REAL_GITEA_ADMIN_TOKEN", "")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not url:
            token = secrets.token_hex(20)
            practice = PracticeGitea(place / "gitea", token).start()
            stack.callback(practice.stop)
            url = practice.url
        forge = Forge(url, token, control=False, prefix="")
        stack.callback(forge.cleanup)
        recorder = Recorder(forge, stack.enter_context(Mailbox()))
        recorder.issues()
        recorder.pulls(place / "clone")
    print(f"{len(list(PLACE.glob('*.json')))} deliveries in {PLACE}")


if __name__ == "__main__":
    main()
