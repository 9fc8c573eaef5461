"""Corpora: declared sources, recipes, tokeniser and packed token shards.

``recipe`` describes a corpus, ``open_corpus`` builds it once and opens it. Describing one imports nothing heavy.
"""

import importlib
from typing import Any

from cptlab.corpora.clean.spec import STANDARD
from cptlab.corpora.parts import SourceRef, SplitSpec, TokenizerSpec
from cptlab.corpora.recipe import (
    CorpusRecipe,
    embedded_names,
    holding,
    local_recipe,
    recipe,
    recipe_from,
    recipe_names,
)
from cptlab.corpora.sources import SOURCES, Source, fetch, fetch_all

_LAZY = {
    "Corpus": "shards",
    "Document": "readers",
    "build_corpus": "reports",
    "built": "reports",
    "documents": "readers",
    "flow": "reports",
    "is_built": "build",
    "open_corpus": "build",
    "recorded": "reports",
    "report": "reports",
    "sample": "reports",
    "why": "reports",
}

__all__ = [
    "SOURCES",
    "STANDARD",
    "CorpusRecipe",
    "Source",
    "SourceRef",
    "SplitSpec",
    "TokenizerSpec",
    "fetch",
    "fetch_all",
    "local_recipe",
    "recipe",
    "recipe_from",
    "recipe_names",
    "Corpus",
    "Document",
    "build_corpus",
    "documents",
    "embedded_names",
    "holding",
    "is_built",
    "open_corpus",
    "report",
    "built",
    "flow",
    "recorded",
    "sample",
    "why",
]


def __getattr__(name: str) -> Any:
    # Shards need numpy, tokenizers and pandas: they load on first use, so that reading records stays quick.
    if name in _LAZY:
        return getattr(importlib.import_module(f"cptlab.corpora.{_LAZY[name]}"), name)
    if name in ("hub", "mixtures"):
        return importlib.import_module(f"cptlab.corpora.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
