"""Lines of a text file, plain or compressed, in bounded memory whatever the file holds."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cptlab.corpora.quarantine import UnreadableFile
from cptlab.errors import CorpusError

MAX_LINE_BYTES = 16 * 2**20  # of a line, and of the UTF-8 text of a document
BLOCK_BYTES = 2**20  # in which the rest of a longer line is passed over
BINARY_BYTES = 2**16  # a NUL byte in a line that begins before here: the file is no text at all; later: a damaged line
# A compressed file may grow to the larger of these two. Text shrinks some 3 times, repetitive text 30 and logs 100 times; gzip can
# shrink zeros 1000 times, bzip2 and xz far more: what passes both bounds is made to fill a disk.
BOMB_BYTES = 256 * 2**20
BOMB_RATIO = 200
OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(frozen=True)
class Bad:
    """Why a record is malformed.

    Args:
        reason: a word, see :class:`~cptlab.corpora.quarantine.Note`.
        detail: what was found.
        remedy: what the user can do, with the mark that joins it to ``detail``.
    """

    reason: str
    detail: str
    remedy: str


def too_long(what: str, size: int) -> Bad | None:
    """Says so when ``size``, in bytes, is over :data:`MAX_LINE_BYTES`; ``what`` names the line or text for the message."""
    if size <= MAX_LINE_BYTES:
        return None
    return Bad("too-long", f"{what} has more than {MAX_LINE_BYTES / 2**20:g} MiB", ": part it into documents")


def lines(path: Path) -> Iterator[tuple[int, str | Bad]]:
    """The lines of a file with their numbers from 1; a byte-order mark is taken off.

    Raises:
        UnreadableFile: the file cannot be decompressed to its end, grows without measure, or is no text.
        CorpusError: the system cannot read it.
    """
    most = max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)
    number = size = 0

    def take(limit: int) -> bytes:
        nonlocal size
        raw = stream.readline(limit)
        size += len(raw)
        if size > most and path.suffix in OPENERS:
            raise UnreadableFile(
                f"{path}:{max(number, 1)}: the file grows to more than {most >> 20} MiB, over {BOMB_RATIO} times its size: "
                "it is made to fill a disk; if it is yours, decompress it and give the plain file",
                "bomb",
            )
        return raw

    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as stream:
            while raw := take(MAX_LINE_BYTES + 1):
                number += 1
                nul = b"\0" in raw
                if nul and size - len(raw) < BINARY_BYTES:
                    raise UnreadableFile(
                        f"{path}:{number}: holds NUL bytes, so the file is no UTF-8 text (binary, UTF-16 or damaged): convert it",
                        "binary",
                    )
                if bad := too_long("the line", len(raw)):
                    yield number, bad
                    while raw and not raw.endswith(b"\n"):
                        raw = take(BLOCK_BYTES)
                elif nul:
                    yield number, Bad("nul", "NUL bytes in the line", ": the file is damaged there, mend it")
                else:
                    yield number, _decoded(raw, "utf-8-sig" if number == 1 else "utf-8")
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        where = f"{path} cannot be read after line {number} ({error})"
        raise unreadable(error, f"{where}: it is cut short or damaged, get it again", f"{where}: check its disk") from error


def unreadable(error: Exception, by_content: str, by_system: str) -> CorpusError:
    """The error to raise for one met while a file was read: of its content, or of the system (a disk that fails), which a file is never
    set aside for: the next build might read it."""
    return CorpusError(by_system) if getattr(error, "errno", None) else UnreadableFile(by_content, "damaged")


def _decoded(raw: bytes, encoding: str) -> str | Bad:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        return Bad("not-utf8", f"not valid UTF-8 ({error.reason}, byte {error.start} of the line)", ": convert the file")
