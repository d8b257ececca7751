"""The processes: run them, migrate their database, show the demo."""

from __future__ import annotations

import argparse

from app import serve
from app.cli.base import Commands, add


def add_to(commands: Commands[argparse.ArgumentParser]) -> None:
    add(commands, "serve", cmd_serve)
    add(commands, "run", cmd_run).add_argument("role", choices=("web", "control", "agents", "gates", "engine"))
    add(commands, "engine", cmd_engine)
    add(commands, "migrate", cmd_migrate)
    demo = add(commands, "demo", cmd_demo)
    demo.add_argument("--once", action="store_true", help="end with 0 when the pull request is there, 1 otherwise")


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
