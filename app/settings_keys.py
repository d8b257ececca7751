"""The keys that Mosaic makes itself: once, 0600, under `keys/` in the data directory, the same for every process."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

GENERATED: tuple[str, ...] = ("MOSAIC_SECRET_KEY", "MOSAIC_OPENCLAW_TOKEN", "MOSAIC_ANCHOR_KEY")


def key_path(data_dir: Path, name: str) -> Path:
    """Where the key of that setting is kept."""
    return data_dir / "keys" / name


def ensure_generated(data_dir: Path, names: Iterable[str] = GENERATED) -> Mapping[str, Path]:
    """Make the keys that are absent and return the file of each, by the name of its setting.

    Any number of processes may call it at the same moment: all find the same key. OSError when the directory cannot be
    written, or when a key there is readable by other accounts (then nobody knows who else has it).
    """
    directory = data_dir / "keys"
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    return {name: _ensure(key_path(data_dir, name)) for name in names}


def read_key(path: Path) -> str:
    """The key in that file; OSError when it is absent, empty, or readable by other accounts."""
    with path.open(encoding="ascii", errors="replace") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise PermissionError(f"{path} can be read by other accounts; remove it, and a new key is made")
        key = file.read().strip()
    if not key:
        raise OSError(f"{path} is empty; remove it, and a new key is made")
    return key


def _ensure(path: Path) -> Path:
    if not path.exists():
        _create(path, secrets.token_hex(32))
    read_key(path)
    return path


def _create(path: Path, key: str) -> None:
    """Write a complete file first and then give it its name: `link` refuses when another process was quicker."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return  # the other process's key holds
    finally:
        draft.unlink()
