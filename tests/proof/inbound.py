"""Scenarios of what comes in: one delivery fifty times at once, and a receiver that is away while people ask."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.proof.place import EVENTS, Place, place
from tests.proof.rest import at_rest, settle, until
from tests.proof.tally import Tally
from tests.proof.verdict import audit, judge
from tests.worlds.mailbox import Mailbox

COPIES = 50
ISSUES = 4
MENTIONS = 100
FOUND_WITHIN = 180.0  # seconds after the receiver is back


def copies(path: Path) -> Tally:
    """Fifty copies of one delivery at the same moment, half of them under an id of their own: one job."""
    tally, began = Tally(f"{COPIES} copies of a delivery"), time.monotonic()
    with place(path) as here, Mailbox() as box:
        repo = here.repository("copies", hook=False)
        here.forge.hook(repo, box.url, here.mosaic.secret, EVENTS)
        asked: dict[int, int | None] = {}
        for _ in range(ISSUES):
            asked[here.ask(repo)] = None
            [letter] = box.wait("issues opened")
            with ThreadPoolExecutor(COPIES) as pool:
                answers = [
                    pool.submit(letter.hand, f"{here.mosaic.url}/webhooks/gitea", new_id=bool(i % 2))
                    for i in range(COPIES)
                ]
            codes = {answer.result().status_code for answer in answers}
            tally.expect(codes == {202}, f"the copies were answered {codes}")
        settle(here, ISSUES, 120)
        judge(here, {repo: asked}, tally)
        audit(here, tally)
    tally.notes.append(f"{ISSUES * COPIES} deliveries of {ISSUES} mentions")
    tally.seconds = time.monotonic() - began
    return tally


def receiver_down(path: Path, outage: float) -> Tally:
    """Everything is down for `outage` seconds while people ask a hundred times; nobody sends those webhooks again."""
    tally, began = Tally(f"{MENTIONS} mentions, nobody there"), time.monotonic()
    with place(path) as here:
        repos = [here.repository(f"away-{n}") for n in range(5)]
        asked: dict[str, dict[int, int | None]] = {repo: {here.ask(repo): None} for repo in repos}
        settle(here, len(repos), 60)
        here.mosaic.stop()
        _ask_all(here, asked, outage)
        here.mosaic.start()
        back, total = time.monotonic(), MENTIONS + len(repos)
        known = until(lambda: _jobs(here) >= total, FOUND_WITHIN)
        tally.notes.append(f"away {outage:.0f} s; all found {time.monotonic() - back:.0f} s after the start")
        tally.expect(bool(known), f"{total - _jobs(here)} mentions were not found within {FOUND_WITHIN:.0f} s")
        until(lambda: at_rest(here, total), 240)
        judge(here, asked, tally)
        audit(here, tally)
    tally.seconds = time.monotonic() - began
    return tally


def _ask_all(here: Place, asked: dict[str, dict[int, int | None]], outage: float) -> None:
    """Half of them by a new issue, half by a comment on one; spread over the outage."""
    for n in range(MENTIONS):
        repo = list(asked)[n % len(asked)]
        person = here.people[n % len(here.people)]
        if n % 2:
            asked[repo][here.ask(repo, person)] = None
        else:
            number = int(here.forge.open_issue(person.token, repo, "Something is wrong", "No mention here.")["number"])
            body = f"@{here.bot.login} fix this"
            asked[repo][number] = int(here.forge.comment(person.token, repo, number, body)["id"])
        time.sleep(outage / MENTIONS)


def _jobs(here: Place) -> int:
    rows = here.mosaic.sql("select count(*) as n from runner_jobs")
    return rows[0]["n"] if rows else 0
