"""How well duplicates are found: precision and recall of MinHash and of sentence embeddings on planted copies of known kinds, over the
threshold of similarity.

The pool holds originals, all different, and copies of each. A pair of texts that come from the same original is a true duplicate,
every other pair is not. Recall of a kind is the share of its copies that are paired with their original; precision is the share of all
pairs found that are true.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from cptlab.corpora.parts import SourceRef, SplitSpec, unit_hash
from cptlab.corpora.planted import plant, truth
from cptlab.corpora.readers import Document, documents
from cptlab.errors import ConfigError
from cptlab.runs.measured import measured
from cptlab.runs.store import Store

VERSION = 1  # raise by hand when a change of this module changes its numbers
EDITED = ("exact", "near", "near-10", "near-20")
JACCARD = tuple(round(0.05 * step, 2) for step in range(4, 20))
COSINE = tuple(round(0.5 + 0.02 * step, 2) for step in range(25))


@dataclass(frozen=True)
class Pool:
    """Texts, the number of the original that each comes from (its own for an original), and its kind ("" for an original)."""

    texts: list[str]
    original: np.ndarray
    kinds: list[str]


def recorded(settings: dict, store: Store) -> dict:
    """The measurement with ``settings``, from its record in ``store``; where there is none it is made.

    Args:
        settings: ``documents`` and ``sentences`` (how many originals), ``source`` (a SourceRef's fields: one edition), ``paraphrase``
            and ``translation`` (those of the same text in other words and in another language), ``encoder``.

    Returns:
        ``record``: its name, for the provenance of figures; ``recall``: rows of unit, method, kind, threshold, found, planted;
        ``precision``: rows of unit, method, threshold, pairs, true.
    """
    needed = ("documents", "encoder", "paraphrase", "sentences", "source", "translation")
    if sorted(settings) != sorted(needed):
        raise ConfigError(f"detection has the settings {sorted(settings)}: give {', '.join(needed)}")
    refs = {name: SourceRef(**settings[name]) for name in ("source", "paraphrase", "translation")}
    identity = {name: value for name, value in settings.items() if name not in refs}
    identity |= {name: ref.canonical() for name, ref in refs.items()} | {"version": VERSION}
    return measured(
        "corpora", "detection", identity, store, lambda: measure(refs, settings["documents"], settings["sentences"], settings["encoder"])
    )


def measure(refs: dict[str, SourceRef], count_documents: int, count_sentences: int, encoder: str) -> dict:
    """Recall and precision; see :func:`recorded`."""
    recall, precision = [], []
    pools = {"document": document_pool(refs["source"], count_documents), "sentence": sentence_pool(refs, count_sentences)}
    for unit, pool in pools.items():
        similar, signed = _jaccards(pool.texts)
        for threshold in JACCARD:
            _count(pool, np.where(_candidates(signed, threshold), similar, 0), threshold, unit, "minhash", recall, precision)
    from cptlab.corpora.clean.encoder import encoder as open_encoder

    vectors = open_encoder(encoder).encode(pools["sentence"].texts)
    cosine = vectors @ vectors.T
    for threshold in COSINE:
        _count(pools["sentence"], cosine, threshold, "sentence", "embedding", recall, precision)
    return {"recall": recall, "precision": precision}


def document_pool(ref: SourceRef, count: int) -> Pool:
    """``count`` training documents with an edited, a paraphrased and a translated copy of each kind."""
    split = SplitSpec(salt="verses")
    training = (document for document in documents(ref) if not split.is_validation(document.split_key))
    return _pool(list(islice(training, count)), ref, split, (*EDITED, "paraphrased", "translated"))


def sentence_pool(refs: dict[str, SourceRef], count: int) -> Pool:
    """One line of each of ``count`` documents, with edited copies and the same line in other words and in another language.

    Lines correspond where the three texts of a document have equally many.
    """
    others = {kind: {found.split_key: found.text.split("\n") for found in documents(refs[kind])} for kind in ("paraphrase", "translation")}
    lines, same = [], []
    for document in documents(refs["source"]):
        own = document.text.split("\n")
        aligned = [others[kind].get(document.split_key, []) for kind in ("paraphrase", "translation")]
        if any(len(other) != len(own) for other in aligned) or len(lines) == count:
            continue
        at = int(unit_hash(document.id) * len(own))
        lines.append(Document(document.id, document.split_key, own[at]))
        same.append([other[at] for other in aligned])
    everything = SplitSpec(fraction=1e-9)  # lines are no corpus: all of them count as training text
    pool = _pool(lines, refs["source"], everything, EDITED)
    texts, original, kinds = list(pool.texts), list(pool.original), list(pool.kinds)
    for number, (paraphrase, translation) in enumerate(same):
        for kind, text in (("paraphrased", paraphrase), ("translated", translation)):
            texts.append(text)
            original.append(number)
            kinds.append(kind)
    return Pool(texts, np.array(original), kinds)


def _pool(originals: list[Document], ref: SourceRef, split: SplitSpec, kinds: tuple[str, ...]) -> Pool:
    from dataclasses import replace

    number = {document.id: place for place, document in enumerate(originals)}
    spoilt = plant(originals, replace(ref, plant=dict.fromkeys(kinds, 1.0)), split)
    copies = [(document, truth(document.id)) for document in spoilt if truth(document.id)]
    texts = [document.text for document in originals] + [document.text for document, _ in copies]
    places = list(range(len(originals))) + [number[original] for _, (_, original) in copies]
    return Pool(texts, np.array(places), [""] * len(originals) + [kind for _, (kind, _) in copies])


def _jaccards(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Jaccard similarity of all pairs (n, n), by a sparse product of the sets of shingles, and the signatures."""
    from scipy.sparse import csr_array

    from cptlab.corpora.clean.duplicates import shingles, signatures

    column: dict[bytes, int] = {}
    sets = [sorted({column.setdefault(shingle, len(column)) for shingle in shingles(text)}) for text in texts]
    sizes = np.array([len(found) for found in sets])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    incidence = csr_array((np.ones(starts[-1], dtype=np.float32), np.concatenate(sets), starts), shape=(len(texts), len(column)))
    shared = (incidence @ incidence.T).toarray()
    return shared / (sizes[:, None] + sizes[None, :] - shared), signatures(texts)


def _candidates(signed: np.ndarray, threshold: float) -> np.ndarray:
    from cptlab.corpora.clean.duplicates import candidates

    found = np.zeros((len(signed), len(signed)), dtype=bool)
    for one, other in candidates(signed, threshold):
        found[one, other] = found[other, one] = True
    return found


def _count(pool: Pool, similar: np.ndarray, threshold: float, unit: str, method: str, recall: list, precision: list) -> None:
    own: dict[str, Any] = {"unit": unit, "method": method, "threshold": threshold}
    found = np.triu(similar >= threshold, k=1)
    same = pool.original[:, None] == pool.original[None, :]
    precision.append(own | {"pairs": int(found.sum()), "true": int((found & same).sum())})
    to_original = similar[np.arange(len(pool.texts)), pool.original] >= threshold
    kinds = np.array(pool.kinds)
    for kind in dict.fromkeys(pool.kinds):
        if kind:
            recall.append(own | {"kind": kind, "found": int(to_original[kinds == kind].sum()), "planted": int((kinds == kind).sum())})
