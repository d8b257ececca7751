"""`mosaic doctor`: what works here and what to do about the rest."""

from __future__ import annotations

import argparse
import json
import logging
import os
from dataclasses import asdict

from app import doctor, serve
from app.checks import FAIL
from app.cli.base import Commands, add
from app.edge import redactor_of
from app.neutral import plain
from app.redact import Redactor
from app.settings import load, secrets_of
from app.types import MosaicError


def add_to(commands: Commands[argparse.ArgumentParser]) -> None:
    add(commands, "doctor", cmd_doctor).add_argument("--json", action="store_true", help="one JSON array")


def cmd_doctor(arguments: argparse.Namespace) -> int:
    """Look at everything that must hold; exit 1 when something fails."""
    logging.disable(logging.WARNING)  # what a check finds is said once, in its line
    settings = load("cli", os.environ, dotenv=serve.DOTENV)
    try:
        redactor = redactor_of(settings)
    except MosaicError:  # there is no database of our own yet, and so no password of it
        redactor = Redactor(secrets_of(settings))
    found = [redactor.value(asdict(check)) for check in doctor.examine(settings)]
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for check in found:
            print(f"{check['state']:<5} {check['name']:<13} {plain(check['said'])}")
            if check["next"]:
                print(f"{'':<5} {'':<13} → {plain(check['next'])}")
    return 1 if any(check["state"] == FAIL for check in found) else 0
