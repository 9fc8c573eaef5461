"""Readers: from a :class:`~cptlab.corpora.parts.SourceRef` to documents, in an order that does not depend on the machine.

Bad input is an error that names the file and the line; or, where a :class:`Quarantine` is given, a malformed record is left out,
noted and counted, and so is a whole file that cannot be read, if it was found in a folder. Nothing is skipped in silence, and a file
that was named is an error when it is bad as a whole.
"""

import hashlib
import json
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cptlab.corpora.lines import Bad, lines, too_long, unreadable
from cptlab.corpora.parts import UNREADABLE, SourceRef, file_kind, file_labels, printable
from cptlab.corpora.quarantine import Note, Quarantine, UnreadableFile
from cptlab.corpora.sources import get_source
from cptlab.errors import CorpusError
from cptlab.files import sha256_file

PARQUET_ROWS = 64  # read at once
SHOWN = 10  # files in an error
MISSING = object()


@dataclass(frozen=True)
class Document:
    """One document. All documents of one ``split_key`` fall on the same side of the split.

    ``origin`` says where it comes from within its source, for screening and counting: an edition, a file, a site.
    """

    id: str
    split_key: str
    text: str
    origin: str = ""


# What a record comes to: its number in the file, its name for errors, and the document, why there is none, or None for one without text.
Record = tuple[int, str, Document | Bad | None]


def documents(ref: SourceRef, quarantine: Quarantine | None = None) -> Iterator[Document]:
    """The documents of one source, stripped, none empty; each call reads anew.

    Args:
        quarantine: takes the malformed records of files and data sets, and the unreadable files of folders; None: the first is an error.

    Raises:
        CorpusError: naming file and line (or row), field and remedy; or a file that is empty, unreadable, damaged, of another kind; or
            that no file of a folder can be read.
    """
    if ref.source:
        from cptlab.corpora.declared import READERS  # which reads with the tools of this module

        found = READERS[get_source(ref.source).reader](ref)
    elif ref.hub:
        found = read_hub(ref, quarantine)
    else:
        found = read_files(ref, quarantine)
    yield from islice(found, ref.max_documents)
    if quarantine is not None:
        quarantine.check()  # of a file that max_documents left before its end


def read_files(ref: SourceRef, quarantine: Quarantine | None = None) -> Iterator[Document]:
    """A user's own files, one after another. The content must still be the one that the recipe's fingerprint stands for."""
    found = set(ref.found) if quarantine is not None else set()
    for name, label, expected in zip(ref.files, file_labels(ref.files), ref.file_hashes, strict=True):
        path = Path(name)
        read = {"jsonl": _read_jsonl, "text": _read_text, "parquet": _read_parquet}[file_kind(path)]
        try:
            _check(path, expected)
            if name in found:  # to its end before any of it is given: a file is read as a whole or set aside as a whole
                for _ in _sift(str(path), read(path, ref), Quarantine(quarantine.limit)):
                    pass
        except UnreadableFile as error:
            if name not in found:
                raise
            detail = re.sub(r"^:(?=\d)", "line ", str(error).removeprefix("file ").removeprefix(name)).lstrip(": ")
            quarantine.set_aside(printable(name), error.reason, printable(detail))
            continue
        for document in _sift(str(path), read(path, ref), quarantine, one_of_many=len(ref.files) > 1):
            yield replace(document, id=label + document.id.removeprefix(str(path)))  # the same wherever the file lies
    if found and len(quarantine.files) == len(ref.files):
        some = "; ".join(f"{note.file}: {note.detail}" for note in quarantine.files[:SHOWN])
        more = f"; and {len(ref.files) - SHOWN} more" if len(ref.files) > SHOWN else ""
        raise CorpusError(f"none of the {len(ref.files)} files can be read: {some}{more}")


def _check(path: Path, expected: str) -> None:
    """UnreadableFile for a file that cannot be named or read, CorpusError when it is not the one that the fingerprint stands for."""
    try:
        str(path).encode()  # it stands in the ids of documents
    except UnicodeEncodeError as error:
        raise UnreadableFile(f"file {str(path)!r}: its name is not valid UTF-8: rename it", "misnamed") from error
    if expected != UNREADABLE and not path.is_file():
        raise CorpusError(f"file {path} does not exist: check the path")
    try:
        content = sha256_file(path)
    except OSError as error:
        kind = UnreadableFile if expected == UNREADABLE else CorpusError
        raise kind(f"file {path} cannot be read ({error.strerror}): check its permissions, its disk and where it links to") from error
    if content != expected:
        raise CorpusError(f"file {path} has changed since the recipe was made: make the recipe anew")


def _sift(file: str, records: Iterator[Record], quarantine: Quarantine | None, one_of_many: bool = False) -> Iterator[Document]:
    """The documents among ``records``; the malformed ones are an error, or go to the quarantine. So does an empty file among many."""
    empty, strict = True, quarantine is None or not quarantine.limit
    if quarantine is not None:
        quarantine.begin(file)
    for number, where, found in records:
        empty = False
        if isinstance(found, Bad):
            if strict:
                raise CorpusError(f"{where}: {found.detail}{found.remedy}")
            quarantine.add(Note(file, number, found.reason, found.detail))
            continue
        if quarantine is not None:
            quarantine.add(None)
        if found is not None:
            yield found
    if empty and one_of_many and not strict:
        quarantine.set_aside(file, "empty-file", "holds no document")
    elif empty:
        raise UnreadableFile(f"{file} holds no document: take it out of the source, or give it text", "empty-file")
    if quarantine is not None:
        quarantine.check()


def _read_jsonl(path: Path, ref: SourceRef) -> Iterator[Record]:
    for number, line in lines(path):
        where = f"{path}:{number}"
        if isinstance(line, Bad):
            yield number, where, line
        elif line.strip():
            yield number, where, _from_line(line, ref, where, path.name)


def _from_line(line: str, ref: SourceRef, where: str, origin: str) -> Document | Bad | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # besides bad JSON: numbers of too many digits, lists too deep
        return Bad("not-json", f"not valid JSON ({getattr(error, 'msg', str(error)):.60})", ": give one JSON object a line")
    if not isinstance(row, dict):
        return Bad("not-object", f"a {type(row).__name__}, not an object", ": give one JSON object a line")
    return _from_row(row, ref, where, origin)


def _read_text(path: Path, ref: SourceRef) -> Iterator[Record]:
    """Documents are parted by blank lines. A bad line spoils its whole document."""
    block: list[str] = []
    size, start, spoilt = 0, 1, False
    for number, line in lines(path):
        if isinstance(line, Bad):
            if not spoilt:
                yield number, f"{path}:{number}", line
            block, spoilt = [], True
        elif not line.strip():
            if block:
                yield start, f"{path}:{start}", _document("".join(block), None, f"{path}:{start}", path.name)
            block, size, spoilt = [], 0, False
        elif not spoilt:
            start = start if block else number
            block.append(line)
            size += len(line)  # characters, of which a document has at most as many as bytes: _document counts exactly
            if bad := too_long("the document that begins here", size):
                yield start, f"{path}:{start}", bad
                block, spoilt = [], True
    if block:
        yield start, f"{path}:{start}", _document("".join(block), None, f"{path}:{start}", path.name)


def _read_parquet(path: Path, ref: SourceRef) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    # Without these settings pyarrow reads a whole row group ahead, which may be gigabytes.
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as table:
            held = [name for name in (ref.text_field, ref.split_field, ref.origin_field) if name and _has_column(table.schema_arrow, name)]
            missing = [name for name in (ref.text_field, ref.split_field) if name and name not in held]
            if missing:
                raise UnreadableFile(
                    f"{path}: no columns {missing}; it has {', '.join(table.schema_arrow.names)}: "
                    "set text_field (--text-field) or split_field",
                    "no-column",
                )
            number = 0
            for batch in table.iter_batches(PARQUET_ROWS, columns=held):
                for row in batch.to_struct_array():
                    number += 1
                    where = f"{path}: row {number}"
                    try:
                        found = _from_row(row.as_py(), ref, where, path.name)
                    except UnicodeDecodeError as error:
                        found = Bad("not-utf8", f"not valid UTF-8 ({error.reason}, byte {error.start})", ": write the file again")
                    yield number, where, found
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: the name of a column that is damaged
        where = f"{path}: not a readable parquet file ({error})"
        raise unreadable(error, f"{where}: write it again", f"{where}: check its disk") from error


def _has_column(schema: Any, name: str) -> bool:
    """Whether a pyarrow schema has the column, or the field of a struct column that a dotted ``name`` means."""
    if name in schema.names:
        return True
    head, *rest = name.split(".")
    if head not in schema.names:
        return False
    kind = schema.field(head).type
    for part in rest:
        if not hasattr(kind, "get_field_index") or kind.get_field_index(part) < 0:
            return False
        kind = kind.field(part).type
    return True


def read_hub(ref: SourceRef, quarantine: Quarantine | None = None) -> Iterator[Document]:
    """A Hugging Face dataset, streamed: only the shards made of it are stored. ``ref.hub`` may also be a local folder of data files."""
    from datasets import load_dataset

    where = f"dataset {ref.hub} ({ref.config or 'default'}, {ref.split})"
    try:
        rows = iter(load_dataset(ref.hub, ref.config, data_dir=ref.data_dir, split=ref.split, revision=ref.revision, streaming=True))
    except Exception as error:  # datasets raises errors of many libraries here; each means the same to the user
        raise CorpusError(
            f"{where} cannot be opened at revision {ref.revision}: {_brief(error)}. Check name, config, revision, split and network"
        ) from error
    yield from _sift(where, _read_rows(rows, ref, where), quarantine)


def _read_rows(rows: Iterator[dict], ref: SourceRef, where: str) -> Iterator[Record]:
    origin = f"{ref.hub}:{ref.config}" if ref.config else ref.hub
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise CorpusError(f"{where} broke off after {number} rows: {_brief(error)}. Check the network and build again") from error
        number += 1
        yield number, f"{where}: row {number}", _from_row(row, ref, f"{where}: row {number}", origin)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _value(row: dict[str, Any], name: str) -> Any:
    """The value of a field, or MISSING; ``meta.site`` is the field ``site`` of the object ``meta``, unless a field has that very name."""
    if name in row:
        return row[name]
    found: Any = row
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            return MISSING
        found = found[part]
    return found


def _from_row(row: dict[str, Any], ref: SourceRef, where: str, origin: str) -> Document | Bad | None:
    text = _value(row, ref.text_field)
    if not isinstance(text, str):
        name = repr(ref.text_field)
        problem = f"no field {name}" if text is MISSING else f"field {name} is {reprlib.repr(text):.40}, not text"
        return Bad("no-text", problem, f"; the fields are {_names(row)}: set text_field or mend the file")
    key = None
    if ref.split_field:
        value = _value(row, ref.split_field)
        if value is None or value is MISSING:
            remedy = f"; the fields are {_names(row)}: set split_field"
            return Bad("no-split-field", f"no field {ref.split_field!r} for the split", remedy)
        key = str(value)
    return _document(text, key, where, _origin(row, ref.origin_field) or origin)


def _names(row: dict[str, Any]) -> str:
    return ", ".join(str(name)[:80] for name in islice(row, 20)).encode(errors="backslashreplace").decode()


def _origin(row: dict[str, Any], name: str | None) -> str:
    """Value of the field, of an address its host; empty when there is none."""
    value = _value(row, name) if name else None
    if value is None or value is MISSING:
        return ""
    value = str(value).strip().encode(errors="replace").decode()
    try:
        host = urlsplit(value).hostname if "://" in value else None
    except ValueError:  # not an address after all
        host = None
    return host.removeprefix("www.") if host else value


def _document(text: str, key: str | None, where: str, origin: str) -> Document | Bad | None:
    text = text.strip()
    if not text:
        return None
    try:
        raw = text.encode()
        (key or "").encode()
    except UnicodeEncodeError as error:
        what = "the text" if error.object is text else "the split field"
        remedy = ": it is no valid Unicode, mend the file"
        return Bad("surrogate", f"{what} holds a lone surrogate at character {error.start}", remedy)
    # Without a field to go by, the text itself decides: exact copies then cannot sit on both sides of the split.
    key = hashlib.sha256(raw).hexdigest() if key is None else key
    return too_long("the text", len(raw)) or Document(where, key, text, origin)
