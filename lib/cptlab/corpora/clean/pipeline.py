"""The cleaning of a corpus: read once to disk, then step after step; each finished stage is kept, and a killed build goes on from there.

The stages of a recipe lie in ``<cache>/corpora/stages/<key>/``, where the key is a hash of everything up to that stage: two
recipes that differ in their last step share all stages but that one.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cptlab.corpora.clean.step import COLUMNS, TRAIN, VALIDATION, Step, Work
from cptlab.corpora.parts import SourceRef, in_part, unit_hash
from cptlab.corpora.planted import plant
from cptlab.corpora.readers import Document, Quarantine, documents
from cptlab.corpora.recipe import CorpusRecipe
from cptlab.errors import CorpusError
from cptlab.files import atomic_json, atomic_write_with
from cptlab.paths import cache_dir

if TYPE_CHECKING:
    from datasets import Dataset

READ_ROWS = 200  # documents written at once
STAGE_VERSION = 1  # raise by hand when the files of a stage change their form


@dataclass(frozen=True)
class Stage:
    """What one step did.

    Args:
        step: the step.
        before: the documents it was given (columns :data:`~cptlab.corpora.clean.step.COLUMNS`).
        outcome: the rows of ``before`` that it removed or edited, sorted.
    """

    step: Step
    before: "Dataset"
    outcome: "Dataset"


@dataclass(frozen=True)
class Cleaned:
    """A corpus before it is tokenised: what was read, what each step did, what is left."""

    read: "Dataset"
    stages: tuple[Stage, ...]
    left: "Dataset"
    quarantine: dict[str, dict]


def clean(recipe: CorpusRecipe, workers: int, say: Callable[[str], None]) -> Cleaned:
    """Read the sources of ``recipe`` and take them through its steps.

    Args:
        workers: processes for the steps that look at one document at a time.

    Raises:
        CorpusError: a source cannot be fetched or read, or too much of it is unreadable.
    """
    for step in recipe.clean.steps if recipe.clean else ():
        step.check({name: ref.language_code or "" for name, ref in recipe.sources.items()})
    with _quiet():
        return _clean(recipe, workers, say)


def _clean(recipe: CorpusRecipe, workers: int, say: Callable[[str], None]) -> Cleaned:
    identity = {"version": STAGE_VERSION, "pipeline": [recipe.canonical()[name] for name in ("pipeline_version", "sources", "validation")]}
    identity["quarantine"] = recipe.clean.quarantine if recipe.clean else 0.0
    folder = _folder(identity)
    with _locked(folder):
        if not (folder / "read.json").is_file():
            _read(recipe, folder, say)
    data = _load(folder / "documents.arrow")
    quarantine = json.loads((folder / "read.json").read_text(encoding="utf-8"))
    read, stages = data, []
    for step in recipe.clean.steps if recipe.clean else ():
        [canonical] = [entry for entry in recipe.clean.canonical()["steps"] if entry[0] == step.name]
        identity = {"after": identity, "step": canonical, "validation": recipe.clean.validation}
        folder = _folder(identity)
        served = " (from the cache)" if (folder / "stage.arrow").is_file() else ""
        say(f"{recipe.name}: {step.title}, {len(data)} documents{served}")
        with _locked(folder):
            stage, data = _apply(step, data, folder, workers, say, recipe.clean.validation == "keep")
        stages.append(stage)
    return Cleaned(read, tuple(stages), data, quarantine)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of ``datasets``, one for each of many short maps: ``say`` tells what is being done."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were:
            enable_progress_bars()


def stages_dir() -> Path:
    """Where stages lie; it may be deleted, the next build then starts from the sources."""
    return cache_dir() / "corpora" / "stages"


def _folder(identity: Mapping) -> Path:
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return stages_dir() / hashlib.sha256(text.encode()).hexdigest()[:16]


def _locked(folder: Path) -> Any:
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.parent / f".{folder.name}.lock")


def _load(path: Path) -> "Dataset":
    import pyarrow
    from datasets import Dataset

    try:
        return Dataset.from_file(str(path))
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorpusError(f"{path} cannot be read ({reason}): delete the folder {path.parent}, the build makes it again") from error


def _read(recipe: CorpusRecipe, folder: Path, say: Callable[[str], None]) -> None:
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    kinds = dict.fromkeys(COLUMNS, "string") | {"bytes": "int64", "text": "large_string"}
    features = Features({name: Value(kinds[name]) for name in COLUMNS})
    quarantines = {name: Quarantine(recipe.clean.quarantine if recipe.clean else 0) for name in recipe.names}

    def write(temporary: Path) -> None:
        with ArrowWriter(path=str(temporary), features=features) as writer:
            for name in recipe.names:
                say(f"{recipe.name}: reading {name}")
                for batch in _batched(_rows(recipe, name, quarantines[name])):
                    writer.write_batch({column: [row[column] for row in batch] for column in COLUMNS})
            writer.finalize()

    atomic_write_with(folder / "documents.arrow", write)
    atomic_json(folder / "read.json", {name: found.summary() for name, found in quarantines.items() if found.limit or found.files})


def _rows(recipe: CorpusRecipe, name: str, quarantine: Quarantine) -> Iterator[dict]:
    ref = recipe.sources[name]
    found = documents(ref, quarantine)
    if ref.plant:
        languages = {other.language_code for other in recipe.sources.values() if other.language_code}
        found = plant(found, ref, recipe.validation, taken=languages)
    for document in found:
        split = VALIDATION if recipe.validation.is_validation(document.split_key) else TRAIN
        if split == TRAIN and not in_part(ref.part, document.split_key):
            continue
        yield {
            # Sources may read the same files: the name of the source makes the id its own.
            "id": f"{name}/{document.id}",
            "source": name,
            "origin": document.origin,
            "language": ref.language_code or "",
            "split": split,
            "split_key": document.split_key,
            "bytes": len(document.text.encode()),
            "text": document.text,
        }


def _batched(rows: Iterator[dict]) -> Iterator[list[dict]]:
    batch: list[dict] = []
    for row in rows:
        batch.append(row)
        if len(batch) == READ_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _apply(
    step: Step, data: "Dataset", folder: Path, workers: int, say: Callable[[str], None], keep_validation: bool
) -> "tuple[Stage, Dataset]":
    """One stage: from its files when it was finished before."""
    path = folder / "stage.arrow"
    if not path.is_file():
        outcome = step.judge(data, Work(folder, workers, say, _resolve)) if len(data) else Work(folder).nothing()
        if keep_validation and len(outcome):
            split = np.asarray(data.select(outcome["row"])["split"])
            outcome = outcome.select(np.flatnonzero(split != VALIDATION))
        outcome = outcome.select(np.argsort(outcome["row"], kind="stable"))
        atomic_write_with(path, lambda temporary: _write(outcome, temporary))
    _tidy(folder)
    outcome = _load(path)
    is_removal = outcome.data.column("text").is_null().to_numpy() if len(outcome) else np.zeros(0, dtype=bool)
    removed = np.asarray(outcome.with_format("numpy")["row"][:], dtype=np.int64)[is_removal]
    left = data
    if len(outcome) > len(removed):
        edited = folder / "documents.arrow"
        if not edited.is_file():
            atomic_write_with(edited, lambda temporary: _write(data, temporary, _edits(outcome)))
        left = _load(edited)
    if len(removed):
        keep = np.ones(len(data), dtype=bool)
        keep[removed] = False
        left = left.select(np.flatnonzero(keep))
    return Stage(step, data, outcome), left


def _write(data: "Dataset", path: Path, edits: Iterator[tuple[int, str]] = iter(())) -> None:  # noqa: B008 (empty: nothing to share)
    """An Arrow file of ``data`` that :func:`_load` maps into memory, written batch by batch; ``edits`` are the new texts of some rows, in
    their order."""
    from datasets.arrow_writer import ArrowWriter

    coming = next(edits, None)
    with ArrowWriter(path=str(path), features=data.features) as writer:
        for start in range(0, len(data), READ_ROWS):
            batch = data[start : start + READ_ROWS]
            while coming and coming[0] < start + READ_ROWS:
                place = coming[0] - start
                batch["text"][place], batch["bytes"][place] = coming[1], len(coming[1].encode())
                coming = next(edits, None)
            writer.write_batch(batch)
        writer.finalize()


def _edits(outcome: "Dataset") -> Iterator[tuple[int, str]]:
    for start in range(0, len(outcome), READ_ROWS):
        batch = outcome[start : start + READ_ROWS]
        for row, text in zip(batch["row"], batch["text"], strict=True):
            if text is not None:
                yield row, text


def _tidy(folder: Path) -> None:
    """Delete what the step needed on its way (signatures, embeddings): a finished stage is its outcome alone."""
    for path in folder.iterdir():
        if path.name not in ("stage.arrow", "documents.arrow"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _resolve(reference: Mapping) -> Iterator[Document]:
    return documents(SourceRef(**reference))


def copies(upsample: Mapping[str, float], document_id: str, source: str, origin: str) -> int:
    """How many times a training document is written, once at least: the factor of the first pattern that fits its origin or its source.

    Of a factor with a fraction, that share of the documents, drawn by their id, is written once more.
    """
    for pattern, factor in upsample.items():
        if fnmatchcase(origin, pattern) or fnmatchcase(source, pattern):
            return int(factor) + (unit_hash("copy" + document_id) < factor - int(factor))
    return 1
