"""The verdict: what the forge holds is compared with what was asked. The database is only asked which job is whose."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Protocol

from tests.proof.agent import WRITTEN
from tests.proof.place import Place
from tests.proof.tally import Tally
from tests.worlds.mosaic import ROOT, Mosaic

MARKER = re.compile(r"<!-- mosaic:(\w+):([\w-]+):[0-9a-f]{16} -->\s*$")
# repository -> number of the issue that mentions the bot -> id of the comment that does (None: the issue itself does)
Mentions = Mapping[str, Mapping[int, int | None]]
Row = dict[str, Any]


def judge(here: Place, mentions: Mentions, tally: Tally) -> None:
    """Fill the tally: each mention has one job, each job an end, and each end exactly what belongs to it."""
    rows = here.mosaic.sql("select * from runner_jobs order by id")
    steps = here.mosaic.sql("select count(*) as n from job_steps where finished_at is not null")
    tally.jobs, tally.steps = len(rows), steps[0]["n"]
    jobs: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        jobs[row["repository"], row["number"]].append(row)
    for repo, asked in mentions.items():
        _judge_repository(here, repo, asked, {number: jobs.pop((repo, number), []) for number in asked}, tally)
    tally.doubled += [f"a job that nobody asked for: {key}" for key in jobs]
    reasons = Counter(str(row["reason"]) for row in rows)
    why = {row["reason"]: f"{row['reason']} of job {row['id']}: {row['detail']}"[:300] for row in rows}
    tally.notes += [text for reason, text in why.items() if reason not in ("done", None)]
    tally.notes.append("ends: " + ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()))


def _judge_repository(
    here: Place, repo: str, asked: Mapping[int, int | None], jobs: Mapping[int, list[Row]], tally: Tally
) -> None:
    branches = {name for name in here.forge.branches(repo) if name != "main"}
    pulls = Counter(pull["head"]["ref"] for pull in here.forge.pulls(repo))
    for number, rows in jobs.items():
        where = f"{repo}#{number}"
        if not rows:
            tally.lost.append(f"{where}: no job")
            continue
        tally.doubled += [f"{where}: {len(rows)} jobs"] * (len(rows) > 1)
        _judge_job(here, where, rows[0], branches, pulls, tally)
        _judge_comments(here, repo, number, rows[0], tally)
        eyes = [who for who, content in here.forge.reactions(repo, number, asked[number]) if content == "eyes"]
        if eyes != [here.bot.login]:
            tally.lost.append(f"{where}: acknowledged by {eyes}")
        branches.discard(rows[0]["branch"])
    tally.doubled += [f"{repo}: branch {name} belongs to no job" for name in sorted(branches)]
    tally.doubled += [f"{repo}: {count} pull requests of {name}" for name, count in pulls.items() if count > 1]


def _judge_job(here: Place, where: str, job: Row, branches: set[str], pulls: Counter[str], tally: Tally) -> None:
    if job["finished_at"] is None or not job["reason"]:
        tally.lost.append(f"{where}: job {job['id']} has not ended ({job['status']})")
    elif job["reason"] == "done":
        if job["branch"] not in branches or not pulls[job["branch"]]:
            tally.lost.append(f"{where}: job {job['id']} is done, but branch or pull request is missing")
        elif here.forge.file(job["repository"], WRITTEN, job["branch"]) != f"{job['id']}\n".encode():
            tally.lost.append(f"{where}: the branch of job {job['id']} does not hold its own work")


def _judge_comments(here: Place, repo: str, number: int, job: Row, tally: Tally) -> None:
    """Exactly one status comment (none for who was refused at the door) and one closing comment."""
    where, said = f"{repo}#{number}", Counter[str]()
    for comment in here.forge.comments(repo, number):
        if comment["user"]["id"] == here.bot.id:
            marker = MARKER.search(comment["body"])
            kind = marker[1] if marker and marker[2] == f"job-{job['id']}" else "a comment of another kind"
            said[kind] += 1
    tally.doubled += [f"{where}: {count} x {kind}" for kind, count in said.items() if count > 1]
    tally.doubled += [f"{where}: {kind}" for kind in said if kind not in ("status", "closing")]
    wanted = ("status", "closing") if job["base_sha"] else ("closing",)
    tally.lost += [f"{where}: no {kind} comment" for kind in wanted if not said[kind]]


class Home(Protocol):
    """A place with a Mosaic in it."""

    mosaic: Mosaic


def audit(here: Home, tally: Tally) -> None:
    """`mosaic audit verify` on the database of the place."""
    ran = command(here, "audit", "verify")
    if ran.returncode:
        tally.audit += [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()] or ["no words"]
    else:
        tally.notes.append("audit: " + " ".join(ran.stdout.split())[:200])


def command(here: Home, *words: str, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """A verb of the command line, as the operator of the place types it."""
    return subprocess.run(
        [sys.executable, "-m", "app", *words],
        cwd=ROOT,
        env=here.mosaic.env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
