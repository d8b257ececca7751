"""`python -m tests.worlds.gitea --data DIR --admin-token T [--port N]`: prints `READY <url>`, serves until ended."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path

from tests.worlds.gitea import PracticeGitea


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.worlds.gitea", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--data", type=Path, required=True, help="directory for the git repositories")
    token = {"default": os.environ.get("PRACTICE_ADMIN_TOKEN"), "required": "PRACTICE_ADMIN_TOKEN" not in os.environ}
    parser.add_argument("--admin-token", help="of the site admin (or in PRACTICE_ADMIN_TOKEN)", **token)  # type: ignore[arg-type]
    options = parser.parse_args()
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    gitea = PracticeGitea(options.data, options.admin_token, port=options.port).start()
    print(f"READY {gitea.url}", flush=True)
    over.wait()
    gitea.stop()


if __name__ == "__main__":
    main()
