"""How near sources of one corpus are to each other, measured on their text and tokens, and what a bigram makes of each.

None of it trains a model: these are predictors of transfer, and the line below which a trained model has learnt nothing but bigrams.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cptlab.corpora.build import open_corpus
from cptlab.corpora.recipe import CorpusRecipe
from cptlab.corpora.shards import Corpus
from cptlab.corpora.texts import PlainTexts
from cptlab.runs.measured import measured
from cptlab.runs.store import Store

VERSION = 1  # raise by hand when a change of this module changes its numbers
COMMON = 1e-5  # part of a source's tokens from which on a token counts as one of its own
TRIGRAMS = 5000  # most frequent character trigrams of a source that are compared


def recorded(recipe: CorpusRecipe, names: Sequence[str], bases: Sequence[str], store: Store) -> dict:
    """The measurements of :func:`sources` and :func:`pairs`, from their record in ``store``; where there is none they are made.

    Returns:
        ``record``: its name; ``sources`` and ``pairs``: rows.
    """
    identity = {"version": VERSION, "corpus": recipe.fingerprint, "names": sorted(names), "bases": sorted(bases)}

    def compute() -> dict:
        corpus = open_corpus(recipe)
        return {"sources": sources(corpus, sorted({*names, *bases})), "pairs": pairs(corpus, sorted(names), sorted(bases))}

    return measured("corpora", "relatedness", identity, store, compute)


def sources(corpus: Corpus, names: Sequence[str]) -> list[dict]:
    """A row a source: tokens, bytes and ``lines`` (verses, where a line is one) of its validation text, its training tokens, and the
    validation loss (nats a token) of unigrams and of bigrams counted on its training text."""
    shards = {(row["source"], row["split"]): row for row in corpus.report_rows()}
    texts, rows = PlainTexts(corpus.recipe), []
    for name in names:
        train, held_out = (np.asarray(corpus.tokens(name, split), dtype=np.int64) for split in ("train", "validation"))
        lines = sum(document.text.count("\n") + 1 for split, document in texts.documents(name) if split == "validation")
        found = shards[name, "validation"]
        row = {"source": name, "train_tokens": len(train), "tokens": found["tokens"], "bytes": found["bytes"], "lines": lines}
        row |= dict(zip(("unigram_nats", "bigram_nats"), ngram_losses(train, held_out, corpus.recipe.vocab), strict=True))
        rows.append(row)
    return rows


def ngram_losses(train: np.ndarray, held_out: np.ndarray, vocab: int) -> tuple[float, float]:
    """Mean loss (nats a token) on ``held_out`` of unigrams and of bigrams that are counted on ``train``.

    Unigrams have one count added to each token. Bigrams are interpolated with unigrams by Witten and Bell (1991): the weight of a context
    is the number of its tokens over that number plus that of its different followers.
    """
    single = (np.bincount(train, minlength=vocab) + 1) / (len(train) + vocab)
    codes, counts = np.unique(train[:-1] * vocab + train[1:], return_counts=True)
    contexts = np.bincount(codes // vocab, weights=counts, minlength=vocab)
    followers = np.bincount(codes // vocab, minlength=vocab)
    asked = held_out[:-1] * vocab + held_out[1:]
    place = np.searchsorted(codes, asked).clip(max=len(codes) - 1)
    seen = np.where(codes[place] == asked, counts[place], 0)
    before, after = held_out[:-1], held_out[1:]
    total = contexts[before] + followers[before]
    double = np.where(total > 0, (seen + followers[before] * single[after]) / np.maximum(total, 1), single[after])
    return float(-np.log(single[held_out]).mean()), float(-np.log(double).mean())


def pairs(corpus: Corpus, names: Sequence[str], bases: Sequence[str]) -> list[dict]:
    """A row a source and base, on training text: ``distance`` (Jensen-Shannon divergence of their token distributions, nats, 0 to ln 2),
    ``shared_tokens`` (part of the source's tokens that are tokens of the base's, too) and ``shared_trigrams`` (cosine of their counts of
    character trigrams, the most frequent of either, in lower case)."""
    both = sorted({*names, *bases})
    spread = {name: np.bincount(np.asarray(corpus.tokens(name)), minlength=corpus.recipe.vocab) / len(corpus.tokens(name)) for name in both}
    texts = PlainTexts(corpus.recipe)
    letters = {name: _trigrams(text for _, text in texts.training(name)) for name in both}
    rows = []
    for base in bases:
        for name in names:
            p, q = spread[name], spread[base]
            middle, own = (p + q) / 2, q >= COMMON
            row = {"source": name, "base": base, "distance": (_divergence(p, middle) + _divergence(q, middle)) / 2}
            rows.append(row | {"shared_tokens": float(p[own].sum()), "shared_trigrams": _cosine(letters[name], letters[base])})
    return rows


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


def _trigrams(texts) -> pd.Series:
    counts: Counter = Counter()
    for text in texts:
        text = " ".join(text.lower().split())
        counts.update(text[i : i + 3] for i in range(len(text) - 2))
    return pd.Series(dict(counts.most_common(TRIGRAMS)), dtype=float)


def _cosine(one: pd.Series, other: pd.Series) -> float:
    shared = one.index.intersection(other.index)
    return float((one[shared] * other[shared]).sum() / np.sqrt((one**2).sum() * (other**2).sum()))
