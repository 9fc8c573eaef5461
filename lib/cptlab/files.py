"""Writes that a crash cannot tear, and the hashes that say what a file is."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data``: readers see the old content or the new one, never a part of it."""
    raw = data.encode() if isinstance(data, str) else data
    atomic_write_with(path, lambda temporary: temporary.write_bytes(raw))


def atomic_write_with(path: Path, writer: Callable[[Path], Any]) -> None:
    """Let ``writer`` fill a temporary file beside ``path``, then put it in place in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        writer(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files private; records are not
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys; NaN and infinities are refused, JSON has none."""
    atomic_write(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
