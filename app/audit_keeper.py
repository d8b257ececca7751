"""The keeper: in each control process, once a minute, anchor what has grown and fill up this host's witness."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app import queries
from app.audit_witness import Key, Witness, WitnessError
from app.edge import UNAVAILABLE, connected
from app.ledger import anchors
from app.paths import Paths
from app.settings import Settings

log = logging.getLogger("mosaic.audit")
SECONDS = 60.0


class Keeper:
    """A thread beside the consumer. Whichever process comes first anchors; every host writes its own file."""

    def __init__(self, key: Key, witness: Witness) -> None:
        self._key, self._witness = key, witness
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="anchors", daemon=True)

    def start(self) -> None:
        self._witness.trust(self._key.public)
        self._thread.start()

    def stop(self) -> None:
        """One last anchor, so that what this process did is anchored when it ends."""
        self._over.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._over.wait(SECONDS):
            self._turn(SECONDS * 0.8)
        self._turn(0.0)

    def _turn(self, not_within: float) -> None:
        try:
            with connected():
                keep(self._key, self._witness, not_within)
        except UNAVAILABLE as error:
            log.warning("the anchors wait for the database: %s", error)
        except WitnessError as error:
            log.error("%s Run `mosaic audit verify` and keep both for whoever looks into it.", error)
        except Exception:
            log.exception("what has happened could not be anchored; it is tried again")


@contextmanager
def keeping(settings: Settings, *, when: bool) -> Iterator[None]:
    """Run a keeper for the length of the block, `when` this is a control process."""
    if not when:
        yield
        return
    keeper = Keeper(Key(settings.anchor_key), Witness(Paths(settings.data_dir).audit))
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


def keep(key: Key, witness: Witness, not_within: float = 0.0) -> int | None:
    """Anchor what has grown and bring the file up to date; the number of the new anchor, if there is one.

    The log names each anchor's hash: a third place in which it stands.
    """
    row = anchors.add(key.sign, not_within=not_within)
    if row is not None:
        log.info("anchor %s: %s", row["seq"], row["hash"])
    last = witness.last()
    witness.follow(queries.anchors(last.seq if last else 0))
    return row["seq"] if row else None
