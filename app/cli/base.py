"""What every command shares: the settings with the database open, a job by its number, how a verb is added."""

from __future__ import annotations

import argparse
import getpass
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app import queries, schema, serve
from app.clients.gitea import GiteaClient
from app.edge import connected, database_url, open_database, redactor_of
from app.ledger.chain import use_redactor
from app.settings import Settings, load
from app.types import Job, MosaicError

Commands = argparse._SubParsersAction  # the table of verbs; argparse has no public name for it
Run = Callable[[argparse.Namespace], int | None]


def add(commands: Commands[argparse.ArgumentParser], name: str, run: Run) -> argparse.ArgumentParser:
    """A verb; the first line of its function's docstring is its help."""
    command = commands.add_parser(name, help=(run.__doc__ or "").splitlines()[0])
    command.set_defaults(run=run)
    return command


def operator() -> str:
    """Who types here, as an actor of the ledger."""
    return f"cli:{getpass.getuser()}"


@contextmanager
def opened() -> Iterator[Settings]:
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


def job_of(number: int) -> Job:
    job = queries.job(number)
    if job is None:
        raise MosaicError(f"There is no job {number}. `mosaic jobs` lists them.", code="not_found")
    return job


def forge_of(settings: Settings) -> GiteaClient:
    if not (settings.gitea_url and settings.gitea_token):
        raise MosaicError(
            "Set MOSAIC_GITEA_URL and MOSAIC_GITEA_TOKEN, or run this where `.env` has them.", code="unset"
        )
    bundle = str(settings.ca_bundle) if settings.ca_bundle else None
    return GiteaClient(settings.gitea_url, settings.gitea_token, ca_bundle=bundle)


def count(text: str) -> int:
    if not text.isdecimal() or not 0 < len(text) < 7 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 999999")
    return int(text)
