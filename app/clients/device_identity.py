"""The Ed25519 identity that the OpenClaw gateway knows this Mosaic by. Its one rule: the key never leaves its file."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from app.types import ConfigInvalid


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """A key pair; `device_id` is the SHA-256 of the raw public key in hex, as the gateway computes it."""

    key: Ed25519PrivateKey

    @property
    def public_bytes(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def device_id(self) -> str:
        return hashlib.sha256(self.public_bytes).hexdigest()

    def proof(
        self, client: Mapping[str, str], role: str, scopes: Sequence[str], token: str, challenge: Mapping[str, object]
    ) -> dict[str, object]:
        """The `device` object of a connect request: signs who connects, as what, with which token and challenge."""
        stamp, nonce = challenge.get("ts"), str(challenge.get("nonce", ""))
        fields = ["v3", self.device_id, client["id"], client["mode"], role, ",".join(scopes), str(stamp), token, nonce]
        signature = self.key.sign("|".join([*fields, client["platform"], ""]).encode())
        return {
            "id": self.device_id,
            "publicKey": _base64url(self.public_bytes),
            "signature": _base64url(signature),
            "signedAt": stamp,
            "nonce": nonce,
        }


def load_or_create(path: Path | None) -> DeviceIdentity:
    """The identity kept at `path` (0600; made on first use, safely when two processes start at once).

    Without a path the identity lives as long as this process. ConfigInvalid when the file is not such a key.
    """
    if path is None:
        return DeviceIdentity(Ed25519PrivateKey.generate())
    if not path.exists():
        _create(path)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigInvalid(
            f"{path} is not a readable private key ({error}); delete it to get a new one.", source=str(path)
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigInvalid(f"{path} is not an Ed25519 key; delete it to get a new one.", source=str(path))
    return DeviceIdentity(key)


def _create(path: Path) -> None:
    """Write a new key beside the path and link it into place: the first of several writers wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    number, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 from its first moment on
    with os.fdopen(number, "wb") as file:
        file.write(pem)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # another one was first: its key is the one to use
    finally:
        os.unlink(draft)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
