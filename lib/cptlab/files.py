"""Writes that a crash cannot tear, and the hashes that say what a file is."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cptlab.errors import CorpusError

# What libraries say that do not pass on the system's error number: tokenizers (written in Rust), SQLite, numpy.
FULL = re.compile(rf"{os.strerror(errno.ENOSPC)}|{os.strerror(errno.EDQUOT)}|database or disk is full|^\d+ requested and \d+ written$")


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


_hashed: dict[tuple[str, int, int], str] = {}  # (path, mtime, size) -> sha256


def hash_once(path: Path) -> str:
    """:func:`sha256_file`; a process that asks again gets the answer from memory unless the file has changed."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
    return _hashed.get(key) or _hashed.setdefault(key, sha256_file(path))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """While a corpus is built under ``path``: a disk that is full, or a quota that is used up, is a CorpusError that says what to do."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        there = next(folder for folder in (Path(path).absolute(), *Path(path).absolute().parents) if folder.exists())
        disk = next(folder for folder in (there, *there.parents) if folder.is_mount())
        room = shutil.disk_usage(there)
        raise CorpusError(
            f"no space left on {disk} at {path} ({room.free / 1e6:.1f} of {room.total / 1e6:.1f} MB are free now; {error}): make room, "
            "or set CPTLAB_CACHE to a folder on another disk (and TMPDIR, if temporary files fill the disk). Nothing built so far is "
            "lost, run the same command again"
        ) from error


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk is the error, or what it was raised from."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or FULL.search(str(error)):
            return True
        error = error.__cause__
    return False
