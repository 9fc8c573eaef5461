"""The evidence of a cleaning step reads as a line."""

import pytest

from cptlab.corpora.reports import in_words


@pytest.mark.parametrize(
    ("evidence", "line"),
    [
        ({"limit": 0.005, "side": "above", "value": 0.040816}, "0.0408, above the limit of 0.005"),
        ({"jaccard": 0.8333, "twin": "en/a:1"}, "jaccard 0.833, twin en/a:1"),
        ({"bits_per_byte": 3.403, "model": "drama"}, "bits per byte 3.4, model drama"),
        ({"lines": [1, 2]}, "lines 1, 2"),
        ({"lines": [1, 2, 3, 4], "shared": 53}, "lines 1, 2, 3, … (4 in all), shared 53"),
        ({"removed": 63, "examples": [{"sentence": 8, "twin": "b"}, {"sentence": 9}]}, "removed 63; such as sentence 8, twin b"),
        ({}, ""),
    ],
)
def test_evidence_in_words(evidence, line):
    before = repr(evidence)
    assert in_words(evidence) == line
    assert repr(evidence) == before
