"""`make demo`: the whole product on one machine. A practice Gitea with a real package in it, a scripted model, and
Mosaic with the real OpenClaw; somebody files an issue, mentions the bot, and a pull request comes of it. Nothing
leaves the machine.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from app.serve import require_free
from app.types import REASONS, MosaicError
from tests.worlds.forge import Forge
from tests.worlds.gitea import PracticeGitea
from tests.worlds.model import ScriptedModel
from tests.worlds.mosaic import ROOT, Mosaic
from tests.worlds.town import EVENTS, edit, say

PACKAGE = ROOT / ".cache" / "demo" / "jsonpointer-2.4.tar.gz"
PORT = 8080
RULES = """version = 1

[[gates]]
name = "build"
type = "build"
order = 1
command = "python3 -m compileall -q jsonpointer.py"

[[gates]]
name = "test"
type = "test"
order = 2
command = "python3 -m unittest -v tests"
"""
TITLE = "Array indices with a leading zero are accepted"
BODY = """RFC 6901, section 4, does not allow an array index with a leading zero, but

    resolve_pointer({'foo': ['a', 'b']}, '/foo/01')

answers `'b'`. It should raise `JsonPointerException`, as it does for any other index that is not valid.
"""
OLD = "re.compile('0|[1-9][0-9]*$')"
NARROW = "re.compile('[1-9][0-9]*$')"
RIGHT = "re.compile('(0|[1-9][0-9]*)$')"
ANCHOR = """        doc = [0, 1, 2]
        self.assertRaises(JsonPointerException, resolve_pointer, doc, '/a')
"""
NEW_TEST = (
    ANCHOR
    + """
    def test_leading_zero(self):
        # RFC 6901, section 4: an array index has no leading zeros
        doc = [0, 1, 2]
        self.assertRaises(JsonPointerException, resolve_pointer, doc, '/01')
        self.assertEqual(resolve_pointer(doc, '/0'), 0)
"""
)
# A first attempt that forgets the index 0, and a second one that is right.
ROUNDS = [
    [
        {"tool": "read", "args": {"path": "jsonpointer.py"}},
        edit("jsonpointer.py", OLD, NARROW),
        say("The expression for an array index does not allow a leading zero any more."),
    ],
    [
        edit("jsonpointer.py", NARROW, RIGHT),
        edit("tests.py", ANCHOR, NEW_TEST),
        say("The index 0 is allowed again, leading zeros are not. I added a test for both."),
    ],
]


class Teller:
    """Short lines on the terminal, with the seconds since the start."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)


def run(*, once: bool) -> int:
    """Show it; with `once`, end with 0 when the pull request is there and 1 when it is not.

    Otherwise stay until Ctrl-C.
    """
    if not PACKAGE.exists():
        raise MosaicError("The practice package is not there. Run `make setup`, which downloads it.", code="not_set_up")
    tell, port = Teller(), 0 if once else _port(PORT)
    path = Path(tempfile.mkdtemp(prefix="mosaic-demo-"))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that everything below is stopped on the way out
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        mosaic, forge, repo, alice = _town(stack, path, tell, port=port)
        number = forge.open_issue(alice, repo, TITLE, BODY + "\n[[script:repair]]")["number"]
        tell(f"alice filed an issue: {forge.url}/{repo}/issues/{number}")
        forge.comment(alice, repo, number, "@mosaic fix this [[script:repair]]")
        tell("alice wrote: @mosaic fix this")
        job = _follow(mosaic, repo, number, tell)
        pulls = forge.pulls(repo)
        _sum_up(mosaic, job, tell)
        if pulls:
            tell(f"pull request: {pulls[0]['html_url']}")
        if not once:
            tell(f"look around: {mosaic.url}/jobs/{job['id']} and {forge.url}/{repo}. Ctrl-C ends the demo.")
            _stay()
        return 0 if pulls and job["reason"] == "done" else 1


def _port(wanted: int) -> int:
    """The wanted port, or 0 (any) when another program has it."""
    try:
        require_free("127.0.0.1", wanted)
    except MosaicError:
        print(f"          port {wanted} is taken: Mosaic's pages are at another one, shown below", flush=True)
        return 0
    return wanted


def _town(stack: ExitStack, path: Path, tell: Teller, *, port: int) -> tuple[Mosaic, Forge, str, str]:
    """The forge with its people, the model, Mosaic: all started, in this order."""
    admin = secrets.token_hex(20)
    gitea = PracticeGitea(path / "gitea", admin).start()
    stack.callback(gitea.stop)
    forge = Forge(gitea.url, admin, control=True, prefix="")
    bot, alice = forge.make_user("mosaic"), forge.make_user("alice")
    repo = forge.make_repo(alice.login, "jsonpointer", _files())
    forge.collaborator(repo, bot.login, "write")
    tell(f"a practice Gitea runs at {gitea.url}, with the package jsonpointer 2.4 in it")
    model = ScriptedModel({"repair": ROUNDS}).start()
    stack.callback(model.stop)
    python = f'[sandbox]\nread_only = ["{sys.base_prefix}"]\npath = ["{sys.base_prefix}/bin"]\n'
    mosaic = Mosaic(
        path / "mosaic",
        gitea.url,
        bot.token,
        model_url=model.url,
        port=port,
        config=f'repositories = ["{repo}"]\n{python if sys.base_prefix != "/usr" else ""}',
    )
    stack.callback(mosaic.stop)
    tell("Mosaic starts: PostgreSQL, web, three consumers, and the OpenClaw gateway (about ten seconds)")
    mosaic.start(tell)
    forge.hook(repo, f"{mosaic.url}/webhooks/gitea", mosaic.secret, EVENTS)
    return mosaic, forge, repo, alice.token


def _files() -> Mapping[str, bytes]:
    """The package's own files, and the rules that a team would add to it."""
    files: dict[str, bytes] = {".mosaic.toml": RULES.encode()}
    with tarfile.open(PACKAGE) as archive:
        for member in archive.getmembers():
            name = member.name.partition("/")[2]
            content = archive.extractfile(member) if member.isfile() else None
            if content and not name.startswith("jsonpointer.egg-info") and name not in ("PKG-INFO", "setup.cfg"):
                files[name] = content.read()
    return files


def _follow(mosaic: Mosaic, repo: str, number: int, tell: Teller) -> dict[str, Any]:
    """Tell what happens, step by step, until the job has ended."""
    job = mosaic.until(lambda: mosaic.job(repo, number), "the job")
    tell(f"job {job['id']}: {mosaic.url}/jobs/{job['id']}")
    seen = 0
    while True:
        for event in mosaic.sql(
            "select * from job_events where job_id = %s and seq > %s order by seq", job["id"], seen
        ):
            seen = event["seq"]
            line = _line(event["kind"], event["step"] or "", json.loads(event["data"]))
            if line:
                tell(line)
        job = mosaic.job(repo, number) or job
        if job["finished_at"] and not mosaic.sql(
            "select 1 as more from job_events where job_id = %s and seq > %s", job["id"], seen
        ):
            return job
        time.sleep(0.05)


def _line(kind: str, step: str, data: Mapping[str, Any]) -> str:
    """What a person would like to hear of an event; "" for the rest."""
    match kind:
        case "step.started" if not step.startswith(("inspector.gate", "herald", "runner.cleanup")):
            return f"  {step}"
        case "ai.tool_called":
            return f"      the agent used {data.get('tool')} {data.get('path') or ''}"
        case "gate.passed":
            return f"  {step}: green, {data.get('seconds')} s, {data.get('tests', 0)} tests"
        case "gate.failed":
            return f"  {step}: RED, {data.get('why')}"
        case "continuation.forced":
            return f"  back to the agent, round {data.get('round')}: {', '.join(data.get('red', []))} is red"
        case "git.pushed":
            return f"  pushed {str(data.get('sha'))[:12]} to {data.get('branch')}"
        case "pr.opened":
            return f"  pull request #{data.get('number')} opened"
        case "job.completed" | "job.failed" | "job.cancelled":
            return f"{kind.replace('.', ' ')}: {REASONS[data['reason']].cause}"
        case _:
            return ""


def _sum_up(mosaic: Mosaic, job: dict[str, Any], tell: Teller) -> None:
    """What the database holds of the job: steps, events, receipts, tokens."""
    for step in mosaic.steps(job["id"]):
        print(f"          {step['status']:<10} {step['name']}@{step['round']}.{step['attempt']}")
    for gate in mosaic.sql("select * from gate_results where job_id = %s order by id", job["id"]):
        print(
            f"          receipt    round {gate['round']} {gate['name']}: {'green' if gate['passed'] else 'red'}, "
            f"exit code {gate['exit_code']}, {gate['seconds']:.1f} s, tree {gate['tree_sha'][:12]}"
        )
    events = mosaic.sql("select count(*) as n, max(seq) as last from job_events where job_id = %s", job["id"])
    tell(f"recorded: {events[0]['n']} events in one hash chain, {job['tokens']} tokens, {job['cost_usd']:.4f} USD")


def _stay() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()
