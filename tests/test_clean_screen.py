"""Screening by origin and by language, on invented text."""

import json

import pytest
from datasets import Dataset

from cptlab.corpora.clean.screen import Language, Origins, counts, known_languages
from cptlab.corpora.clean.step import Work
from cptlab.errors import CorpusError

ENGLISH = (
    "The old lighthouse keeper wrote down every ship that passed during the winter, and at night he read the list aloud to his dog. "
    "When spring came he found that one name was missing, so he rowed out to the reef and looked for it among the broken planks. "
)
GERMAN = (
    "Der alte Leuchtturmwärter schrieb im Winter jedes Schiff auf, das vorüberfuhr, und las die Liste abends seinem Hund vor. "
    "Im Frühling fehlte ein einziger Name, also ruderte er zum Riff hinaus und suchte ihn zwischen den zerbrochenen Planken. "
)
CHINESE = (
    "老灯塔看守人在冬天记下每一艘经过的船，晚上把名单念给他的狗听。"
    "春天来的时候，他发现少了一个名字，于是划船到礁石那里，在破碎的木板之间寻找它。"
)
CODE = "def total(items):\n    return sum(item.price * item.count for item in items if item.count > 0)\n" * 4


def dataset(rows):
    """Rows of (source, origin, language, text)."""
    columns = dict(zip(("source", "origin", "language", "text"), map(list, zip(*rows, strict=True)), strict=True))
    numbers = [str(i) for i in range(len(rows))]
    sizes = [len(text.encode()) for text in columns["text"]]
    return Dataset.from_dict(columns | {"id": numbers, "split_key": numbers, "split": ["train"] * len(rows), "bytes": sizes})


def verdicts(step, rows, tmp_path, said=None):
    outcome = step.judge(dataset(rows), Work(tmp_path / "step", say=(said if said is not None else []).append))
    return {row: (rule, json.loads(proof)) for row, rule, proof in zip(outcome["row"], outcome["rule"], outcome["evidence"], strict=True)}


PLACES = [("web", host, "en", "text") for host in ("a.example.org", "b.example.org", "spam.example.net")] + [("books", "x", "en", "longer")]


def test_origins_are_allowed_and_denied_by_pattern(tmp_path):
    said = []
    found = verdicts(Origins(allow=("*.example.org", "books", "*.example.com"), deny=("b.*",)), PLACES, tmp_path, said)
    assert {row: rule for row, (rule, _) in found.items()} == {1: "denied", 2: "not-allowed"}
    assert found[1][1] == {"source": "web", "origin": "b.example.org", "pattern": "b.*"}  # though allowed as well
    assert found[2][1]["patterns"] == ["*.example.org", "books", "*.example.com"]
    assert len(said) == 1 and "warning" in said[0] and "'*.example.com'" in said[0]
    assert verdicts(Origins(), PLACES, tmp_path) == {}
    assert set(verdicts(Origins(deny=("WEB",)), PLACES, tmp_path)) == set() and set(verdicts(Origins(deny=("web",)), PLACES, tmp_path)) == {
        0,
        1,
        2,
    }
    with pytest.raises(CorpusError, match="clean.origins: deny is 'spam'"):
        Origins(deny="spam")


def test_origins_are_counted():
    rows = counts(dataset(PLACES + PLACES[:1]))
    assert rows[0] == {"source": "web", "origin": "a.example.org", "documents": 2, "bytes": 8}
    assert [row["bytes"] for row in rows] == [8, 6, 4, 4] and sum(row["documents"] for row in rows) == 5


def test_documents_in_another_language_go(tmp_path):
    rows = [
        ("web", "", "en", ENGLISH),
        ("web", "", "en", GERMAN),
        ("web", "", "de", GERMAN),
        ("web", "", "zh", CHINESE),
        ("web", "", "zh-Hans", ENGLISH),
        ("code", "", "python", CODE),
        ("web", "", "en", "Ein Satz."),  # too short to tell
        ("web", "", "", GERMAN),
    ]
    said = []
    found = verdicts(Language(), rows, tmp_path, said)
    assert {row: (rule, proof["expected"], proof["found"]) for row, (rule, proof) in found.items()} == {
        1: ("wrong-language", "en", "de"),
        4: ("wrong-language", "zh-Hans", "en"),
    }
    assert found[1][1]["probability"] < 0.5 == found[1][1]["limit"] and found[1][1]["share"] == 0
    assert any("without a language" in line and "web" in line for line in said)
    assert set(verdicts(Language(expect={"web": "de"}), rows, tmp_path / "expect")) == {0, 3, 4}


def test_a_document_that_is_half_foreign_goes_and_one_with_a_quotation_stays(tmp_path):
    rows = [("web", "", "en", ENGLISH * 4 + GERMAN * 4), ("web", "", "en", ENGLISH * 4 + GERMAN[:120] + ENGLISH * 4)]
    found = verdicts(Language(), rows, tmp_path)
    assert list(found) == [0] and found[0][0] == "mixed-language"
    assert (found[0][1]["pieces"], found[0][1]["share"]) == (5, 0.6)  # the piece in the middle begins in English
    assert verdicts(Language(min_share=0.3, min_probability=0.2), rows, tmp_path / "lenient") == {}


def test_candidates_restrict_what_can_be_found(tmp_path):
    rows = [("web", "", "en", GERMAN), ("web", "", "en", ENGLISH)]
    found = verdicts(Language(candidates=("nl", "sv")), rows, tmp_path)
    assert list(found) == [0] and found[0][1]["found"] in ("nl", "sv")


def test_a_language_that_the_identifier_does_not_know_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"language 'tlh' of source 'web' is not known.*\bde, .*zh"):
        verdicts(Language(), [("web", "", "tlh", ENGLISH)], tmp_path)
    with pytest.raises(CorpusError, match="language 'tlh' among candidates"):
        verdicts(Language(candidates=("tlh",)), [("web", "", "en", ENGLISH)], tmp_path)
    assert {"en", "zh", "fil", "nb"} <= set(known_languages())
    with pytest.raises(CorpusError, match="clean.language: min_share is 2"):
        Language(min_share=2)
