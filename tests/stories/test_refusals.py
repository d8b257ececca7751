"""What Mosaic does not do: it says so once, on the issue, with the reason and the next step; or it keeps silent."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from tests.stories.words import link, same
from tests.worlds.forge import Account, Json
from tests.worlds.mailbox import Mailbox
from tests.worlds.town import CALC, RULES, Story, Town, edit, say, write

pytestmark = pytest.mark.e2e

NOT_STARTED = """@{who} Not started: {cause} (`{reason}`)

**Next:** {next}

{why}"""
REFUSED = {
    "reason": "refused",
    "cause": "The request was not allowed.",
    "next": "Ask someone with write permission on the repository to make the request.",
}
RIGHTS_UNKNOWN = {
    "reason": "rights_unknown",
    "cause": "Gitea does not tell Mosaic what this person may do in the repository.",
    "next": "Ask the operator to set `MOSAIC_GITEA_AUTHZ_TOKEN`, or to make the bot an administrator of the "
    "repository, then ask again.",
}
UNUSABLE = {
    "reason": "repository_unusable",
    "cause": "Mosaic cannot work in this repository as it is.",
    "next": "Mend what is named, or ask an owner of the repository to, then `@{bot} retry`.",
}
LIMITED = {
    "reason": "rate_limited",
    "cause": "There were more requests than the limits allow.",
    "next": "Ask again at the time that is named, or have the limit raised that is named.",
}
NOT_FOUND = {
    "reason": "not_found",
    "cause": "The text that asked for this job no longer exists or has changed.",
    "next": "Write the request again as a new comment.",
}
BAD_RULES = 'version = 1\n\n[limits]\nrounds = "many"\n'
POLICY = """@{who} Mosaic stopped: The change touched something that the policy does not allow. (`policy_violation`)

**Next:** Reword the request so that it avoids the paths that are named, or make that part of the change by hand.

- `.gitea/workflows/x.yml`: protected by `/.gitea/**` (`protected_path`)
- `tox.ini`: protected by `tox.ini` (`protected_path`)

<anything> files changed so far are kept. `@{bot} continue` goes on from there.

Took <time> · <spent> · {job}"""


def asked(story: Story, *, by: Account | None = None, text: str = "fix this") -> tuple[int, Json]:
    number = story.issue()
    return number, story.say(number, story.town.mention(text), by=by)


def not_started(story: Story, number: int, who: str, **words: str) -> None:
    """The job has ended as refused, and one comment says so."""
    job = story.nth(number, 1)
    assert (job["status"], job["reason"], job["base_sha"]) == ("failed", words["reason"], None)
    story.settled()
    [refusal] = story.said(number)
    same(refusal, NOT_STARTED.format(who=who, **words))
    assert len(story.jobs()) == 1 and story.pulls() == [] and set(story.town.forge.branches(story.repo)) == {"main"}


def test_requests_that_are_not_started(town: Town) -> None:
    alice, bob = town.alice, town.bob
    stranger = town.story()
    reader = town.story(private=True)
    town.forge.collaborator(reader.repo, bob.login, "read")
    unserved = town.story(name="other")
    bad_rules = town.story({**CALC, ".mosaic.toml": BAD_RULES})
    bare = town.story({"readme.txt": "Nothing to check here.\n"})
    narrow = town.story({**CALC, ".mosaic.toml": f'{RULES}[who]\nusers = ["somebody-else"]\n'})
    unassignable = town.story({**CALC, ".mosaic.toml": f"{RULES}[bot]\ntrigger_on_assign = false\n"})
    numbers = {
        story: asked(story, by=who)[0]
        for story, who in (
            (stranger, bob),
            (reader, bob),
            (unserved, alice),
            (bad_rules, alice),
            (bare, alice),
            (narrow, alice),
        )
    }
    numbers[unassignable] = unassignable.issue(assignees=[town.bot.login])

    needs_write = "`write` permission on the repository is needed; they have `read`."
    not_started(stranger, numbers[stranger], bob.login, why=needs_write, **REFUSED)
    not_started(reader, numbers[reader], bob.login, why=needs_write, **REFUSED)
    not_started(
        unserved,
        numbers[unserved],
        alice.login,
        reason="not_served",
        cause="This repository is not on the list that this Mosaic serves.",
        next="Ask the operator to add it to `repositories` in the server configuration.",
        why=f"{unserved.repo} is not on the server's list.",
    )
    not_started(
        bad_rules,
        numbers[bad_rules],
        alice.login,
        reason="config_invalid",
        cause="The repository's `.mosaic.toml` is not valid.",
        next=f"Correct the line that is named on the default branch, then `@{town.bot.login} retry`.",
        why='.mosaic.toml, line 4: limits.rounds must be a whole number, not "many".',
    )
    not_started(
        bare,
        numbers[bare],
        alice.login,
        reason="no_gates",
        cause="The repository has no quality gate, and ungated changes are not allowed.",
        next="Add a `[[gates]]` entry to `.mosaic.toml`, or set `[bot] allow_ungated = true`.",
        why="No gate is configured, and none could be detected.",
    )
    only = "Only the people named in `[who] users` may start jobs here."
    not_started(narrow, numbers[narrow], alice.login, why=only, **REFUSED)
    no_assigning = "This repository does not start jobs by assignment: mention Mosaic instead."
    unusable = UNUSABLE | {"next": UNUSABLE["next"].format(bot=town.bot.login)}
    not_started(unassignable, numbers[unassignable], alice.login, why=no_assigning, **unusable)


def test_who_may_ask_is_asked_anew_when_the_forge_can_tell(town: Town, box: Mailbox) -> None:
    """The delivery says that bob may write; when it arrives he may not, and a bot that is administrator finds out."""
    story = town.story(private=True, hook=False, bot_may="admin")
    town.forge.hook(story.repo, box.url, town.mosaic.secret)
    town.forge.collaborator(story.repo, town.bob.login, "write")
    number, _ = asked(story, by=town.bob)
    [letter] = box.wait("issue_comment created")
    assert letter.payload["repository"]["permissions"]["push"] is True
    town.forge.call("DELETE", f"/repos/{story.repo}/collaborators/{town.bob.login}")
    assert letter.hand(town.webhook).status_code == 202
    why = f"{town.bob.login} has no access to this repository."
    not_started(story, number, town.bob.login, why=why, **REFUSED)


def test_nobody_can_tell_what_someone_else_who_puts_the_label_on_may_do(town: Town) -> None:
    """The delivery states the rights of the issue's author, not of the one who put the label on."""
    story = town.story()
    town.forge.collaborator(story.repo, town.bob.login, "write")
    number = story.issue()
    town.forge.label(town.bob.token, story.repo, number, "mosaic")
    why = (
        f"Mosaic cannot tell what {town.bob.login} may do here. Set MOSAIC_GITEA_AUTHZ_TOKEN, or make the bot an "
        "administrator of the repository."
    )
    not_started(story, number, town.bob.login, why=why, **RIGHTS_UNKNOWN)


def test_more_requests_in_an_hour_than_the_repository_allows(town: Town) -> None:
    story = town.story({**CALC, ".mosaic.toml": f"{RULES}[limits]\nper_user_hour = 1\n"})
    carol = town.forge.make_user("carol")
    town.forge.collaborator(story.repo, carol.login, "write")
    first, _ = asked(story, by=carol, text="fix [[script:nothing]]")
    assert story.nth(first, 1)["reason"] == "nothing_to_do"
    second, _ = asked(story, by=carol)
    assert story.nth(second, 1)["reason"] == "rate_limited"
    story.settled()
    [refusal] = story.said(second)
    why = (
        "More than 1 requests of one person within an hour (`limits.per_user_hour`). "
        "It is possible again at <anything> UTC."
    )
    same(refusal, NOT_STARTED.format(who=carol.login, why=why, **LIMITED))
    third, comment = asked(story, by=carol)
    assert story.nth(third, 1)["reason"] == "rate_limited"
    story.settled()
    assert story.said(third) == [], "who was told within the hour gets a sign, not a second comment"
    signs = {content for _, content in town.forge.reactions(story.repo, third, comment["id"])}
    assert signs == {"eyes", "confused"}


def test_a_request_that_is_gone_or_changed_when_it_is_looked_at(town: Town, by_post: Story, box: Mailbox) -> None:
    forge, alice = town.forge, town.alice
    gone, comment = asked(by_post)
    changed, other = asked(by_post)
    reworded = by_post.issue(body=town.mention("fix this"))
    letters = box.wait(
        "issue_comment created", "issue_comment created", "issues opened", "issues opened", "issues opened"
    )
    forge.delete_comment(alice.token, by_post.repo, comment["id"])
    forge.edit_comment(alice.token, by_post.repo, other["id"], town.mention("fix this, but otherwise"))
    forge.edit_issue(alice.token, by_post.repo, reworded, body="It is no matter any more.")
    for letter in letters:
        assert letter.hand(town.webhook).status_code == 202
    whys = {
        gone: "The comment is gone.",
        changed: "The comment was changed after the request; only the text as it was asked counts.",
        reworded: "The issue was changed after the request; only the text as it was asked counts.",
    }
    for number, why in whys.items():
        assert by_post.nth(number, 1)["reason"] == "not_found"
        by_post.settled()
        [refusal] = by_post.said(number)
        same(refusal, NOT_STARTED.format(who=alice.login, why=why, **NOT_FOUND))
    assert len(by_post.jobs()) == 3


def test_what_asks_for_nothing(town: Town, by_post: Story, box: Mailbox) -> None:
    """Its own words and edits of them, words in code and quotes, edits without a new mention, reviews, other events."""
    forge, alice, bot = town.forge, town.alice, town.bot
    fix = town.mention("fix this")
    number = by_post.issue()
    own = by_post.say(number, f"I quote: {fix}", by=bot)
    forge.edit_comment(alice.token, by_post.repo, own["id"], fix)  # a maintainer edits what the bot said
    forge.edit_comment(bot.token, by_post.repo, own["id"], f"{fix} again")
    code = by_post.say(number, f"Write `{fix}`, or\n\n```\n{fix}\n```\n\n    {fix}\n\n> {fix}\n\n<!-- {fix} -->")
    mail = by_post.say(number, f"Ask x{fix} or @{bot.login}-dev or [here](https://example.org/{fix.split()[0]}).")
    thanks = by_post.say(number, town.mention("thanks!"))
    told = box.wait(*["issue_comment created"] * 4, *["issue_comment edited"] * 2)
    answers = [letter.hand(town.webhook).json() for letter in told]
    assert sorted(answer["ignored"] for answer in answers) == [
        *["no command"] * 3,
        *["own action"] * 2,
        "own comment",
    ]
    forge.edit_comment(alice.token, by_post.repo, code["id"], "Nothing.")
    forge.delete_comment(alice.token, by_post.repo, mail["id"])
    forge.edit_issue(alice.token, by_post.repo, number, title="Another title", state="closed")
    for what, why in (
        ("issue_comment edited", "no new command in the edit"),
        ("issue_comment deleted", "comment deleted"),
        ("issues edited", "nothing to do for issues edited"),
        ("issues closed", "nothing to do for issues closed"),
    ):
        [letter] = box.wait(what, by=alice.login)
        assert letter.hand(town.webhook).json() == {"ignored": why}
    assert thanks["id"] and by_post.jobs() == []
    by_post.settled()
    assert len(by_post.said(number)) == 1  # the one it was made to say here
    assert [who for who, _ in forge.reactions(by_post.repo, number)] == []


def test_an_edit_asks_when_it_brings_a_new_mention_and_in_the_name_of_its_editor(
    town: Town, by_post: Story, box: Mailbox
) -> None:
    """bob, a stranger, wrote the words; alice, who may, adds the mention; then bob edits a comment of his own."""
    forge, alice, bob = town.forge, town.alice, town.bob
    number = by_post.issue()
    words = by_post.say(number, "add() is wrong", by=bob)
    another_second(town, words)
    text = f"add() is wrong\n\n{town.mention('fix this [[script:nothing]]')}"
    forge.edit_comment(alice.token, by_post.repo, words["id"], text)
    [edited] = box.wait("issue_comment edited", by=alice.login)
    assert edited.hand(town.webhook).json()["job"]
    job = by_post.nth(number, 1)
    assert (job["reason"], job["requester"]) == ("nothing_to_do", f"gitea:{alice.login}")
    forge.edit_comment(alice.token, by_post.repo, words["id"], text.replace("wrong", "very wrong"))
    [reworded] = box.wait("issue_comment edited", by=alice.login)
    assert reworded.hand(town.webhook).json() == {"ignored": "no new command in the edit"}

    other = by_post.say(number, "I think so too", by=bob)
    forge.edit_comment(bob.token, by_post.repo, other["id"], town.mention("fix this"))
    [edited] = box.wait("issue_comment edited", by=bob.login)
    assert edited.hand(town.webhook).json()["job"]
    job = by_post.nth(number, 2)
    assert (job["reason"], job["requester"]) == ("refused", f"gitea:{bob.login}")
    by_post.settled()
    needs_write = "`write` permission on the repository is needed; they have `read`."
    same(by_post.said(number)[-1], NOT_STARTED.format(who=bob.login, why=needs_write, **REFUSED))


def another_second(town: Town, comment: Json) -> None:
    """An edit within the second of the comment cannot be told from none: Gitea's stamps are whole seconds."""
    written = datetime.fromisoformat(comment["created_at"]).timestamp()
    town.mosaic.until(lambda: time.time() > written + 1.1, "another second")


def test_a_protected_path_sends_the_agent_back_and_then_ends_the_job(town: Town) -> None:
    """First to the limit; then with an agent that takes it back in its second round."""
    files = {**CALC, ".mosaic.toml": f"{RULES}[limits]\nrounds = 2\n"}
    stubborn, sensible = town.story(files), town.story(files)
    first = [
        edit("calc.py", "a - b", "a + b"),
        write(".gitea/workflows/x.yml", "on: push\n"),
        write("tox.ini", "[pytest]\naddopts = -k nothing\n"),
        say("I switched the tests off."),
    ]
    second = [edit("calc.py", "a + b", "b + a"), say("I insist.")]
    marker = stubborn.script(first, second)
    with_tests = [
        edit("calc.py", "a - b", "a + b"),
        edit("test_calc.py", "5", "6"),
        write("conftest.py", "x = 1\n"),
        say("!"),
    ]
    without = [edit("test_calc.py", "6", "5"), write("conftest.py", ""), say("?")]
    other = sensible.script(with_tests, without)
    numbers = {story: asked(story, text=f"fix {mark}")[0] for story, mark in ((stubborn, marker), (sensible, other))}
    for story, number in numbers.items():
        job = story.nth(number, 1)
        assert (job["status"], job["reason"]) == ("failed", "policy_violation")
        assert story.pulls() == [] and set(town.forge.branches(story.repo)) == {"main"}
    job = stubborn.nth(numbers[stubborn], 1)
    forced = [event for event in town.mosaic.events(job["id"]) if event["kind"] == "continuation.forced"]
    assert [event["data"]["red"] for event in forced] == [["inspector.policy"]]
    told = next(request["last"][-1] for request in town.model.seen(marker[9:-2]) if request["round"] == 2)
    assert "Round 2 of 2" in told and ".gitea/workflows/x.yml" in told and "tox.ini" in told
    steps = [step for step in town.mosaic.steps(job["id"]) if step["name"] == "inspector.gate.test"]
    assert [step["status"] for step in steps] == ["skipped", "skipped"]  # no gate runs on what the policy refuses
    stubborn.settled()
    words = {"who": town.alice.login, "bot": town.bot.login, "job": link(town.mosaic.url, job)}
    same(stubborn.said(numbers[stubborn])[-1], POLICY.format(**words))
