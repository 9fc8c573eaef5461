"""Measures of nearness and n-gram losses against values worked out by hand."""

import numpy as np
import pytest

from cptlab import corpora
from cptlab.corpora import relatedness
from cptlab.runs.store import Store


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)

    def write(name, words):
        chapters = ["\n".join(" ".join(rng.choice(words, 8)) for _ in range(4)) for _ in range(60)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(chapters))
        return tmp_path / f"{name}.txt"

    paths = {"a": write("a", ["sea", "calm", "wind", "shore"]), "b": write("b", ["sea", "calm", "wolke", "strand"])}
    paths["c"] = write("c", ["дом", "вода", "небо", "река"])
    return corpora.open_corpus(corpora.local_recipe(paths, vocab=320, validation={"fraction": 0.2}))


def test_ngram_losses_of_known_texts():
    train, held_out = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0]), np.array([0, 1, 0])
    single, double = relatedness.ngram_losses(train, held_out, 2)
    assert single == pytest.approx(-(2 * np.log(6 / 11) + np.log(5 / 11)) / 3)
    first, second = (4 + 5 / 11) / 5, (4 + 6 / 11) / 5  # four of four, one kind of follower
    assert double == pytest.approx(-(np.log(first) + np.log(second)) / 2)
    unseen = relatedness.ngram_losses(np.array([0, 0, 0]), np.array([1, 1]), 2)[1]
    assert unseen == pytest.approx(-np.log(1 / 5))  # a context that never came falls back on unigrams


def test_what_shares_words_is_nearer(corpus):
    rows = {row["source"]: row for row in relatedness.pairs(corpus, ["a", "b", "c"], ["a"])}
    assert rows["a"]["distance"] == pytest.approx(0, abs=1e-12) and rows["a"]["shared_trigrams"] == pytest.approx(1)
    assert rows["a"]["distance"] < rows["b"]["distance"] < rows["c"]["distance"] <= np.log(2)
    assert rows["a"]["shared_tokens"] == pytest.approx(1)
    assert 0.99 > rows["b"]["shared_tokens"] > rows["c"]["shared_tokens"]
    assert rows["b"]["shared_trigrams"] > rows["c"]["shared_trigrams"]


def test_sources_count_lines_and_are_recorded(corpus, tmp_path, monkeypatch):
    store = Store(tmp_path / "runs")
    found = relatedness.recorded(corpus.recipe, ["b", "c"], ["a"], store)
    by_source = {row["source"]: row for row in found["sources"]}
    assert set(by_source) == {"a", "b", "c"} and all(row["lines"] % 4 == 0 for row in by_source.values())
    assert all(row["bigram_nats"] < row["unigram_nats"] < np.log(320) for row in by_source.values())
    monkeypatch.setattr(relatedness, "sources", None)  # served from the record
    assert relatedness.recorded(corpus.recipe, ["c", "b"], ["a"], store) == found
