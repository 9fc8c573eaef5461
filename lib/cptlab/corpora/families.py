"""Families of corpora: a template (``families.yaml``) that gives a recipe for any of its languages, by the recipe's name alone.

``verses-en-de-zh-smoke`` is the variant ``smoke`` of the family ``verses`` in English, German and Chinese. Imports nothing heavy.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FAMILIES = Path(__file__).with_name("families.yaml")


@dataclass(frozen=True)
class Member:
    """One corpus of a family. The first language leads (the base), the others are sorted: what is the same has the same name."""

    family: str
    languages: tuple[str, ...]
    variant: str = ""

    def __post_init__(self):
        first, *others = dict.fromkeys(self.languages)
        object.__setattr__(self, "languages", (first, *sorted(others)))

    @property
    def name(self) -> str:
        """``FAMILY-LANG-LANG…[-VARIANT]``."""
        return "-".join(filter(None, (self.family, *self.languages, self.variant)))

    def content(self) -> dict:
        """The recipe, as a YAML file would have it."""
        family = _families()[self.family]
        variant = dict(family["variants"][self.variant])
        each, own = variant.pop("each", {}), variant.pop("sources", {})
        sources = {language: family["sources"][language] | each | own.get(language, {}) for language in self.languages}
        return {"description": family["description"], "sources": sources, **variant}


def member(name: str) -> Member | None:
    """The corpus that ``name`` means, its languages in any order; None when no family has it."""
    head, *rest = name.split("-")
    family = _families().get(head)
    if family is None or not rest:
        return None
    variant = rest.pop() if rest[-1] in family["variants"] else ""
    known = rest and len(set(rest)) == len(rest) and set(rest) <= set(family["sources"])
    return Member(head, tuple(rest), variant) if known else None


def languages(family: str) -> list[str]:
    """The languages that a family has, sorted."""
    return sorted(_families()[family]["sources"])


def fault(name: str) -> str:
    """What is wrong with a name that begins as a family's and is none of its corpora, for a message; empty when it is no such name."""
    head, *rest = name.split("-")
    if head not in _families() or not rest:
        return ""
    lacking = sorted(set(rest) - set(languages(head)) - set(_families()[head]["variants"]))
    if lacking:
        return f"the family {head} has no {', '.join(map(repr, lacking))}"
    return f"{head} takes each language once, and its variant last"


def members(wanted: Sequence[str]) -> list[str]:
    """Names of the corpora that families make of the ``wanted`` languages."""
    found = ((name, family) for name, family in _families().items() if set(wanted) <= set(family["sources"]))
    return [Member(name, tuple(wanted), variant).name for name, family in found for variant in family["variants"]]


def described() -> str:
    """How the corpora of families are called and in which languages, for a message."""
    found = []
    for name, family in _families().items():
        variants = "|".join(f"-{variant}" for variant in family["variants"] if variant)
        found.append(f"{name}-LANG-LANG…{f'[{variants}]' if variants else ''} in any of {', '.join(languages(name))}")
    return "; ".join(found)


@functools.cache
def _families() -> dict[str, dict]:
    import yaml

    from cptlab.corpora.hub import hub_set

    found = yaml.safe_load(FAMILIES.read_text(encoding="utf-8"))
    for family in found.values():
        sources = family.setdefault("sources", {})
        for row in map(hub_set, family.get("hub_sets", ())):
            sources |= {language: {"hub": row.hub, "config": config} for language, config in row.configs.items()}
    return found
