"""What an operator does now and then: back up, restore, throw away what nobody needs."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from pathlib import Path

from app import backup as backups
from app import gc, serve
from app.cli.base import Commands, add, opened
from app.clients.openclaw import ready
from app.paths import Paths
from app.settings import load


def add_to(commands: Commands[argparse.ArgumentParser]) -> None:
    add(commands, "backup", cmd_backup).add_argument("file", type=_path, help="a new file, for example mosaic.tar.gz")
    add(commands, "restore", cmd_restore).add_argument("file", type=_path)
    collect = add(commands, "gc", cmd_gc)
    collect.add_argument("--dry-run", action="store_true", help="only say what would go")


def cmd_backup(arguments: argparse.Namespace) -> int:
    """Write everything that cannot be fetched again into one file, while Mosaic runs."""
    settings, began = load("cli", os.environ, dotenv=serve.DOTENV), time.monotonic()
    manifest = backups.backup(settings, arguments.file)
    print(
        f"{arguments.file}: {_size(arguments.file.stat().st_size)}, {len(manifest['files'])} files, "
        f"{time.monotonic() - began:.1f} s. It holds keys: keep it as you keep `.env`, which is not in it."
    )
    return 0


def cmd_restore(arguments: argparse.Namespace) -> int:
    """Fill an empty data directory and database from a backup."""
    settings = load("cli", os.environ, dotenv=serve.DOTENV)
    manifest = backups.restore(settings, arguments.file)
    print(
        f"Restored into {settings.data_dir}: the backup of {manifest['host']}, made at {manifest['made_at']} by Mosaic "
        f"{manifest['mosaic']}.\n"
        f"WARNING: the Mosaic it was taken from ({manifest['base_url']}) must be stopped before this one is started. "
        "Two of them answer every mention twice and push to the same branches.\n"
        "Next: bring `.env` over (tokens, MOSAIC_BASE_URL, MOSAIC_CONFIG), start `mosaic serve`, then "
        "run `mosaic doctor`. Jobs that ran when the backup was made go on by themselves."
    )
    return 0


def cmd_gc(arguments: argparse.Namespace) -> int:
    """Throw away what nobody needs any more; it also happens once a day by itself."""
    with opened() as settings:
        collector = gc.Collector(Paths(settings.data_dir), settings.keep_days, arguments.dry_run)
        total = _told(collector.files()) + _told(collector.rows())
        if settings.openclaw_token and ready(settings.openclaw_url):
            total += _told(gc.conversations(settings, settings.keep_days, dry=arguments.dry_run))
        else:
            print(f"{'-':>8}  {'':>10}  conversations of ended jobs: the engine does not answer")
    print(f"{'would free' if arguments.dry_run else 'freed'} {_size(total)}")
    return 0


def _told(parts: Iterable[gc.Freed]) -> int:
    total = 0
    for freed in parts:
        print(f"{freed.count:>8}  {_size(freed.bytes):>10}  {freed.what}")
        total += freed.bytes
    return total


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()
