"""De-duplication of sentences: what is cut, what stays as it was, and the encoders."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest

from cptlab.corpora.clean import encoder as encoders
from cptlab.corpora.clean import sentences
from cptlab.corpora.clean.encoder import HASHED, MINILM, encoder, pair_similarities
from cptlab.corpora.clean.sentences import Sentences, first_similar, split_sentences, without_sentences
from cptlab.corpora.clean.step import Work
from cptlab.corpora.sources import MODELS, sources_dir
from cptlab.errors import CorpusError

KETTLE = "The copper kettle on the stove began to sing."
KETTLES = "The copper kettles on the stove began to sing."
LADDER = "Nobody had moved the ladder since last winter."
VIOLIN = "Her violin needs two new strings before Friday."
MAP = "An old map of the harbour hangs in the corridor."


def _dataset(texts, **columns):
    from datasets import Dataset

    count = len(texts)
    made = {"id": [f"d{number}" for number in range(count)], "source": ["s"] * count, "origin": ["o"] * count, "language": ["en"] * count}
    made |= {"split": ["train"] * count, "split_key": [f"k{number}" for number in range(count)], "bytes": [len(t.encode()) for t in texts]}
    return Dataset.from_dict(made | {"text": texts} | columns)


def _judged(texts, tmp_path, columns=None, **settings):
    """Row -> (rule, text, evidence)."""
    step = Sentences(**{"encoder": HASHED, "threshold": 0.8} | settings)
    outcome = step.judge(_dataset(texts, **(columns or {})), Work(tmp_path / "step"))
    return {one["row"]: (one["rule"], one["text"], json.loads(one["evidence"])) for one in outcome}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "Go." Then 3.5 km... and on', ['He said "Go."', "Then 3.5 km...", "and on"]),
        (" first line \n\n  second. third\n", ["first line", "second.", "third"]),
        ("他来了。“走吧！”她说？好", ["他来了。", "“走吧！”", "她说？", "好"]),
        ("यह एक है। वह दो है।", ["यह एक है।", "वह दो है।"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences_are_spans_of_the_text(text, pieces):
    spans = split_sentences(text)
    assert [text[start:end] for start, end in spans] == pieces


def test_the_rest_stays_as_it_was():
    text = "A one.  B two.\tC three.\n\nD four. E five.\nF six."
    spans = split_sentences(text)
    assert without_sentences(text, spans, set()) == text
    assert without_sentences(text, spans, {1}) == "A one.  C three.\n\nD four. E five.\nF six."
    assert without_sentences(text, spans, {2}) == "A one.  B two.\n\nD four. E five.\nF six."  # lines stay apart
    assert without_sentences(text, spans, {3, 4}) == "A one.  B two.\tC three.\n\nF six."
    assert without_sentences(text, spans, {0, 5}) == "B two.\tC three.\n\nD four. E five."
    assert without_sentences(text, spans, set(range(6))) == ""


def test_similar_sentences_are_cut_and_the_first_one_stays(tmp_path):
    texts = [f"{KETTLE} {LADDER}", f"{VIOLIN}\n{KETTLES} {MAP}", MAP.upper(), f"{VIOLIN} Yes. {LADDER}"]
    found = _judged(texts, tmp_path)
    assert {row: one[:2] for row, one in found.items()} == {
        1: ("sentences", f"{VIOLIN}\n{MAP}"),
        2: ("duplicate-sentences", None),  # equal but for case
        3: ("duplicate-sentences", None),  # Yes. is too little to keep
    }
    evidence = found[1][2]
    [example] = evidence["examples"]
    assert (evidence["removed"], evidence["of"], evidence["threshold"]) == (1, 3, 0.8)
    assert (example["sentence"], example["twin"], example["twin_sentence"]) == (1, "d0", 0)
    assert (
        example["similarity"] == pytest.approx(pair_similarities([KETTLE], [KETTLES], HASHED)[0], abs=1e-3)
        and 0.8 < example["similarity"] < 1
    )
    assert [(one["sentence"], one["twin"], one["twin_sentence"], one["similarity"]) for one in found[3][2]["examples"]] == [
        (0, "d1", 0, 1.0),
        (2, "d0", 1, 1.0),
    ]
    assert not list((tmp_path / "step").glob("*.f16"))


def test_the_threshold_decides(tmp_path):
    texts = [f"{KETTLE} {LADDER}", f"{KETTLES} {MAP}"]
    value = float(pair_similarities([KETTLE], [KETTLES], HASHED)[0])
    assert set(_judged(texts, tmp_path / "below", threshold=value - 0.01)) == {1}
    assert not _judged(texts, tmp_path / "above", threshold=value + 0.01)


def test_short_sentences_and_a_document_that_keeps_enough(tmp_path):
    texts = [f"Quite so. {KETTLE}", f"Quite so. {KETTLE} {LADDER} {VIOLIN}"]
    assert _judged(texts, tmp_path / "a")[1][:2] == ("sentences", f"Quite so. {LADDER} {VIOLIN}")
    assert _judged(texts, tmp_path / "b", min_characters=5)[1][:2] == ("sentences", f"{LADDER} {VIOLIN}")
    assert _judged(texts, tmp_path / "c", min_left=0.8)[1][:2] == ("duplicate-sentences", None)
    assert not _judged(texts, tmp_path / "d", min_characters=len(KETTLE) + 1)


def test_a_sentence_repeated_in_its_own_document_is_cut(tmp_path):
    [(rule, text, evidence)] = _judged([f"{KETTLE}\n{LADDER}\n{KETTLE}"], tmp_path).values()
    assert (rule, text) == ("sentences", f"{KETTLE}\n{LADDER}")
    assert evidence["examples"] == [{"sentence": 2, "twin": "d0", "twin_sentence": 0, "similarity": 1.0}]


def test_validation_and_other_languages_are_not_judged(tmp_path):
    columns = {"split": ["validation", "train", "train", "train"], "language": ["en", "en", "zh", "en"]}
    assert set(_judged([KETTLE] * 4, tmp_path / "a", columns, languages=("en",))) == {3}
    assert set(_judged([KETTLE] * 4, tmp_path / "b", columns)) == {2, 3}  # hashed reads any


def test_scope_parts_the_sources(tmp_path):
    columns = {"source": ["a", "b", "a", "b"]}
    texts = [KETTLE, KETTLE, KETTLES, LADDER]
    assert set(_judged(texts, tmp_path / "a", columns)) == {1, 2}
    found = _judged(texts, tmp_path / "b", columns, scope="source")
    assert set(found) == {2} and found[2][2]["examples"][0]["twin"] == "d0"


def test_no_document_that_the_encoder_reads_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="no training document declares a language among en: set languages"):
        _judged([KETTLE], tmp_path, {"language": ["zh"]}, encoder=MINILM)
    assert not _judged([KETTLE], tmp_path, {"split": ["validation"]}, encoder=MINILM)
    assert not _judged(["Short."], tmp_path, encoder=MINILM)  # nothing to compare: no model is fetched


@pytest.mark.parametrize(
    "setting",
    [
        {"encoder": ""},
        {"threshold": 0},
        {"threshold": 1.5},
        {"min_characters": 0},
        {"clusters": 0},
        {"clusters": 2.5},
        {"scope": "document"},
    ]
    + [{"min_left": -1}, {"languages": "en"}, {"languages": ()}, {"seed": -1}],
)
def test_bad_settings_name_the_setting(setting):
    [name] = setting
    with pytest.raises(CorpusError, match=rf"clean\.sentences: {name} is "):
        Sentences(**setting)


def _by_definition(vectors, threshold):
    kept, twin = [], []
    for number, vector in enumerate(vectors):
        similar = [other for other in kept if vectors[other] @ vector >= threshold]
        twin.append(-1 if not similar else similar[0])
        if not similar:
            kept.append(number)
    return np.array(twin)


def test_blocks_find_what_the_definition_finds(monkeypatch):
    monkeypatch.setattr(sentences, "ROWS", 16)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = _by_definition(vectors, 0.8)
    twin, similarity = first_similar(vectors, 0.8)
    assert 50 < (expected >= 0).sum() < 250
    assert np.array_equal(twin >= 0, expected >= 0)
    gone = np.flatnonzero(twin >= 0)
    assert (twin[twin[gone]] == -1).all() and (twin[gone] < gone).all()
    assert np.allclose(np.einsum("nd,nd->n", vectors[gone], vectors[twin[gone]]), similarity[gone], atol=1e-6)
    assert (similarity[gone] >= 0.8).all() and (similarity[twin < 0] == 0).all()


def _many(count):
    """Sentences of unlike words; every third comes again with a word more."""
    rng = np.random.default_rng(1)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    first = [" ".join("".join(rng.choice(letters, 6)) for _ in range(8)) + "." for _ in range(count)]
    return first + [text.replace(".", " too.") for text in first[::3]]


def test_clusters_find_most_of_what_all_pairs_find(tmp_path):
    texts = _many(600)
    whole = _judged(texts, tmp_path / "a")
    parted = _judged(texts, tmp_path / "b", clusters=8)
    assert len(whole) == 200 and set(whole) == set(range(600, 800))
    # Random sentences lie all over the space, so borders part more pairs than in real text.
    assert set(parted) <= set(whole) and 130 < len(parted) < 200
    assert parted == _judged(texts, tmp_path / "c", clusters=8)


def test_a_killed_step_goes_on_from_its_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sentences, "BLOCK", 50)
    texts = _many(240)
    expected = _judged(texts, tmp_path / "whole")
    encoded = []

    class Dying(encoders.Hashed):
        def encode(self, texts):
            if len(encoded) == 3:
                raise KeyboardInterrupt
            encoded.append(list(texts))
            return super().encode(texts)

    monkeypatch.setattr(sentences, "encoder", lambda name: Dying())
    with pytest.raises(KeyboardInterrupt):
        _judged(texts, tmp_path)
    with (tmp_path / "step" / sentences.VECTORS).open("ab") as torn:
        torn.write(b"half a block")
    again = []

    class Counting(encoders.Hashed):
        def encode(self, texts):
            again.extend(texts)
            return super().encode(texts)

    monkeypatch.setattr(sentences, "encoder", lambda name: Counting())
    assert _judged(texts, tmp_path) == expected
    assert [text for block in encoded for text in block] == texts[:150] and again == texts[150:]


def test_hashed_is_lexical_and_reads_any_script():
    opened = encoder(HASHED)
    vectors = opened.encode([KETTLE, KETTLES, VIOLIN, "园里的梨树昨夜开花了。", "园里的梨树昨夜开花了！", "x"])
    assert vectors.dtype == np.float32 and vectors.shape == (6, opened.dimension)
    similar = vectors @ vectors.T
    assert np.allclose(np.diag(similar)[:5], 1, atol=1e-5) and similar[5, 5] == 0
    assert similar[0, 1] > 0.9 > 0.5 > similar[0, 2] and similar[3, 4] > 0.8 and abs(similar[0, 3]) < 0.2
    assert opened.encode([]).shape == (0, opened.dimension)


def test_other_encoders_come_from_sentence_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(CorpusError, match=r"encoder 'some/model' needs a package: pip install sentence-transformers"):
        encoder("some/model")
    opened = []

    class Model:
        def __init__(self, name, revision):
            if name == "missing":
                raise OSError("no such model")
            opened.append((name, revision))

        def get_sentence_embedding_dimension(self):
            return 2

        def encode(self, texts, normalize_embeddings, **settings):
            assert normalize_embeddings
            return np.array([[0.6, 0.8]] * len(texts))

    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = Model
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    vectors = encoder("some/model@abc").encode(["a", "b"])
    assert opened == [("some/model", "abc")] and vectors.dtype == np.float32 and vectors.shape == (2, 2)
    with pytest.raises(CorpusError, match="encoder 'missing' cannot be opened .*no such model"):
        encoder("missing")


@pytest.mark.skipif(
    not (sources_dir() / MODELS[MINILM].filename).exists(),
    reason="the model of 83 MB is not in the cache: `cptlab fetch` it, or clean a corpus with the step sentences, to run this test",
)
def test_minilm_reads_what_is_said(tmp_path):
    opened = encoder(MINILM)
    same = ["A dog is asleep on the sofa.", "The film was far too long.", "How do I reset my password?"]
    other = ["A puppy sleeps on the couch.", "The movie lasted much too long.", "What should I do to change my forgotten password?"]
    similar = opened.encode(same) @ opened.encode(other).T
    assert similar.diagonal().min() > 0.6 > 0.3 > (similar - np.diag(similar.diagonal())).max()
    # Neither the neighbours in the batch nor their number matter.
    alone = np.concatenate([opened.encode([text]) for text in same])
    among = opened.encode([*same, "word " * 400, "x"])[:3]
    assert np.allclose(np.linalg.norm(among, axis=1), 1, atol=1e-4) and (alone * among).sum(1).min() > 0.999
    found = _judged([f"{same[0]} {MAP}", f"{other[0]} {VIOLIN}"], tmp_path, encoder=MINILM, threshold=float(similar[0, 0]) - 0.01)
    assert {row: one[1] for row, one in found.items()} == {1: VIOLIN}
