"""`python -m tests.proof --minutes N [--only NAME ...] [--seed S]`: the scenarios in turn, then the table; exit 0 or 1.

The minutes are shared out: the small scenarios take what they need (about half of ten minutes), chaos takes the rest.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.proof.chaos import chaos
from tests.proof.disk_full import disk_full
from tests.proof.inbound import copies, receiver_down
from tests.proof.load import drain, fairness
from tests.proof.poison import poison
from tests.proof.provider import provider
from tests.proof.tally import Tally, table

LEAST_FREE = 4 * 1024**3  # bytes; a proof writes some hundred megabytes and never fills a disk that is not its own
LONG_RUN = 30.0  # minutes; from here on everything is done at its full size
SMALL_SCENARIOS = 330.0  # seconds that all but chaos take in a short run
CHAOS_LEAST = 120.0

Scenario = Callable[[Path], list[Tally]]


def scenarios(minutes: float, seed: int) -> Mapping[str, Scenario]:
    """Name -> what runs it in a directory of its own. Chaos comes last: it takes the time that is left."""
    long, end = minutes >= LONG_RUN, time.monotonic() + minutes * 60

    def fire(path: Path) -> list[Tally]:
        left = end - time.monotonic() - 60  # to settle and to count
        return chaos(path, max(CHAOS_LEAST, left) if minutes >= 3 else minutes * 30, seed)

    return {
        "copies": lambda path: [copies(path)],
        "down": lambda path: [receiver_down(path, 600.0 if long else 10.0)],
        "poison": lambda path: [poison(path)],
        "drain": lambda path: [drain(path)],
        "fairness": lambda path: [fairness(path, 1000 if long else 100)],
        "disk": lambda path: [disk_full(path)],
        "provider": lambda path: [provider(path, 3 if long else 1)],
        "chaos": fire,
    }


def run(name: str, scenario: Scenario) -> list[Tally]:
    """One scenario; one that breaks off is a failure, and its directory is kept for whoever looks into it."""
    path = Path(tempfile.mkdtemp(prefix=f"mosaic-proof-{name}-"))
    print(f"proof: {name}", flush=True)
    if shutil.disk_usage(path).free < LEAST_FREE:
        return [Tally(name, missed=[f"less than {LEAST_FREE >> 30} GB are free: not begun"])]
    try:
        tallies = scenario(path)
    except Exception as error:  # noqa: BLE001 - the other scenarios still say what they have to say
        traceback.print_exc()
        tallies = [Tally(name, missed=[f"broke off: {type(error).__name__}: {str(error)[:300]}"])]
    if all(tally.holds for tally in tallies):
        shutil.rmtree(path, ignore_errors=True)
    else:
        print(f"proof: {name} failed; what it left is in {path}", flush=True)
    print(table(tallies), flush=True)
    return tallies


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="names of scenarios")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that everything is ended on the way out
    began = time.monotonic()
    chosen = {
        name: scenario
        for name, scenario in scenarios(options.minutes, options.seed).items()
        if not options.only or name in options.only
    }
    tallies = [tally for name, scenario in chosen.items() for tally in run(name, scenario)]
    print(
        f"\nproof: {(time.monotonic() - began) / 60:.1f} minutes, seed {options.seed}\n\n{table(tallies)}", flush=True
    )
    return 0 if tallies and all(tally.holds for tally in tallies) else 1


if __name__ == "__main__":
    raise SystemExit(main())
