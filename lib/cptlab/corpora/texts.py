"""The text of a corpus on its way to the tokeniser: straight from the readers, or through the cleaning."""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from cptlab.corpora.parts import in_part
from cptlab.corpora.quarantine import Note, Quarantine
from cptlab.corpora.readers import Document, documents
from cptlab.corpora.recipe import CorpusRecipe

if TYPE_CHECKING:
    from cptlab.corpora.clean.pipeline import Cleaned

MAX_WORKERS = 8


class Texts(Protocol):
    """Documents of each source with the side of the split they fall on; each call reads anew, in the same order."""

    def documents(self, name: str) -> Iterator[tuple[str, Document]]:
        """(``train`` or ``validation``, document)."""

    def training(self, name: str) -> Iterator[tuple[str, str]]:
        """(split key, text) of the training documents alone."""


def texts(recipe: CorpusRecipe, say: Callable[[str], None]) -> Texts:
    """The text of ``recipe``; when it is to be cleaned (or spoilt on purpose), this does it, or finds it done."""
    if not recipe.judged:
        return PlainTexts(recipe)
    from cptlab.corpora.clean.pipeline import clean

    found = CleanedTexts(recipe, clean(recipe, workers(), say))
    _warn_of_idle_patterns(found, say)
    return found


def _warn_of_idle_patterns(found: "CleanedTexts", say: Callable[[str], None]) -> None:
    """Say which patterns of ``clean.upsample`` no origin and no source fits: most likely they are misspelt."""
    from fnmatch import fnmatchcase

    from cptlab.corpora.clean.screen import counts

    patterns = found.recipe.clean.upsample if found.recipe.clean else {}
    names = {name for row in counts(found.cleaned.left) for name in (row["source"], row["origin"])} if patterns else set()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            say(f"clean.upsample: warning: {pattern!r} fits no origin and no source, nothing is up-sampled by it")


def workers() -> int:
    """Processes for cleaning: the cores this process may use, at most :data:`MAX_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_WORKERS)


class PlainTexts:
    """As it is read; nothing is stored. A malformed record is an error; ``files`` holds the files that the last reading set aside."""

    def __init__(self, recipe: CorpusRecipe):
        self.recipe = recipe
        self.files: dict[str, list[Note]] = {}

    def _read(self, name: str) -> Iterator[Document]:
        quarantine = Quarantine(limit=0)
        self.files[name] = quarantine.files
        return documents(self.recipe.sources[name], quarantine)

    def documents(self, name: str) -> Iterator[tuple[str, Document]]:
        ref = self.recipe.sources[name]
        for document in self._read(name):
            split = "validation" if self.recipe.validation.is_validation(document.split_key) else "train"
            if split == "validation" or in_part(ref.part, document.split_key):
                yield split, document

    def training(self, name: str) -> Iterator[tuple[str, str]]:
        # Both parts of a split text may shape a tokeniser: a base and its target then share one.
        for document in self._read(name):
            if not self.recipe.validation.is_validation(document.split_key):
                yield document.split_key, document.text


class CleanedTexts:
    """What the cleaning left."""

    def __init__(self, recipe: CorpusRecipe, cleaned: "Cleaned"):
        from cptlab.corpora.clean.ledger import totals

        self.recipe, self.cleaned = recipe, cleaned
        self.read, self.left = totals(cleaned.read), totals(cleaned.left)
        self._ranges, start = {}, 0
        for name in recipe.names:  # the documents of a source follow one another, sources in the order of their names
            count = sum(row["documents"] for row in self.left if row["source"] == name)
            self._ranges[name] = range(start, start + count)
            start += count

    def once(self, name: str) -> Iterator[dict]:
        """Rows of one source, each once."""
        yield from self.cleaned.left.select(self._ranges[name])

    def documents(self, name: str) -> Iterator[tuple[str, Document]]:
        """Each document, then in further passes the copies that up-sampling asks for: two of one document are a pass apart."""
        from cptlab.corpora.clean.pipeline import copies

        upsample = self.recipe.clean.upsample if self.recipe.clean else {}
        wanted, most = 1, 1
        while wanted <= most:
            for row in self.once(name):
                count = copies(upsample, row["id"], name, row["origin"]) if row["split"] == "train" else 1
                most = max(most, count)
                if count >= wanted:
                    yield row["split"], Document(row["id"], row["split_key"], row["text"], row["origin"])
            wanted += 1

    def training(self, name: str) -> Iterator[tuple[str, str]]:
        for row in self.once(name):
            if row["split"] == "train":
                yield row["split_key"], row["text"]
