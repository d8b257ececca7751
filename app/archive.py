"""A backup as a file: a tar.gz whose first member says what all others are, with their sizes and SHA-256.

One rule: nothing is written to its place before its checksum was found right, and no name leads out of that place.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from app.types import MosaicError

FORMAT = 1
MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 16 * 1024 * 1024
_CHUNK = 1024 * 1024


class BadArchive(MosaicError):
    code = "bad_backup"


def files_below(root: Path) -> tuple[str, ...]:
    """Names of the plain files below a directory, sorted."""
    found = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return tuple(sorted(str(path.relative_to(root)) for path in found))


def pack(root: Path, target: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write everything below `root` into `target` (0600, whole or not at all); the manifest. It must not exist yet."""
    listed = {
        name: {"size": (root / name).stat().st_size, "sha256": _digest(root / name)} for name in files_below(root)
    }
    manifest = {**facts, "format": FORMAT, "files": listed}
    (root / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    draft = target.with_name(f".{target.name}.part")
    try:
        with _created(draft) as file:
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6, format=tarfile.PAX_FORMAT) as tar:
                for name in (MANIFEST, *listed):
                    tar.add(root / name, arcname=name, recursive=False, filter=_nobody)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, target)  # refuses to replace a file that appeared meanwhile
    except FileExistsError:
        raise MosaicError(f"{target} is there already. Name another file.", code="exists") from None
    finally:
        draft.unlink(missing_ok=True)
    return manifest


def unpack(source: Path, into: Path) -> dict[str, Any]:
    """Write the archive's files below `into` (empty); the manifest. Raises BadArchive and leaves what it wrote."""
    try:
        with tarfile.open(source, mode="r:gz") as tar:
            members = iter(tar)
            manifest = _manifest(tar, next(members, None), source)
            missing = dict(manifest["files"])
            for member in members:
                expected = missing.pop(member.name, None)
                if expected is None or not member.isreg() or not _inside(member.name):
                    raise BadArchive(f"{source} holds {member.name!r}, which its list does not: it was changed.")
                _extract(tar, member, into / member.name, expected)
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise MosaicError(f"{source} cannot be unpacked: {error}.", code="unreadable") from error
        raise BadArchive(f"{source} is not a whole backup of Mosaic: {error}.") from error
    if missing:
        raise BadArchive(f"{source} lacks {', '.join(sorted(missing)[:3])}: it is cut off or was changed.")
    return manifest


def _manifest(tar: tarfile.TarFile, first: tarfile.TarInfo | None, source: Path) -> dict[str, Any]:
    file = tar.extractfile(first) if first and first.name == MANIFEST and first.isreg() else None
    if file is None:
        raise BadArchive(f"{source} is not a backup of Mosaic: it does not begin with {MANIFEST}.")
    manifest: dict[str, Any] = json.loads(file.read(_MANIFEST_LIMIT))
    if manifest["format"] != FORMAT:
        raise BadArchive(f"{source} has format {manifest['format']}; this Mosaic reads format {FORMAT}.")
    return manifest


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, expected: Mapping[str, Any]) -> None:
    reader = tar.extractfile(member)
    assert reader is not None
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with _created(target) as file:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
    if (size, digest.hexdigest()) != (expected["size"], expected["sha256"]):
        raise BadArchive(f"{member.name} in the backup is damaged: its checksum is wrong.")


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _created(path: Path) -> Iterator[IO[bytes]]:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        yield file


def _nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The account that made the backup is not part of it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o600
    return member
