"""`mosaic`: the command line. Each command is a function; its docstring is its help."""

from __future__ import annotations

import argparse
import os
import sys

from app.cli import audit, control, doctor, effects, jobs, operations, processes, reconcile, wip
from app.settings import SettingsError
from app.types import MosaicError

# Each adds its verbs; their order is that of the help.
PARTS = (processes, jobs, control, wip, effects, doctor, operations, reconcile, audit)

LATER = (
    "watch",
    "approve",
    "keys",
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
    for part in PARTS:
        part.add_to(commands)
    for name in LATER:
        # Whatever stands behind it, options included: the answer is the same.
        later = commands.add_parser(name, help="comes with a later version", prefix_chars="\0", add_help=False)
        later.set_defaults(run=_not_yet)
        later.add_argument("rest", nargs="*")
    return parser


def _not_yet(arguments: argparse.Namespace) -> int:
    print(f"mosaic: `{arguments.command}` is not there yet; it comes with a later version.", file=sys.stderr)
    return 2
