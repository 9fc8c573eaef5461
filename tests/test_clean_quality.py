"""The n-gram model over bytes, and the quality step, on invented text."""

import json
import math

import numpy as np
import pytest
from datasets import Dataset

from cptlab.corpora.clean import bytemodel
from cptlab.corpora.clean.bytemodel import MASS, NgramModel
from cptlab.corpora.clean.quality import Quality
from cptlab.corpora.clean.step import Work
from cptlab.corpora.readers import Document
from cptlab.errors import CorpusError

LANGUAGES = {
    "kala": ["kalo", "mire", "tusan", "belo", "ravi", "noke", "sila", "pomu", "dorante", "vesi", "lupa", "tiro"],
    "zhu": ["森林", "河流", "月亮", "山谷", "渔船", "灯塔", "石头", "雪花", "秋天", "道路"],
}


def sentences(language, count, seed, words=60):
    """Documents in an invented language: its words follow one another by a fixed rule, with some freedom."""
    rng = np.random.default_rng(seed)
    vocabulary = LANGUAGES[language]
    texts = []
    for _ in range(count):
        steps = np.cumsum(rng.choice([1, 2, 5], words)) + rng.integers(100)
        texts.append(" ".join(vocabulary[i % len(vocabulary)] for i in steps) + ".")
    return texts


def noise(count, seed, size=300):
    rng = np.random.default_rng(seed)
    return ["".join(map(chr, rng.integers(0, 128, size))) for _ in range(count)]


def test_the_formula_on_a_text_that_can_be_counted_by_hand():
    model = NgramModel.fit(["ab"], order=2, mass=2.0)
    # The model has seen: edge, a, b, edge. After "a" came "b", once.
    unigram = (1 + 2 / 256) / (4 + 2)
    assert model.next_byte(b"a")[ord("b")] == pytest.approx((1 + 2 * unigram) / (1 + 2), rel=1e-5)
    unseen = (2 / 256) / (4 + 2)
    assert model.next_byte(b"a")[ord("c")] == pytest.approx(2 * unseen / 3, rel=1e-5)
    assert model.next_byte(b"c")[ord("b")] == pytest.approx(unigram, rel=1e-5)
    first = (1 + 2 * unigram) / (2 + 2)  # an edge came twice, once before "a"
    assert model.bits_per_byte(["ab"])[0] == pytest.approx(-(math.log2(first) + math.log2((1 + 2 * unigram) / 3)) / 2, rel=1e-5)


def test_the_probabilities_of_the_next_byte_sum_to_one(monkeypatch):
    texts = sentences("kala", 20, 1)
    model = NgramModel.fit(texts)
    for context in (b"kalo mi", texts[0].encode()[:31], "森林".encode(), b"\x00\x01"):
        assert model.next_byte(context).sum() == pytest.approx(1, abs=1e-4)
    # Where n-grams are lost in a full table, their share is; none is ever counted for another.
    assert 0.7 < model.next_byte(b"").sum() < 1.001
    monkeypatch.setattr(bytemodel, "_TABLE_BITS", 8)
    crowded = NgramModel.fit(texts + noise(20, 2))
    sums = [crowded.next_byte(context).sum() for context in (b"", b"kalo mi", b"ravi n", b"\x00\x01")]
    assert min(sums) < 0.9 and max(sums) < 1.01


def test_bits_per_byte_of_what_is_known_random_and_repeated():
    known = NgramModel.fit(sentences("kala", 100, 1))
    chinese = NgramModel.fit(sentences("zhu", 100, 1))
    own, other = known.bits_per_byte([*sentences("kala", 5, 2), *sentences("zhu", 5, 2)]).reshape(2, 5)
    assert own.max() < 1 < 6 < other.min()
    assert chinese.bits_per_byte(sentences("zhu", 5, 2)).max() < 1 and chinese.bits_per_byte(sentences("kala", 5, 2)).min() > 6
    # 128 values, all as likely: 7 bits, and a little for not knowing it.
    assert NgramModel.fit(noise(700, 3), order=2).bits_per_byte(noise(20, 4)).mean() == pytest.approx(7.05, abs=0.05)
    assert 7 < NgramModel.fit(noise(700, 3)).bits_per_byte(noise(20, 4)).mean() < 7.8
    line = "The same line, over and over.\n"
    assert NgramModel.fit([line * 1000]).bits_per_byte([line * 50])[0] < 0.1
    assert math.isnan(known.bits_per_byte([""])[0])


def test_scores_depend_neither_on_the_other_texts_nor_on_the_file(tmp_path, monkeypatch):
    texts = sentences("kala", 10, 5) + ["", "x"] + sentences("zhu", 3, 5)
    model = NgramModel.fit(texts[:6])
    together = model.bits_per_byte(texts)
    assert np.array_equal(
        np.concatenate([model.bits_per_byte([text]) for text in texts]).astype(np.float32), together.astype(np.float32), equal_nan=True
    )
    model.save(tmp_path / "model.npy")
    again = NgramModel.load(tmp_path / "model.npy")
    assert again.order == model.order and again.mass == MASS
    assert np.array_equal(again.bits_per_byte(texts), together, equal_nan=True)
    NgramModel.fit(iter(texts[:6])).save(tmp_path / "same.npy")
    assert (tmp_path / "same.npy").read_bytes() == (tmp_path / "model.npy").read_bytes()
    monkeypatch.setattr(bytemodel, "LONGEST", 50)
    assert model.bits_per_byte([texts[0]])[0] == pytest.approx(model.bits_per_byte([texts[0][:50]])[0])


def dataset(rows):
    """Rows of (source, language, split_key, text)."""
    columns = dict(zip(("source", "language", "split_key", "text"), map(list, zip(*rows, strict=True)), strict=True))
    sizes = [len(text.encode()) for text in columns["text"]]
    same = {"id": [str(i) for i in range(len(rows))], "origin": [""] * len(rows), "split": ["train"] * len(rows), "bytes": sizes}
    return Dataset.from_dict(columns | same)


def verdicts(step, rows, folder, said=None, resolve=None):
    work = Work(folder, say=(said if said is not None else []).append, resolve=resolve)
    outcome = step.judge(dataset(rows), work)
    return {row: (rule, json.loads(proof)) for row, rule, proof in zip(outcome["row"], outcome["rule"], outcome["evidence"], strict=True)}


def test_without_a_reference_what_stands_far_from_its_source_goes(tmp_path):
    good = [("tales", "", f"t{i}", text) for i, text in enumerate(sentences("kala", 300, 1))]
    good += [("moon", "", f"m{i}", text) for i, text in enumerate(sentences("zhu", 300, 2))]
    bad = [("tales", "", f"n{i}", text) for i, text in enumerate(noise(4, 3) + sentences("zhu", 2, 4))]
    # Not judged: a source of a few documents, and a short document.
    rest = [("few", "", f"f{i}", text) for i, text in enumerate(sentences("kala", 10, 5))] + [("tales", "", "short", "?!" * 20)]
    said = []
    found = verdicts(Quality(), good + bad + rest, tmp_path / "step", said)
    assert sorted(found) == list(range(600, 606)) and {rule for rule, _ in found.values()} == {"too-improbable"}
    assert all(proof["bits_per_byte"] > proof["limit"] and proof["model"] == "tales" for _, proof in found.values())
    assert any("few" in line and "fewer than 50" in line for line in said) and any("11 documents are not judged" in line for line in said)


def test_boilerplate_is_too_predictable(tmp_path):
    boilerplate = "This page uses cookies, and by staying here you accept that we and 914 partners store and read them on your device. " * 3
    rows = [("web", "", f"g{i}", text) for i, text in enumerate(noise(200, 1))] + [("web", "", f"b{i}", boilerplate) for i in range(30)]
    found = verdicts(Quality(), rows, tmp_path / "step")
    assert set(found) == set(range(200, 230)) and {rule for rule, _ in found.values()} == {"too-predictable"}
    assert all(proof["bits_per_byte"] < proof["limit"] for _, proof in found.values())


def test_with_a_reference_no_document_is_scored_by_a_model_that_has_seen_it(tmp_path):
    trusted = [Document(f"d{i}", f"k{i}", text) for i, text in enumerate(noise(150, 1))]
    asked = []

    def resolve(fields):
        asked.append(fields)
        return iter(trusted)

    step = Quality(reference={"en": {"source": "trusted"}})
    # The trusted documents themselves: by the model that learnt them they would be far too predictable.
    rows = [("web", "en", document.split_key, document.text) for document in trusted]
    rows += [("web", "en", "x", "a" * 400), ("web", "en", "y", sentences("zhu", 1, 1)[0]), ("other", "fr", "z", "b" * 400)]
    seen = NgramModel.fit([document.text for document in trusted]).bits_per_byte([trusted[0].text])[0]
    said = []
    found = verdicts(step, rows, tmp_path / "step", said, resolve)
    assert set(found) == {150, 151} and asked == [{"source": "trusted"}]
    limits = json.loads((tmp_path / "step" / "models" / "en.json").read_text())
    assert seen < limits[0] < 7 < limits[1]
    assert any("1 documents are not judged" in line for line in said)
    # What was learnt is found again by the build that resumes.
    assert verdicts(step, rows, tmp_path / "step") == found


def test_short_documents_have_wider_limits(tmp_path):
    rows = [("tales", "", f"t{i}", text) for i, text in enumerate(sentences("kala", 200, 1, words=400))]
    odd = [sentences("kala", 1, 2, words=length)[0] + " " + "Q?" * (length // 12) for length in (24, 400)]  # as much noise in proportion
    found = verdicts(Quality(), rows + [("tales", "", f"o{i}", text) for i, text in enumerate(odd)], tmp_path / "step")
    assert set(found) == {200, 201}
    size = np.median([len(text.encode()) for text in [row[3] for row in rows] + odd])
    short, long = (1 + 3 * max(0, len(text.encode()) ** -0.5 - size**-0.5) for text in odd)
    assert short > 1.1 and found[200][1]["limit"] / found[201][1]["limit"] == pytest.approx(short / long, rel=1e-3)


def test_references_and_settings_that_cannot_serve_are_refused(tmp_path):
    rows = [("web", "en", "k", "word " * 50)]
    step = Quality(reference={"en": {"source": "trusted"}})
    with pytest.raises(CorpusError, match="clean.quality: reference.en: this build resolves no references"):
        verdicts(step, rows, tmp_path / "none")
    with pytest.raises(CorpusError, match="reference.en holds 3 documents of 100 bytes"):
        verdicts(step, rows, tmp_path / "few", resolve=lambda fields: iter([Document(str(i), str(i), "word " * 40) for i in range(3)]))
    trusted = [Document(str(i), str(i), text) for i, text in enumerate(sentences("kala", 150, 1))]
    said = []
    assert verdicts(Quality(reference={"de": {}}), rows, tmp_path / "unused", said, lambda fields: iter(trusted)) == {}
    assert any("warning" in line and "'de'" in line for line in said)
    for settings, message in (({"keep": 2}, "keep is 2"), ({"slack": 0.5}, "slack is 0.5"), ({"reference": {"en": "x"}}, "reference is")):
        with pytest.raises(CorpusError, match=message):
            Quality(**settings)
