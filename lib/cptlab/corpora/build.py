"""Building a corpus: read, clean, split, tokenise, pack; once for each fingerprint."""

import dataclasses
import shutil
import tempfile
import time
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cptlab.corpora import hub
from cptlab.corpora import recipe as named_recipe
from cptlab.corpora.readers import Document
from cptlab.corpora.recipe import CorpusRecipe
from cptlab.corpora.shards import FORMAT, SPLITS, Corpus, token_dtype
from cptlab.corpora.texts import CleanedTexts, Texts, texts
from cptlab.corpora.tokenizer import make
from cptlab.errors import CorpusError
from cptlab.files import atomic_json, disk_errors, sha256_file
from cptlab.paths import cache_dir

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_BYTES = 4_000_000  # text that is encoded at once: bounds memory, keeps the tokeniser's threads busy


def corpus_dir(recipe: CorpusRecipe) -> Path:
    """Where the corpus lies, built or not."""
    return cache_dir() / "corpora" / recipe.fingerprint[:16]


def is_built(recipe: CorpusRecipe | str) -> bool:
    """Whether :func:`open_corpus` would return at once."""
    return (corpus_dir(_recipe(recipe)) / "manifest.json").is_file()


def open_corpus(recipe: CorpusRecipe | str, say: Callable[[str], None] | None = None) -> Corpus:
    """The corpus of ``recipe`` (or of a named one), built first when it is missing; of two builders at once one waits for the other.

    Args:
        say: is told in a few words what the build is doing. Without it, files of a folder that could not be read are a warning; either
            way :func:`~cptlab.corpora.reports.report` lists them.

    Raises:
        CorpusError: a source cannot be fetched or read, or gives no text on one side of the split.
    """
    from filelock import FileLock

    recipe = _recipe(recipe)
    path = corpus_dir(recipe)
    built = not path.exists()
    if built:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / f".{path.name}.lock"):
            if not path.exists():
                with disk_errors(path):
                    _build(recipe, path, say or (lambda message: None))
    corpus = Corpus(recipe, path)
    if built and say is None and (files := corpus.manifest.get("set_aside")):
        first = "; ".join(f"{row['file']}: {row['detail']}" for row in files[:3])
        warnings.warn(f"corpus {recipe.name!r}: files that could not be read were set aside, {len(files)} in all: {first}", stacklevel=2)
    return corpus


def _recipe(recipe: CorpusRecipe | str) -> CorpusRecipe:
    return named_recipe(recipe) if isinstance(recipe, str) else recipe


def _build(recipe: CorpusRecipe, path: Path, say: Callable[[str], None]) -> None:
    start = time.perf_counter()
    for left in path.parent.glob(f".building-{path.name}-*"):  # of builders that were killed: we hold the lock, nobody else builds
        shutil.rmtree(left)
    pinned, commits = hub.pinned(recipe)
    found = texts(pinned, say)
    if isinstance(found, CleanedTexts):
        _require_text(found)
    folder = Path(tempfile.mkdtemp(prefix=f".building-{path.name}-", dir=path.parent))
    try:
        say(f"{recipe.name}: tokenizer")
        tokenizer = make(recipe, found)
        tokenizer.save(str(folder / "tokenizer.json"))
        shards: dict[str, dict] = {}
        lengths = {name: array("q") for name in recipe.names}
        for name in recipe.names:
            say(f"{recipe.name}: {name}")
            shards |= _pack(recipe, name, tokenizer, folder, found, lengths[name])
        manifest = {
            "format": FORMAT,
            "fingerprint": recipe.fingerprint,
            "name": recipe.name,
            "recipe": recipe.canonical(),
            "dtype": token_dtype(recipe.vocab).str,
            "eot": tokenizer.token_to_id(recipe.tokenizer.eot),
            "tokenizer_sha256": sha256_file(folder / "tokenizer.json"),
            "tokenizer_tokens": tokenizer.get_vocab_size(),
            "shards": dict(sorted(shards.items())),
            "versions": {package: version(package) for package in ("tokenizers", "datasets", "numpy")},
        }
        if isinstance(found, CleanedTexts):
            say(f"{recipe.name}: ledger")
            manifest["cleaning"] = _books(found, tokenizer, folder, lengths)
        if commits:
            manifest["commits"] = commits
        if files := _set_aside(found):
            manifest["set_aside"] = files
        manifest["seconds"] = round(time.perf_counter() - start, 3)
        atomic_json(folder / "manifest.json", manifest)
        folder.chmod(0o755)  # mkdtemp makes folders private
        folder.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pack(recipe: CorpusRecipe, name: str, tokenizer: "Tokenizer", folder: Path, found: Texts, lengths: array) -> dict[str, dict]:
    """Write both shards of one source; shard name -> its entry in the manifest. ``lengths`` takes the tokens of each document written."""
    end = tokenizer.token_to_id(recipe.tokenizer.eot)
    given_as = ciphered(recipe, name, end)
    counts = {split: {"source": name, "split": split, "documents": 0, "bytes": 0, "tokens": 0} for split in SPLITS}
    paths = {split: folder / split / f"{name}.bin" for split in SPLITS}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
    with paths["train"].open("wb") as train, paths["validation"].open("wb") as validation:
        for batch in _batches(found.documents(name)):
            encoded = tokenizer.encode_batch_fast([document.text for _, document in batch], add_special_tokens=False)
            for (split, document), encoding in zip(batch, encoded, strict=True):
                ids = given_as[[*encoding.ids, end]]
                (train if split == "train" else validation).write(ids.tobytes())
                counts[split]["documents"] += 1
                counts[split]["bytes"] += len(document.text.encode())
                counts[split]["tokens"] += len(ids)
                lengths.append(len(ids))
    for split, count in counts.items():
        if not count["documents"]:
            where = f"corpus {recipe.name!r}: source {name!r}"
            other = sum(count["documents"] for count in counts.values())
            if not other:
                raise CorpusError(f"{where} is empty: check its files, versions and books")
            raise CorpusError(f"{where}: none of its {other} documents fall in {split}: give more, or change validation.fraction or salt")
    return {f"{split}/{name}.bin": counts[split] | {"sha256": sha256_file(paths[split])} for split in SPLITS}


def ciphered(recipe: CorpusRecipe, name: str, end: int) -> np.ndarray:
    """What each token of source ``name`` is written as, shape [vocab]: itself, or by the source's cipher; ``end`` stays."""
    ids = np.arange(recipe.vocab, dtype=token_dtype(recipe.vocab))
    seed = recipe.sources[name].cipher
    if seed is not None:
        others = np.delete(ids, end)
        ids[others] = np.random.default_rng(seed).permutation(others)
    return ids


def _require_text(found: CleanedTexts) -> None:
    """CorpusError when the cleaning took all there was of a source on one side of the split: it says what took it."""
    left = {(row["source"], row["split"]) for row in found.left}
    for row in found.read:
        if (row["source"], row["split"]) in left:
            continue
        parts = [f"{row['documents']} were read"]
        for stage in found.cleaned.stages:
            rules: Counter = Counter()
            before = stage.before.select(stage.outcome["row"])
            for source, split, rule in zip(before["source"], before["split"], stage.outcome["rule"], strict=True):
                if (source, split) == (row["source"], row["split"]):
                    rules[rule] += 1
            parts += [f"{stage.step.name} removed {count} ({rule})" for rule, count in rules.items()]
        raise CorpusError(
            f"corpus {found.recipe.name!r}: source {row['source']!r}: the cleaning left no document in {row['split']}; {', '.join(parts)}: "
            "change the steps' settings, or give more text"
        )


def _set_aside(found: Texts) -> list[dict]:
    """The files that could not be read: rows of source, file, reason, detail."""
    if isinstance(found, CleanedTexts):
        files = {name: noted.get("files", []) for name, noted in found.cleaned.quarantine.items()}
    else:
        files = {name: map(dataclasses.asdict, notes) for name, notes in found.files.items()}
    return [
        {"source": name} | {key: note[key] for key in ("file", "reason", "detail")}
        for name, notes in sorted(files.items())
        for note in notes
    ]


def _books(found: CleanedTexts, tokenizer: "Tokenizer", folder: Path, lengths: dict[str, array]) -> dict:
    """Write the ledger; what the manifest says of the cleaning. Of ``lengths`` (in tokens) the first pass over a source is needed."""
    from cptlab.corpora.clean.ledger import QUARANTINE, kind_of, origins, write_documents, write_ledger

    def count_tokens(batch: list[str]) -> list[int]:  # with the token that ends a document, as in the shards
        return [len(encoding.ids) + 1 for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]

    tokens: Counter = Counter()
    kept: dict[str, Counter] = {}

    def left() -> Iterator[dict]:
        for name in found.recipe.names:
            for row, count in zip(found.once(name), lengths[name], strict=False):  # up-sampled copies come after the first pass
                tokens[name, row["split"]] += count
                if row["split"] == "train":
                    kept.setdefault(kind_of(row["id"]), Counter()).update(documents=1, tokens=count)
                yield {column: row[column] for column in ("id", "source", "origin", "split", "bytes")} | {"tokens": count}

    write_documents(left(), folder)
    quarantine = found.cleaned.quarantine
    atomic_json(folder / QUARANTINE, quarantine)
    return {
        "read": found.read,
        **write_ledger(found.cleaned, count_tokens, folder),
        "origins": origins(found.cleaned),
        "kept": [{"kind": kind, **sums} for kind, sums in sorted(kept.items())],
        "left": [row | {"tokens": tokens[row["source"], row["split"]]} for row in found.left],
        "steps": [{"step": stage.step.name, "title": stage.step.title} for stage in found.cleaned.stages],
        "quarantine": {
            name: {key: noted[key] for key in ("records", "bad", "reasons")} | {"first": noted["notes"][:5]}
            for name, noted in quarantine.items()
        },
    }


def _batches(found: Iterable[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    """Consecutive documents in lists of about :data:`BATCH_BYTES`."""
    batch, size = [], 0
    for pair in found:
        batch.append(pair)
        size += len(pair[1].text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
