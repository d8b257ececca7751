"""`mosaic`: the command line. Each command is a function; its docstring is its help."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from app import queries, schema, serve, stitcher
from app.clients.gitea import GiteaClient
from app.edge import connected, database_url, open_database, redactor_of
from app.gitea_events import text_hash
from app.ledger.chain import stamp, transaction, use_redactor
from app.neutral import plain
from app.settings import Settings, SettingsError, load
from app.types import REASONS, Job, MosaicError, Trigger

LATER = (
    "doctor",
    "watch",
    "approve",
    "keys",
    "audit",
    "blame",
    "reconcile",
    "pause",
    "resume",
    "backup",
    "restore",
    "gc",
    "report",
)


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 = fine, 1 = it failed (the reason is printed), 2 = wrong use."""
    parser = _parser()
    arguments, words = parser.parse_known_args(argv)
    if arguments.command == "submit" and not any(word.startswith("-") for word in words):
        arguments.instructions += words  # argparse gives up on words that follow an option
    elif words and arguments.command not in LATER:
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    try:
        result = arguments.run(arguments)
        sys.stdout.flush()
        return int(result or 0)
    except SettingsError as error:
        print(f"mosaic: {error}", file=sys.stderr)
        return 1
    except MosaicError as error:
        print(f"mosaic: {error} ({error.code})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough, as in `mosaic jobs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mosaic", description="A coding agent for your own Gitea, with rails.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=(run.__doc__ or "").splitlines()[0])
        command.set_defaults(run=run)
        return command

    add("serve", cmd_serve)
    add("run", cmd_run).add_argument("role", choices=("web", "control", "agents", "gates", "engine"))
    add("engine", cmd_engine)
    add("migrate", cmd_migrate)
    listing = add("jobs", cmd_jobs)
    listing.add_argument("--repository", help="owner/name")
    listing.add_argument("--limit", type=_count, default=20, help="how many, from 1")
    add("show", cmd_show).add_argument("job", type=int)
    add("cancel", cmd_cancel).add_argument("job", type=int)
    add("retry", cmd_retry).add_argument("job", type=int)
    submit = add("submit", cmd_submit)
    submit.add_argument("repository", help="owner/name")
    submit.add_argument("--issue", type=int)
    submit.add_argument("--priority", type=int, default=0)
    submit.add_argument("instructions", nargs="*")
    demo = add("demo", cmd_demo)
    demo.add_argument("--once", action="store_true", help="end with 0 when the pull request is there, 1 otherwise")
    for name in LATER:
        # Whatever stands behind it, options included: the answer is the same.
        later = commands.add_parser(name, help="comes with a later version", prefix_chars="\0", add_help=False)
        later.set_defaults(run=_not_yet)
        later.add_argument("rest", nargs="*")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < len(text) < 7 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 999999")
    return int(text)


def _not_yet(arguments: argparse.Namespace) -> int:
    print(f"mosaic: `{arguments.command}` is not there yet; it comes with a later version.", file=sys.stderr)
    return 2


@contextmanager
def _open() -> Iterator[Settings]:
    """The settings of the command line, with the database open."""
    settings = load("cli", os.environ, dotenv=serve.DOTENV)
    use_redactor(redactor_of(settings))
    url = database_url(settings)
    if not serve.reachable(url):
        raise MosaicError(
            "The database does not answer. Is `mosaic serve` running, here or with this MOSAIC_DATABASE_URL?",
            code="database_unavailable",
        )
    missing = schema.pending(url)
    if missing:
        raise MosaicError(f"The database lacks {', '.join(missing)}. Run `mosaic migrate`.", code="schema_outdated")
    open_database(url, "cli")
    with connected():
        yield settings


def cmd_serve(_: argparse.Namespace) -> int:
    """Run everything on this host."""
    return serve.serve()


def cmd_run(arguments: argparse.Namespace) -> int:
    """Run one process of the Procfile."""
    return serve.run_role(arguments.role)


def cmd_engine(_: argparse.Namespace) -> int:
    """Run the pinned OpenClaw gateway with its generated configuration."""
    return serve.run_role("engine")


def cmd_migrate(_: argparse.Namespace) -> int:
    """Bring the database up to date."""
    applied = serve.migrate()
    print("\n".join(f"applied {name}" for name in applied) or "nothing to do: the database is up to date")
    return 0


def cmd_demo(arguments: argparse.Namespace) -> int:
    """Show the whole product on this machine, with a practice Gitea and a scripted model."""
    from importlib import import_module

    return int(import_module("tests.worlds.demo").run(once=arguments.once))


def cmd_jobs(arguments: argparse.Namespace) -> int:
    """List the newest jobs."""
    with _open():
        for job in queries.jobs(repository=arguments.repository, limit=arguments.limit):
            print(_line(job))
    return 0


def _line(job: Job) -> str:
    where = f"{job.repository}#{job.number}" if job.number else job.repository
    position = queries.queue_position(job.id)
    state = job.status.value + (f" ({position}. in the queue)" if position else "")
    return f"{job.id:>6}  {state:<28} {job.reason or '':<20} {where}  {job.requester}"


def cmd_show(arguments: argparse.Namespace) -> int:
    """Show a job: plan, steps, receipts, reason, events."""
    with _open() as settings:
        job = _job(arguments.job)
        print(_line(job))
        print(f"        {settings.base_url}/jobs/{job.id}")
        if job.reason:
            reason = REASONS[job.reason]
            print(f"  why   {reason.cause} ({reason.code})")
            print(f"        {plain(job.detail)}" if job.detail else "", end="\n" if job.detail else "")
            print(f"  next  {reason.next_action}" if reason.next_action else "", end="\n" if reason.next_action else "")
        for step in queries.steps(job.id):
            print(f"  {step.status.value:<10} {step.key:<32} {step.reason}")
        for round, gate in queries.all_gate_results(job.id):
            print(
                f"  gate  round {round} {gate.name:<16} {'green' if gate.passed else 'red':<6} "
                f"{gate.seconds:.1f} s  {plain(gate.why)}"
            )
        print(f"  used  {job.tokens} tokens, {job.cost_usd:.4f} USD")
        for event in queries.events(job.id)[-15:]:
            print(
                f"  {event.seq:>4} {stamp(event.at)} {event.kind:<22} {event.step or '':<28} "
                f"{json.dumps(dict(event.data))[:100]}"
            )
    return 0


def _job(number: int) -> Job:
    job = queries.job(number)
    if job is None:
        raise MosaicError(f"There is no job {number}. `mosaic jobs` lists them.", code="not_found")
    return job


def cmd_cancel(arguments: argparse.Namespace) -> int:
    """Stop a job."""
    with _open():
        job = _job(arguments.job)
        if not stitcher.cancel(job.id, f"cli:{getpass.getuser()}"):
            print(f"Job {job.id} is {job.status.value}; there is nothing to stop.")
            return 1
        print(f"Job {job.id} is being stopped.")
    return 0


def cmd_retry(arguments: argparse.Namespace) -> int:
    """Run a finished job again, on the same branch and pull request."""
    with _open():
        job = _job(arguments.job)
        if not job.status.terminal:
            raise MosaicError(f"Job {job.id} is still {job.status.value}.", code="not_finished")
        # The request stays the first person's: the operator only starts it again.
        new = stitcher.retry(
            job,
            actor=f"cli:{getpass.getuser()}",
            actor_id=job.requester_id,
            login=job.trigger.actor,
            key=uuid.uuid4().hex,
            permission=job.trigger.permission,
        )
        print(f"Job {new} runs job {job.id} again.")
    return 0


def _forge(settings: Settings) -> GiteaClient:
    if not (settings.gitea_url and settings.gitea_token):
        raise MosaicError(
            "Set MOSAIC_GITEA_URL and MOSAIC_GITEA_TOKEN, or run this where `.env` has them.", code="unset"
        )
    bundle = str(settings.ca_bundle) if settings.ca_bundle else None
    return GiteaClient(settings.gitea_url, settings.gitea_token, ca_bundle=bundle)


def cmd_submit(arguments: argparse.Namespace) -> int:
    """Start a job from here: mosaic submit owner/name --issue 42 what to do."""
    with _open() as settings:
        forge = _forge(settings)
        repository = forge.repository(arguments.repository)
        if repository is None:
            raise MosaicError(f"{arguments.repository} is not visible to the bot.", code="not_found")
        text = " ".join(arguments.instructions)
        if not text and arguments.issue is None:
            raise MosaicError("Say what to do, or name an issue with --issue.", code="nothing_asked")
        trigger = Trigger(
            kind="cli",
            repository_id=repository.id,
            repository=repository.full_name,
            number=arguments.issue,
            is_pull=False,
            object_id=0,
            actor_id=0,
            actor=getpass.getuser(),
            text=text,
            text_sha256=text_hash(text),
            at=datetime.now(UTC).isoformat(),
        )
        with transaction():
            job = stitcher.submit(
                trigger,
                trigger_key=f"cli:{uuid.uuid4().hex}",
                instructions=text,
                requester=f"cli:{getpass.getuser()}",
                priority=arguments.priority,
            )
        print(f"Job {job}: {settings.base_url}/jobs/{job}")
    return 0
