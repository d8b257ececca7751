"""Both clients over TLS: an unknown certificate is refused with the remedy, a configured CA is enough."""

from __future__ import annotations

import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.clients.git import Credential, Git
from app.clients.gitea import GiteaClient
from app.types import Misconfigured

TOKEN = "0123456789abcdef0123456789abcdef01234567"


def certificate(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "forge")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = folder / "forge.pem"
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return path


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        """The API's version, and an empty repository in git's first dialect."""
        git = "info/refs" in self.path
        refs = b"001e# service=git-upload-pack\n0000" + b"0000"
        content = refs if git else json.dumps({"version": "1.27.0"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-git-upload-pack-advertisement" if git else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        pass  # the client that refuses our certificate goes away


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """URL of a server behind TLS, and the CA that vouches for it."""
    pem = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_address[1]}", pem
    server.shutdown()
    server.server_close()


def test_gitea(forge: tuple[str, Path]) -> None:
    url, pem = forge
    with pytest.raises(Misconfigured, match="MOSAIC_CA_BUNDLE") as caught:
        GiteaClient(url, TOKEN).version()
    assert caught.value.code == "untrusted_certificate"
    assert GiteaClient(url, TOKEN, ca_bundle=str(pem)).version() == "1.27.0"


def test_git(forge: tuple[str, Path], tmp_path: Path) -> None:
    url, pem = forge
    credential = Credential("mosaic", TOKEN)
    stranger = Git(tmp_path / "1.git", f"{url}/acme/app.git", credential, timeout=20)
    with pytest.raises(Misconfigured, match="MOSAIC_CA_BUNDLE") as caught:
        stranger.fetch()
    assert caught.value.code == "untrusted_certificate"
    friend = Git(tmp_path / "1.git", f"{url}/acme/app.git", credential, ca_bundle=str(pem), timeout=20)
    friend.fetch()
    assert friend.remote_head("main") is None
