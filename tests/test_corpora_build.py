"""Building and opening shards from a user's own files; bad input."""

import json
import pickle
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas
import pytest

from cptlab import corpora
from cptlab.corpora import build as building
from cptlab.corpora.parts import SourceRef
from cptlab.corpora.tokenizer import balanced_text
from cptlab.errors import CorpusError

WORDS = ["the", "sea", "was", "calm", "and", "no", "wind", "moved", "over", "the", "long", "grey", "shore", "that", "night"]


def sentences(count, seed):
    rng = np.random.default_rng(seed)
    return [f"{i}: " + " ".join(rng.choice(WORDS, 30)) + "." for i in range(count)]


def write_jsonl(path, texts, **fields):
    path.write_text("".join(json.dumps({"text": text} | fields) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recipe(tmp_path):
    paths = {"a": write_jsonl(tmp_path / "a.jsonl", sentences(200, 1)), "b": tmp_path / "b.txt"}
    paths["b"].write_text("\n\n".join(sentences(100, 2)), encoding="utf-8")
    return corpora.local_recipe(paths, vocab=300, validation={"fraction": 0.1})


def test_shards_hold_the_documents_and_nothing_else(recipe):
    corpus = corpora.open_corpus(recipe)
    assert corpora.is_built(recipe) and corpus.eot == 0 and corpus.dtype == np.uint16
    back = []
    for split in ("train", "validation"):
        tokens = corpus.tokens("a", split)
        assert isinstance(tokens, np.memmap) and tokens.ndim == 1 and tokens[-1] == corpus.eot and tokens.max() < recipe.vocab
        with pytest.raises(ValueError, match="read-only"):
            tokens[0] = 1
        ends = np.flatnonzero(tokens == corpus.eot)
        back += [corpus.tokenizer.decode(list(part[part != 0])) for part in np.split(tokens, ends)[:-1]]
        shard = corpus.manifest["shards"][f"{split}/a.bin"]
        assert shard["documents"] == len(ends) and shard["tokens"] == len(tokens)
    assert sorted(back) == sorted(sentences(200, 1))
    rows = corpus.report()
    assert list(rows.columns) == ["source", "split", "documents", "bytes", "tokens", "bytes_per_token"] and len(rows) == 4
    assert rows[rows.source == "a"].bytes.sum() == sum(len(text.encode()) for text in sentences(200, 1))
    corpus.verify()
    assert sorted(corpus.shard_hashes) == ["train/a.bin", "train/b.bin", "validation/a.bin", "validation/b.bin"]
    with pytest.raises(CorpusError, match="no source 'c': use one of a, b"):
        corpus.tokens("c")
    with pytest.raises(CorpusError, match="train, validation"):
        corpus.tokens("a", "test")


def test_two_builds_give_the_same_bytes(recipe, tmp_path, monkeypatch):
    first = corpora.open_corpus(recipe)
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path / "second"))
    second = corpora.open_corpus(recipe)
    assert first.path != second.path and first.shard_hashes == second.shard_hashes
    assert (first.path / "tokenizer.json").read_bytes() == (second.path / "tokenizer.json").read_bytes()


def test_two_builders_at_once_build_once(recipe, tmp_path):
    script = (
        "import pickle, sys; from cptlab import corpora; said = []; recipe = pickle.load(sys.stdin.buffer)\n"
        "corpora.open_corpus(recipe, say=said.append).verify(); print(recipe.fingerprint, len(said) > 0)"
    )
    env = {"PYTHONPATH": ":".join(sys.path), "CPTLAB_CACHE": str(tmp_path / "cache")}
    command = {"args": [sys.executable, "-c", script], "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": env}
    both = [subprocess.Popen(**command) for _ in range(2)]
    for process in both:
        process.stdin.write(pickle.dumps(recipe))
        process.stdin.close()
    said = sorted(process.stdout.read().decode().strip() for process in both)
    assert [process.wait() for process in both] == [0, 0]
    assert said == [f"{recipe.fingerprint} False", f"{recipe.fingerprint} True"]


def test_leftovers_of_a_killed_builder_are_removed(recipe):
    path = building.corpus_dir(recipe)
    left = path.parent / f".building-{path.name}-killed"
    left.mkdir(parents=True)
    (left / "train").mkdir()
    corpora.open_corpus(recipe)
    assert not left.exists()


def test_damage_is_seen(recipe):
    corpus = corpora.open_corpus(recipe)
    shard = corpus.path / "train" / "a.bin"
    whole = shard.read_bytes()
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(CorpusError, match=r"train/a\.bin is not the file that was built"):
        corpora.open_corpus(recipe).verify()
    shard.write_bytes(whole[:-2])
    with pytest.raises(CorpusError, match=r"train/a\.bin has .* bytes, not .*: delete the folder and build"):
        corpora.open_corpus(recipe)
    (corpus.path / "manifest.json").write_text('{"format": 1')
    with pytest.raises(CorpusError, match=r"manifest\.json cannot be read"):
        corpora.open_corpus(recipe)


def test_a_folder_of_another_corpus_is_refused(recipe, tmp_path):
    other = corpora.local_recipe({"a": tmp_path / "a.jsonl"}, vocab=300, validation={"fraction": 0.1})
    shutil.copytree(corpora.open_corpus(recipe).path, building.corpus_dir(other))
    with pytest.raises(CorpusError, match="is of corpus"):
        corpora.open_corpus(other)


def test_text_that_spells_the_end_token_ends_nothing(tmp_path):
    texts = [f"{text} <|endoftext|> more" for text in sentences(60, 3)]
    corpus = corpora.open_corpus(
        corpora.local_recipe({"a": write_jsonl(tmp_path / "a.jsonl", texts)}, vocab=280, validation={"fraction": 0.2})
    )
    ends = sum(int((corpus.tokens("a", split) == corpus.eot).sum()) for split in ("train", "validation"))
    assert ends == 60


def test_a_vocabulary_of_257_is_bytes(tmp_path):
    recipe = corpora.local_recipe({"a": write_jsonl(tmp_path / "a.jsonl", ["é" + text for text in sentences(60, 4)])}, vocab=257)
    rows = corpora.open_corpus(recipe).report_rows()
    assert all(row["tokens"] == row["bytes"] + row["documents"] for row in rows)


def test_a_cipher_permutes_the_tokens_of_one_source(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", sentences(200, 1))
    plain = corpora.local_recipe({"plain": path, "one": path, "two": path}, vocab=300)
    sources = {name: replace(plain.sources[name], cipher=seed) for name, seed in (("plain", None), ("one", 1), ("two", 2))}
    recipe = replace(plain, sources=sources)
    assert recipe.fingerprint != plain.fingerprint
    corpus, plain = corpora.open_corpus(recipe), corpora.open_corpus(plain)
    end = corpus.eot
    for split in ("train", "validation"):
        given, one, two = (np.asarray(corpus.tokens(name, split)) for name in ("plain", "one", "two"))
        assert (given == np.asarray(plain.tokens("plain", split))).all()
        pairs = set(zip(given.tolist(), one.tolist(), strict=True))
        assert len(pairs) == len(set(given.tolist())) == len(set(one.tolist()))  # one to one
        assert ((given == end) == (one == end)).all() and (one != two).mean() > 0.5 and (one != given).mean() > 0.5
    with pytest.raises(CorpusError, match="cipher is 'x': give a whole number of at least 0"):
        replace(recipe.sources["plain"], cipher="x")


def test_marks_stay_with_their_letters_where_asked(tmp_path):
    path = tmp_path / "hi.txt"
    path.write_text("\n\n".join(f"परमेश्वर ने कहा {number} कि उजियाला हो" for number in range(300)), encoding="utf-8")
    tokens = {}
    for keep in (False, True):
        recipe = corpora.local_recipe({"hi": path}, vocab=400, tokenizer={"keep_marks": keep})
        tokenizer = corpora.open_corpus(recipe).tokenizer
        assert tokenizer.decode(tokenizer.encode("कि उजियाला हो").ids) == "कि उजियाला हो"
        tokens[keep] = len(tokenizer.encode(" कि उजियाला हो").ids)
    assert tokens[True] == 3 < tokens[False]
    with pytest.raises(CorpusError, match="tokenizer.keep_marks is 'yes': give true or false"):
        corpora.local_recipe({"hi": path}, tokenizer={"keep_marks": "yes"})


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    recipe = corpora.local_recipe({"a": write_jsonl(tmp_path / "a.jsonl", sentences(60, 4))}, vocab=70_000)
    with pytest.warns(UserWarning, match="fewer than the vocab of 70000"):
        corpus = corpora.open_corpus(recipe)
    assert corpus.dtype == np.uint32 and (corpus.path / "train/a.bin").stat().st_size == 4 * len(corpus.tokens("a"))


def test_the_tokeniser_sees_balanced_training_text_only(recipe, tmp_path):
    texts = balanced_text(recipe)
    validation = {d.text for ref in recipe.sources.values() for d in corpora.documents(ref) if recipe.validation.is_validation(d.split_key)}
    assert len(validation) > 5 and not validation & set(texts)
    sizes = [sum(len(t.encode()) for t in texts if t in found) for found in (set(sentences(200, 1)), set(sentences(100, 2)))]
    assert abs(sizes[0] - sizes[1]) <= max(len(t.encode()) for t in texts)  # a document, though the first source is twice as large
    paths = {name: write_jsonl(tmp_path / f"{name}.jsonl", sentences(50, seed), topic="sea") for seed, name in enumerate("cde")}
    aligned = corpora.local_recipe(paths, split_field="topic", tokenizer={"balance": "content", "sources": ["c", "e"]})
    assert balanced_text(aligned) == [sentences(50, 0)[0], sentences(50, 2)[0]]  # one document a key and source, from the named sources
    apart = corpora.local_recipe(paths, tokenizer={"balance": "content"})
    with pytest.raises(CorpusError, match="share no split key"):
        balanced_text(apart)


def test_hub_tokenisers_are_checked(tmp_path, monkeypatch):
    from tokenizers import Tokenizer

    first = corpora.open_corpus(corpora.local_recipe({"a": write_jsonl(tmp_path / "a.jsonl", sentences(60, 5))}, vocab=290))
    trained = first.tokenizer
    calls = []
    monkeypatch.setattr(Tokenizer, "from_pretrained", lambda name, revision: calls.append((name, revision)) or trained)
    hub = {"kind": "hub", "hub": "org/tok", "revision": "abc"}
    corpus = corpora.open_corpus(corpora.local_recipe({"a": tmp_path / "a.jsonl"}, vocab=512, tokenizer=hub))
    assert calls == [("org/tok", "abc")] and corpus.manifest["tokenizer_tokens"] == 290
    assert corpus.shard_hashes == first.shard_hashes
    with pytest.raises(CorpusError, match="has 290 tokens, the recipe says vocab = 257"):
        corpora.open_corpus(corpora.local_recipe({"a": tmp_path / "a.jsonl"}, vocab=257, tokenizer=hub))
    with pytest.raises(CorpusError, match="no token '</s>'"):
        corpora.open_corpus(corpora.local_recipe({"a": tmp_path / "a.jsonl"}, vocab=512, tokenizer=hub | {"eot": "</s>"}))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_hugging_face_streaming_and_local_files_agree(tmp_path, kind):
    folder = tmp_path / "data"
    folder.mkdir()
    frame = pandas.DataFrame({"body": sentences(80, 6), "site": [f"s{i % 20}" for i in range(80)]})
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    else:
        frame.to_parquet(path)
    streamed = SourceRef(hub=str(folder), revision="main", text_field="body", split_field="site", max_documents=50)
    found = list(corpora.documents(streamed))
    assert [(d.text, d.split_key) for d in found] == list(frame.head(50).itertuples(index=False, name=None))
    local = SourceRef(files=(str(path),), text_field="body", split_field="site", max_documents=50)
    assert [(d.text, d.split_key) for d in corpora.documents(local)] == [(d.text, d.split_key) for d in found]
    recipe = corpora.recipe_from("h", {"sources": {"web": streamed}, "tokenizer": {"vocab": 280}, "validation": {"fraction": 0.2}})
    assert sum(row["documents"] for row in corpora.open_corpus(recipe).report_rows()) == 50
    with pytest.raises(CorpusError, match=r"row 1: no field 'text'; the fields are body, site"):
        list(corpora.documents(SourceRef(hub=str(folder), revision="main")))


def test_an_unknown_dataset_is_an_error_that_helps(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CorpusError, match="cannot be opened at revision main: .* Check name, config, revision"):
        list(corpora.documents(SourceRef(hub=str(tmp_path / "nothing"), revision="main")))


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("m.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"m\.jsonl:2: not valid UTF-8"),
        ("m.txt", b"good\n\nbad \xe9t\xe9\n", r"m\.txt:3: not valid UTF-8"),
        ("m.jsonl", b'{"text": "a"}\n\n{"title": "b"}\n', r"m\.jsonl:3: no field 'text'; the fields are title"),
        ("m.jsonl", b'{"text": 5}\n', r"m\.jsonl:1: field 'text' is 5, not text"),
        ("m.jsonl", b'{"text": "a"\n', r"m\.jsonl:1: not valid JSON"),
        ("m.jsonl", b'["a"]\n', r"m\.jsonl:1: a list, not an object"),
        ("m.jsonl", b'{"text": "\\ud800"}\n', r"m\.jsonl:1: the text holds a lone surrogate"),
        ("m.parquet", b"PAR?", r"m\.parquet: not a readable parquet file"),
    ],
)
def test_bad_input_names_file_and_line(tmp_path, name, raw, message):
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(CorpusError, match=message):
        list(corpora.documents(SourceRef(files=(str(path),))))


def test_parquet_columns_are_checked(tmp_path):
    pandas.DataFrame({"body": ["a", None]}).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(CorpusError, match=r"m\.parquet: no columns \['text'\]; it has body"):
        list(corpora.documents(SourceRef(files=(str(tmp_path / "m.parquet"),))))
    with pytest.raises(CorpusError, match=r"m\.parquet: row 2: field 'body' is None"):
        list(corpora.documents(SourceRef(files=(str(tmp_path / "m.parquet"),), text_field="body")))


def test_text_files_break_at_blank_lines_and_may_start_with_a_mark(tmp_path):
    (tmp_path / "m.txt").write_bytes("\ufeffone\r\nstill one\r\n\r\n \r\ntwo".encode())
    found = list(corpora.documents(SourceRef(files=(str(tmp_path / "m.txt"),))))
    assert [(d.text, d.id.rsplit(":", 1)[1]) for d in found] == [("one\r\nstill one", "1"), ("two", "5")]


def test_empty_and_changed_sources(tmp_path):
    path = write_jsonl(tmp_path / "m.jsonl", ["", "  "])
    with pytest.raises(CorpusError, match="source 'm' gives no training text"):
        corpora.open_corpus(corpora.local_recipe({"m": path}, vocab=257))
    write_jsonl(path, sentences(3, 7))
    recipe = corpora.local_recipe({"m": path}, vocab=257, validation={"fraction": 1e-6})
    with pytest.raises(CorpusError, match="none of its 3 documents fall in validation"):
        corpora.open_corpus(recipe)
    assert [p.name for p in (tmp_path / "cache/corpora").iterdir() if not p.name.endswith(".lock")] == []  # nothing half-built stays
    write_jsonl(path, sentences(4, 7))
    with pytest.raises(CorpusError, match=r"m\.jsonl has changed since the recipe was made"):
        corpora.open_corpus(recipe)


def test_functions_for_the_command_line_give_plain_data():
    with pytest.raises(CorpusError, match="not built yet: run `cptlab corpora build verses-en-fr-zh`"):
        corpora.report("verses-en-fr-zh")
    with pytest.raises(CorpusError, match="unknown: use one of planted"):
        corpora.build_corpus("verses")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {"verses-en-fr-zh", "verses-en-fr-zh-smoke", "planted", "spoilt-fr"} <= set(corpora.embedded_names())
        assert set(corpora.embedded_names()) < set(corpora.recipe_names())
