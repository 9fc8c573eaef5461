"""Which model of quality to clean with: the byte n-gram model of the pipeline beside a classifier, on planted bad text.

The documents of a source are parted in two halves; a model learns from one and ranks the good and the bad documents of the other. The
area under the ROC curve (AUC) of a kind is the chance that a bad document of it ranks worse than a good one: 1 finds all, 0.5 guesses.
"""

from dataclasses import replace

import numpy as np

from cptlab.corpora.parts import SourceRef, SplitSpec, unit_hash
from cptlab.corpora.planted import plant, truth
from cptlab.corpora.readers import documents
from cptlab.runs.measured import measured
from cptlab.runs.store import Store

VERSION = 1  # raise by hand when a change of this module changes its numbers
KINDS = ("garbled", "shuffled", "babble", "mojibake", "foreign", "boilerplate", "repeated")
SHARE = 0.2  # of the documents that a kind is planted for
# What each classifier is shown of bad text: noise, or junk. The other kinds are new to it.
SHOWN = {"classifier shown noise": ("garbled", "shuffled"), "classifier shown junk": ("boilerplate", "repeated")}


def recorded(sources: dict[str, dict], store: Store) -> dict:
    """The measurement on ``sources`` (name -> fields of a SourceRef), from its record in ``store``; where there is none it is made.

    Returns:
        ``record``: its name; ``auc``: rows of source, method, kind, auc, documents, shown (whether the method has learnt from this kind).
    """
    refs = {name: SourceRef(**fields) for name, fields in sources.items()}
    identity = {"version": VERSION, "share": SHARE, "sources": {name: ref.canonical() for name, ref in refs.items()}}

    def compute() -> dict:
        return {"auc": [{"source": name} | row for name, ref in refs.items() for row in measure(ref)]}

    return measured("corpora", "quality", identity, store, compute)


def measure(ref: SourceRef) -> list[dict]:
    """Rows of method, kind, auc, documents, shown for one source."""
    from cptlab.corpora.clean.bytemodel import NgramModel

    split = SplitSpec(salt="verses")
    texts: dict[tuple[bool, str], list[str]] = {(half, kind): [] for half in (True, False) for kind in ("", *KINDS)}
    for document in plant(documents(ref), replace(ref, plant=dict.fromkeys(KINDS, SHARE)), split):
        if not split.is_validation(document.split_key):
            kind = (truth(document.id) or ("", ""))[0]
            texts[unit_hash("half" + document.split_key) < 0.5, kind].append(document.text)
    learnt, judged = ({kind: texts[half, kind] for kind in ("", *KINDS)} for half in (True, False))
    everything = [text for kind in ("", *KINDS) for text in learnt[kind]]
    methods = {
        "byte model of good text": (NgramModel.fit(learnt[""]).bits_per_byte, ()),
        "byte model of the text as it is": (NgramModel.fit(everything).bits_per_byte, KINDS),
    }
    methods |= {name: (_classifier(learnt, shown), shown) for name, shown in SHOWN.items()}
    rows = []
    for name, (score, shown) in methods.items():
        good = score(judged[""])
        for kind in KINDS:
            if judged[kind]:
                auc = area(score(judged[kind]), good)
                rows.append({"method": name, "kind": kind, "auc": auc, "documents": len(judged[kind]), "shown": kind in shown})
    return rows


def area(bad: np.ndarray, good: np.ndarray) -> float:
    """The chance that a score of ``bad`` lies above one of ``good``, ties counting half (the statistic of Mann and Whitney, normalised)."""
    from scipy.stats import mannwhitneyu

    return round(float(mannwhitneyu(bad, good).statistic) / (len(bad) * len(good)), 6)


def _classifier(learnt: dict[str, list[str]], shown: tuple[str, ...]):
    """From texts to the log odds of being bad: logistic regression on hashed character n-grams, as in GPT-3's filter (arXiv 2005.14165)."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    hashed = HashingVectorizer(analyzer="char", ngram_range=(1, 4), n_features=2**18, alternate_sign=False)
    bad = [text for kind in shown for text in learnt[kind]]
    regression = LogisticRegression(C=10.0, class_weight="balanced", max_iter=200)
    regression.fit(hashed.transform(learnt[""] + bad), [0] * len(learnt[""]) + [1] * len(bad))
    return lambda texts: regression.decision_function(hashed.transform(texts))
