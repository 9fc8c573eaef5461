"""The books of a cleaned corpus: what each step took, from which source, by which rule, and for each document what became of it and why.

Two tables lie beside the shards: ``ledger.parquet`` has a row for each document and step that removed or edited it, with the
evidence; ``documents.parquet`` has a row for each document that is left.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cptlab.corpora.clean.pipeline import Cleaned, Stage
from cptlab.corpora.clean.step import TRAIN
from cptlab.corpora.planted import truth
from cptlab.errors import CorpusError

if TYPE_CHECKING:
    from datasets import Dataset

LEDGER, DOCUMENTS, QUARANTINE = "ledger.parquet", "documents.parquet", "quarantine.json"
ROWS = 500  # looked at together
EXAMPLES = 2
ORIGINS = 100
# bytes and tokens: before the step, and what the step left of them (0: removed)
LEDGER_COLUMNS = ("id", "source", "origin", "split", "step", "rule", "evidence", "bytes", "bytes_left", "tokens", "tokens_left")
DOCUMENT_COLUMNS = ("id", "source", "origin", "split", "bytes", "tokens")

CountTokens = Callable[[list[str]], list[int]]


def write_ledger(cleaned: Cleaned, count_tokens: CountTokens, folder: Path) -> dict:
    """Write ``ledger.parquet``; return its sums as plain data.

    Returns:
        ``taken``: rows of step, title, source, split, rule, documents (removed), edited (documents), bytes, tokens (taken away).
        ``kinds``: rows of kind (of planted documents; "" for all others), step, removed, edited (training documents), tokens (taken).
        ``examples``: for each step and rule the first rows of the ledger, without text: id, step, rule, evidence.
    """
    taken: dict[tuple, Counter] = {}
    kinds: dict[tuple, Counter] = {}
    examples: dict[tuple, list[dict]] = {}

    def rows() -> Iterator[dict]:
        for stage in cleaned.stages:
            for row in _entries(stage, count_tokens):
                key = (stage.step.name, stage.step.title, row["source"], row["split"], row["rule"])
                change = "edited" if row["bytes_left"] else "documents"
                sums = taken.setdefault(key, Counter(documents=0, edited=0, bytes=0, tokens=0))
                sums.update({change: 1} | {unit: row[unit] - row[f"{unit}_left"] for unit in ("bytes", "tokens")})
                if row["split"] == TRAIN:
                    sums = kinds.setdefault((kind_of(row["id"]), row["step"]), Counter(documents=0, edited=0))
                    sums.update({change: 1, "tokens": row["tokens"] - row["tokens_left"]})
                some = examples.setdefault((row["step"], row["rule"]), [])
                if len(some) < EXAMPLES:
                    some.append({name: row[name] for name in ("id", "step", "rule")} | {"evidence": json.loads(row["evidence"])})
                yield row

    _write_parquet(rows(), LEDGER_COLUMNS, folder / LEDGER)
    names = ("step", "title", "source", "split", "rule")
    return {
        "taken": [dict(zip(names, key, strict=True)) | dict(sums) for key, sums in taken.items()],
        "kinds": [
            {"kind": kind, "step": step, "removed": sums["documents"], "edited": sums["edited"], "tokens": sums["tokens"]}
            for (kind, step), sums in kinds.items()
        ],
        "examples": [row for some in examples.values() for row in some],
    }


def kind_of(document: str) -> str:
    """The kind of a planted document (``source/planted:kind:...``); "" for a document that was not planted."""
    planted = truth(document.partition("/")[2])
    return planted[0] if planted else ""


def _entries(stage: Stage, count_tokens: CountTokens) -> Iterator[dict]:
    for start in range(0, len(stage.outcome), ROWS):
        outcome = stage.outcome[start : start + ROWS]
        before = stage.before.select(outcome["row"])[:]
        left = [text or "" for text in outcome["text"]]
        for place, (tokens, tokens_left) in enumerate(zip(count_tokens(before["text"]), count_tokens(left), strict=True)):
            yield {
                **{name: before[name][place] for name in ("id", "source", "origin", "split", "bytes")},
                **{name: outcome[name][place] for name in ("rule", "evidence")},
                "step": stage.step.name,
                "bytes_left": len(left[place].encode()),
                "tokens": tokens,
                "tokens_left": tokens_left if left[place] else 0,
            }


def write_documents(rows: Iterator[dict], folder: Path) -> None:
    """Write ``documents.parquet`` from rows with :data:`DOCUMENT_COLUMNS`, as they come."""
    _write_parquet(rows, DOCUMENT_COLUMNS, folder / DOCUMENTS)


def _write_parquet(rows: Iterator[dict], columns: tuple[str, ...], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    numbers = ("bytes", "bytes_left", "tokens", "tokens_left")
    schema = pa.schema([(name, pa.int64() if name in numbers else pa.string()) for name in columns])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        batch: list[dict] = []
        for row in rows:
            batch.append(row)
            if len(batch) == 10_000:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))


def totals(data: "Dataset") -> list[dict]:
    """Documents and bytes of each source and split."""
    sums: dict[tuple, Counter] = {}
    for start in range(0, len(data), 10_000):
        columns = data.select_columns(["source", "split", "bytes"])[start : start + 10_000]
        for source, split, size in zip(*(columns[name] for name in ("source", "split", "bytes")), strict=True):
            sums.setdefault((source, split), Counter()).update(documents=1, bytes=size)
    return [{"source": source, "split": split, **counts} for (source, split), counts in sorted(sums.items())]


def origins(cleaned: Cleaned) -> list[dict]:
    """The largest origins (:data:`ORIGINS` of them): rows of source, origin, documents, bytes (read), documents_left, bytes_left."""
    from cptlab.corpora.clean.screen import counts

    left = {(row["source"], row["origin"]): row for row in counts(cleaned.left)}
    nothing = {"documents": 0, "bytes": 0}
    rows = []
    for row in counts(cleaned.read)[:ORIGINS]:
        after = left.get((row["source"], row["origin"]), nothing)
        rows.append(row | {"documents_left": after["documents"], "bytes_left": after["bytes"]})
    return rows


def why(folder: Path, document: str) -> dict:
    """What became of a document, as plain data: id, source, split, kept (bool), steps (those that removed or edited it, in order, with rule
    and evidence).

    Args:
        document: its id, or the end of it from a "/" on (``web.jsonl:12``), or a part of it that only one document has. A record that could
            not be read has no id: its file and number (``web.jsonl:12``) do, of a whole file its name.

    Raises:
        CorpusError: no document has it, or several have; the message names some.
    """
    found: dict[str, dict] = {}
    if not (folder / LEDGER).is_file():
        raise CorpusError(f"{folder} is not a cleaned corpus: nothing was removed from it")
    entries = _matching(folder / LEDGER, document)
    for row in _matching(folder / DOCUMENTS, document) + entries:
        found.setdefault(row["id"], {"id": row["id"], "source": row["source"], "split": row["split"], "kept": True, "steps": []})
    unread = _unread(folder, document)
    if unread:
        return unread
    for fits in (lambda key: key == document, lambda key: key.endswith(f"/{document}")):
        exact = {key: answer for key, answer in found.items() if fits(key)}
        if len(exact) == 1:
            found = exact
            break
    if not found and "/" in document:  # a path: ids hold the file's name alone
        return why(folder, document.rpartition("/")[2])
    if not found:
        raise CorpusError(f"no document in {folder} has {document!r} in its id: `cptlab corpora report NAME --sample 3` shows some ids")
    if len(found) > 1:
        some = ", ".join(sorted(found)[:5])
        raise CorpusError(f"{len(found)} documents have {document!r} in their id: name one of them, such as {some}")
    [answer] = found.values()
    for row in entries:
        if row["id"] == answer["id"]:
            step = {name: row[name] for name in ("step", "rule", "bytes", "bytes_left", "tokens", "tokens_left")}
            answer["steps"].append(step | {"evidence": json.loads(row["evidence"] or "{}")})
            answer["kept"] = answer["kept"] and row["bytes_left"] > 0
    return answer


def _unread(folder: Path, document: str) -> dict | None:
    """What became of a record, or of a file, that was set aside when it was read."""
    for source, noted in json.loads((folder / QUARANTINE).read_text(encoding="utf-8")).items():
        for note in noted["notes"] + noted.get("files", []):
            whole = not note["number"]  # of a file, which every line of it stands for
            name = note["file"] if whole else f"{note['file']}:{note['number']}"
            wanted = re.sub(r":\d+$", "", document) if whole else document
            if name == wanted or name.endswith(f"/{wanted}"):
                step = {"step": "read", "rule": note["reason"], "evidence": {"detail": note["detail"]}}
                return {"id": name, "source": source, "split": "", "kept": False, "steps": [step]}
    return None


def sample(folder: Path, count: int) -> list[dict]:
    """The first ``count`` rows of the ledger for each step and rule."""
    import pyarrow.parquet

    seen: Counter = Counter()
    rows = []
    if not (folder / LEDGER).is_file():
        raise CorpusError(f"{folder} is not a cleaned corpus: nothing was removed from it")
    with pyarrow.parquet.ParquetFile(folder / LEDGER) as table:
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                seen[row["step"], row["rule"]] += 1
                if seen[row["step"], row["rule"]] <= count:
                    rows.append(row)
    return rows


def _matching(path: Path, document: str) -> list[dict]:
    import pyarrow.compute
    import pyarrow.parquet

    rows = []
    with pyarrow.parquet.ParquetFile(path) as table:
        for batch in table.iter_batches():
            rows += batch.filter(pyarrow.compute.match_substring(batch["id"], document)).to_pylist()
    return rows
