"""Building a corpus: read, split, tokenise, pack; once for each fingerprint."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cptlab.corpora import recipe as named_recipe
from cptlab.corpora.readers import Document, documents
from cptlab.corpora.recipe import CorpusRecipe, unit_hash
from cptlab.corpora.shards import FORMAT, SPLITS, Corpus, token_dtype
from cptlab.corpora.tokenizer import make
from cptlab.errors import CorpusError
from cptlab.files import atomic_json, sha256_file
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
        say: is told in a few words what the build is doing.

    Raises:
        CorpusError: a source cannot be fetched or read, or gives no text on one side of the split.
    """
    from filelock import FileLock

    recipe = _recipe(recipe)
    path = corpus_dir(recipe)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / f".{path.name}.lock"):
            if not path.exists():
                _build(recipe, path, say or (lambda message: None))
    return Corpus(recipe, path)


def build_corpus(name: str) -> dict:
    """Build the named corpus. Plain data: name, fingerprint, path, built (False: it was there), seconds, rows of the report."""
    start, there = time.perf_counter(), is_built(name)
    corpus = open_corpus(name)
    seconds = time.perf_counter() - start
    return _summary(corpus) | {"built": not there, "seconds": seconds}


def report(name: str) -> dict:
    """The named corpus as plain data: name, fingerprint, path, rows. CorpusError when it is not built yet."""
    if not is_built(name):
        raise CorpusError(f"corpus {name!r} is not built yet: run `cptlab corpora build {name}`")
    return _summary(open_corpus(name))


def _recipe(recipe: CorpusRecipe | str) -> CorpusRecipe:
    return named_recipe(recipe) if isinstance(recipe, str) else recipe


def _summary(corpus: Corpus) -> dict:
    return {"name": corpus.recipe.name, "fingerprint": corpus.recipe.fingerprint, "path": str(corpus.path), "rows": corpus.report_rows()}


def _build(recipe: CorpusRecipe, path: Path, say: Callable[[str], None]) -> None:
    start = time.perf_counter()
    for left in path.parent.glob(f".building-{path.name}-*"):  # of builders that were killed: we hold the lock, nobody else builds
        shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=f".building-{path.name}-", dir=path.parent))
    try:
        say(f"{recipe.name}: tokenizer")
        tokenizer = make(recipe)
        tokenizer.save(str(folder / "tokenizer.json"))
        shards: dict[str, dict] = {}
        for name in recipe.names:
            say(f"{recipe.name}: {name}")
            shards |= _pack(recipe, name, tokenizer, folder)
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
            "seconds": round(time.perf_counter() - start, 3),
        }
        atomic_json(folder / "manifest.json", manifest)
        folder.chmod(0o755)  # mkdtemp makes folders private
        folder.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pack(recipe: CorpusRecipe, name: str, tokenizer: "Tokenizer", folder: Path) -> dict[str, dict]:
    """Write both shards of one source; shard name -> its entry in the manifest."""
    ref, end = recipe.sources[name], tokenizer.token_to_id(recipe.tokenizer.eot)
    counts = {split: {"source": name, "split": split, "documents": 0, "bytes": 0, "tokens": 0} for split in SPLITS}
    paths = {split: folder / split / f"{name}.bin" for split in SPLITS}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
    with paths["train"].open("wb") as train, paths["validation"].open("wb") as validation:
        for batch in _batches(documents(ref)):
            kept = []
            for document in batch:
                split = "validation" if recipe.validation.is_validation(document.split_key) else "train"
                if split == "validation" or _in_part(ref.part, document.split_key):
                    kept.append((split, document))
            encoded = tokenizer.encode_batch_fast([document.text for _, document in kept], add_special_tokens=False)
            for (split, document), encoding in zip(kept, encoded, strict=True):
                ids = np.array([*encoding.ids, end], dtype=token_dtype(recipe.vocab))
                (train if split == "train" else validation).write(ids.tobytes())
                counts[split]["documents"] += 1
                counts[split]["bytes"] += len(document.text.encode())
                counts[split]["tokens"] += len(ids)
    for split, count in counts.items():
        if not count["documents"]:
            where = f"corpus {recipe.name!r}: source {name!r}"
            other = sum(count["documents"] for count in counts.values())
            if not other:
                raise CorpusError(f"{where} is empty: check its files, versions and books")
            raise CorpusError(f"{where}: none of its {other} documents fall in {split}: give more, or change validation.fraction or salt")
    return {f"{split}/{name}.bin": counts[split] | {"sha256": sha256_file(paths[split])} for split in SPLITS}


def _in_part(part: tuple[int, int] | None, split_key: str) -> bool:
    return part is None or int(unit_hash("part" + split_key) * part[1]) == part[0]


def _batches(found: Iterable[Document]) -> Iterable[list[Document]]:
    batch, size = [], 0
    for document in found:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
