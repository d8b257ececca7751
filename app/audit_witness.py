"""The witness: a file outside the database that holds every anchor. It only grows.

Each control host keeps one below its data directory and fills it up from the table once a minute, so that whoever
rewrites the database contradicts every one of them. A verifier needs the public keys only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.types import MosaicError

_DOMAIN = b"mosaic.anchor.v1\x00"


class WitnessError(MosaicError):
    """The file contradicts the table, or cannot be read."""

    code = "witness_contradicted"


@dataclass(frozen=True, slots=True)
class Anchor:
    """One anchor as it stands in the table and in the file. `body` is the exact text that was signed."""

    seq: int
    hash: str
    key: str
    signature: str
    body: str

    def faults(self, trusted: frozenset[str] | None) -> list[str]:
        """What is wrong with it by itself. `trusted` = public keys; None = any (then it only proves consistency)."""
        found = []
        if hashlib.sha256(self.body.encode()).hexdigest() != self.hash:
            found.append(f"anchor {self.seq} was changed: its hash does not fit")
        if trusted is not None and self.key not in trusted:
            found.append(f"anchor {self.seq} is signed by the unknown key {self.key[:16]}…")
        elif not genuine(self.key, self.body.encode(), self.signature):
            found.append(f"the signature of anchor {self.seq} does not fit")
        return found

    def digest(self) -> str:
        """A hash over the whole row."""
        return hashlib.sha256("\n".join((self.hash, self.key, self.signature, self.body)).encode()).hexdigest()

    def content(self) -> dict[str, Any]:
        """What it says: seq, prev, at, events, heads, max_id, snapshot. {} when the body is no JSON object any more."""
        try:
            said = json.loads(self.body)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}


class Key:
    """The Ed25519 key that follows from MOSAIC_ANCHOR_KEY."""

    def __init__(self, secret: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(_DOMAIN + secret).digest())
        self.public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, body: bytes) -> tuple[str, str]:
        """(public key, signature), in hexadecimal."""
        return self.public, self._private.sign(_DOMAIN + body).hex()


def genuine(key: str, body: bytes, signature: str) -> bool:
    """Whether the signature over the body is by that key."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), _DOMAIN + body)
    except (InvalidSignature, ValueError):
        return False
    return True


class Witness:
    """`anchors.jsonl` and `anchor-keys` (the public keys that count, one a line) in one directory."""

    def __init__(self, folder: Path) -> None:
        self.file, self.keys = folder / "anchors.jsonl", folder / "anchor-keys"

    def there(self) -> bool:
        """Whether a witness was ever begun here."""
        return self.file.exists() or self.keys.exists()

    def trusted(self) -> frozenset[str]:
        return frozenset(self.keys.read_text().split()) if self.keys.exists() else frozenset()

    def trust(self, public: str) -> None:
        """Add a key: ours, at every start. An earlier one stays, for what it has signed."""
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if public not in self.trusted():
            _append(self.keys, [public])

    def anchors(self) -> Iterator[Anchor]:
        """Every anchor of the file, in its order. WitnessError at a line that is none."""
        if not self.file.exists():
            return
        with self.file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith("\n"):  # the last one may be half-written
                    yield _read(line, number)

    def last(self) -> Anchor | None:
        """The newest anchor of the file, found from its end."""
        if not self.file.exists():
            return None
        with self.file.open("rb") as file:
            size, want, tail = file.seek(0, os.SEEK_END), 65536, b""
            while size and tail.count(b"\n") < 2 and len(tail) < size:
                want = min(size, want * 4)
                file.seek(size - want)
                tail = file.read(want)
        line = tail.rpartition(b"\n")[0].rpartition(b"\n")[2]
        return _read(line.decode("utf-8", "replace"), -1) if line else None

    def follow(self, newer: Iterable[Anchor]) -> int:
        """Append the anchors that come after the last one; how many. `newer` begins with the last one of the file.

        WitnessError when they contradict it: then the file keeps what it has.
        """
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(self.file, os.O_RDONLY | os.O_CREAT, 0o600)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _drop_half_line(self.file)
            return _append(self.file, map(_write, self._fitting(newer)))

    def _fitting(self, newer: Iterable[Anchor]) -> Iterator[Anchor]:
        last, trusted = self.last(), self.trusted()
        rest = dropwhile(lambda one: last is not None and one.seq < last.seq, newer)  # another process was faster
        if last is not None and next(rest, None) != last:
            raise WitnessError(f"Anchor {last.seq} of {self.file} is not in the table, or another one is in its place.")
        seq, digest = (last.seq, last.hash) if last else (0, "")
        for anchor in rest:
            faults = anchor.faults(trusted)
            if anchor.content().get("prev") != digest or anchor.seq != seq + 1:
                faults.append(f"anchor {anchor.seq} of the table does not follow the last one in {self.file}")
            if faults:
                raise WitnessError(f"The anchors are not to be trusted: {'; '.join(faults)}.")
            yield anchor
            seq, digest = anchor.seq, anchor.hash


def _read(line: str, number: int) -> Anchor:
    try:
        return Anchor(**json.loads(line))
    except (ValueError, TypeError):
        raise WitnessError(f"Line {number} of the file of anchors is none of Mosaic's.") from None


def _write(anchor: Anchor) -> str:
    return json.dumps(asdict(anchor), separators=(",", ":"))


def _drop_half_line(path: Path) -> None:
    """What a crash or a full disk left of a line: it never counted, and nothing may be written behind it."""
    with path.open("rb+") as file:
        end = at = file.seek(0, os.SEEK_END)
        while at:
            start = max(0, at - 65536)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                at = start + found + 1
                break
            at = start
        if at < end:
            file.truncate(at)


def _append(path: Path, lines: Iterable[str]) -> int:
    """Lines at the end of a 0600 file; they are on the disk when this returns."""
    count = 0
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
        for line in lines:
            file.write(line + "\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count
