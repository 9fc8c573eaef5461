"""Evaluation: names of sets, losses among some tokens, choices; against ``transformers`` alone, and without a trace in training."""

import csv
import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml

from cptlab.errors import ConfigError
from cptlab.runs.evaluation_sets import EvaluationSet
from cptlab.runs.request import Prompt, Request
from cptlab.runs.store import Store
from cptlab.sweep.grid import Grid

KINDS = ("two:5", "two:5@one", "two:5~3")


@pytest.fixture
def stores(tmp_path):
    """A store a name: the ZeRO stage is no part of a run's identity."""
    return lambda name: Store(tmp_path / f"store-{name}")


@pytest.fixture
def corpus(recipe):
    from cptlab.corpora import open_corpus

    return open_corpus(recipe)


@pytest.fixture
def engine_of(torch_once):
    """``engine_of(run, store)`` holds the run's last weights."""
    from cptlab.training.engine import Engine
    from cptlab.training.models import build_model, load_weights
    from cptlab.training.objectives.token import TokenObjective

    engines = []

    def make(run, store, how=tiny.EXECUTION) -> Engine:
        model = build_model(run, how)
        load_weights(model, store.checkpoint(run.id, run.steps).path)
        engines.append(Engine(run, how, TokenObjective(model), run.precision))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def reference(run, store):
    """The run's last weights as ``transformers`` reads them."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(store.checkpoint(run.id, run.steps).path.parent, attn_implementation="eager")


def choice_loss(torch, model, context, choice) -> float:
    """Minus the log-likelihood of a choice, nats, without batches or padding."""
    tokens = torch.tensor([[*context, *choice]])
    with torch.no_grad():
        logs = torch.log_softmax(model(tokens[:, :-1]).logits[0], -1)
    return -sum(float(logs[len(context) - 1 + i, token]) for i, token in enumerate(choice))


# --- names -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "canonical", "fields"),
    [
        ("fr", "fr", ("fr", 64, None, 0)),
        ("fr:64", "fr", ("fr", 64, None, 0)),
        ("fr-1_a.b:128", "fr-1_a.b:128", ("fr-1_a.b", 128, None, 0)),
        ("fr:all", "fr:all", ("fr", None, None, 0)),
        ("fr@fr", "fr@fr", ("fr", 64, "fr", 0)),
        ("fr:64@en", "fr@en", ("fr", 64, "en", 0)),
        ("fr:7@en", "fr:7@en", ("fr", 7, "en", 0)),
        ("fr~64", "fr~64", ("fr", 64, None, 64)),
        ("fr:64~4", "fr~4", ("fr", 64, None, 4)),
        ("fr:all~99", "fr:all~99", ("fr", None, None, 99)),
    ],
)
def test_names(name, canonical, fields):
    parsed = EvaluationSet.parse(name)
    assert parsed == EvaluationSet(*fields) == EvaluationSet.parse(canonical)
    assert parsed.name == canonical


def test_names_are_safe_where_they_are_written(tmp_path):
    names = ["fr", "fr:all", "fr:12@en", "fr~4", "fr:all~4"]
    assert (
        yaml.safe_load(f"sets: [{', '.join(names)}]") == {"sets": names} == yaml.safe_load("sets:\n" + "".join(f"- {n}\n" for n in names))
    )
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(names)
    assert stream.getvalue() == ",".join(names) + "\n"
    for name in ("fr@en", "fr~4"):
        (tmp_path / name).touch()
        assert Path(tmp_path / name).is_file() and not set(name) & set('<>:"/\\|?*%$')


@pytest.mark.parametrize(
    "name",
    [
        "three",
        "",
        ":3",
        "one:",
        "one:0",
        "one:-1",
        "one:03",
        "one:few",
        "one:²",
        "one:3:4",
        "one ",
        "one@",
        "one@three",
        "@one",
        "one@two@one",
    ]
    + ["one~", "one~0", "one~1", "one~65", "one:3~4", "one~x", "one~4:3", "one@two:3", "one@two~4", "one~4@two"],
)
def test_names_that_are_not_valid(recipe, name):
    with pytest.raises(ConfigError, match=rf"evaluation set {name!r} is not valid: name a source of the corpus \(one, two\)"):
        Request(tiny.spec(recipe), sets=("one", name))


def test_a_set_is_measured_and_found_under_one_name(recipe, store, torch_once):
    run = tiny.spec(recipe, 2)
    request = Request(run, sets=("one:64", "two:5", "one", "two:5", "one:64~4", "one~4"), steps=(2,))
    assert request.sets == ("one", "two:5", "one~4")
    assert request.merged(Request(run, sets=("two:64", "one:64"))).sets == (*request.sets, "two")
    tiny.trained(store, run, sets=("one:64", "one", "two:5"))
    assert store.measurements(run.id)["set"].tolist() == ["one", "two:5"]
    grid = Grid(store, tiny.EXECUTION, sets=("one:64",))
    grid.add(run, steps=(2,))
    assert grid.plan()["status"].tolist() == ["cached"]
    assert grid.results().final("one:64")["set"].tolist() == grid.results().final("one")["set"].tolist() == ["one"]
    with pytest.raises(ConfigError, match="'one:' is not valid"):
        grid.results().final("one:")


# --- windows -----------------------------------------------------------------------------------------------------------------


def test_evaluation_windows(corpus):
    from cptlab.training.evaluation import evaluation_windows

    tokens = np.asarray(corpus.tokens("two", "validation"), np.int64)
    every = evaluation_windows(corpus, "two:all", tiny.CONTEXT)
    assert len(every) == (len(tokens) - 1) // tiny.CONTEXT
    assert np.array_equal(every[:, :-1].ravel(), tokens[: every[:, :-1].size])
    assert np.array_equal(evaluation_windows(corpus, f"two:{len(every)}", tiny.CONTEXT), every)
    for name in ("two:3", "two:3@one", "two:3~2"):
        assert np.array_equal(evaluation_windows(corpus, name, tiny.CONTEXT), every[[0, len(every) // 3, 2 * len(every) // 3]])
    assert len(evaluation_windows(corpus, "one", tiny.CONTEXT)) == 64


@pytest.mark.parametrize(
    ("name", "context", "message"),
    [
        ("two:99999", 32, r"needs 99999 windows of 33 tokens, and the validation text of 'two' has (\d+): use 'two:all'"),
        ("one:99999~4", 32, r"has (\d+): use 'one:all~4'"),
        ("one", 100, r"'one' needs 64 windows of 101 tokens, and the validation text of 'one' has (\d+): use 'one:all'"),
        ("one:all~999", 32, r"needs 999 windows of 33 tokens, .* has (\d+): take a shorter context, more text or fewer choices"),
        ("one:all", 99999, r"needs 1 windows of 100000 tokens, .* has (\d+): take a shorter context"),
    ],
)
def test_a_set_never_takes_fewer_windows_than_it_names(corpus, name, context, message):
    from cptlab.training.evaluation import measurement

    source = EvaluationSet.parse(name).source
    with pytest.raises(ConfigError, match=message) as found:
        measurement(corpus, name, context)
    assert f"has {(len(corpus.tokens(source, 'validation')) - 1) // context}:" in str(found.value)


def test_a_set_that_cannot_be_had_fails_before_training(recipe, store, torch_once, monkeypatch):
    from cptlab.training import trainer

    monkeypatch.setattr(trainer.Training, "train", lambda _: 1 / 0)
    record = tiny.trained(store, tiny.spec(recipe, 2), sets=("one:99999@two",), steps=(2,))
    assert record["error"]["type"] == "ConfigError" and "use 'one:all@two'" in record["error"]["message"]


# --- the same numbers as transformers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "count"), [(1, 1), (1, 4), (1, 5), (3, 7)])
def test_evaluation_pads(recipe, store, torch_once, corpus, stage, count):
    """Windows that do not fill the last batch count just once."""
    from cptlab.training.evaluation import evaluation_windows

    run = tiny.spec(recipe, 6)
    names = (f"two:{count}", f"two:{count}@one", *([f"two:{count}~3"] if count > 3 else []))
    tiny.trained(store, run, tiny.execution(zero_stage=stage, micro_batch=4), sets=names)
    rows = store.measurements(run.id).set_index("set").loc[list(names)]
    windows = torch_once.from_numpy(evaluation_windows(corpus, f"two:{count}", tiny.CONTEXT))
    assert windows.shape == (count, tiny.CONTEXT + 1)
    model = reference(run, store)
    with torch_once.no_grad():
        logits = model(windows[:, :-1]).logits.flatten(0, 1)
    labels = windows[:, 1:].flatten()
    for name, one in ((names[0], None), (names[1], "one")):
        held = torch_once.arange(tiny.VOCAB) if one is None else torch_once.from_numpy(np.unique(corpus.tokens(one)).astype(np.int64))
        assert one is None or len(held) < tiny.VOCAB
        kept = torch_once.isin(labels, held)
        place = torch_once.searchsorted(held, labels[kept])  # of each label among the tokens held
        loss = torch_once.nn.functional.cross_entropy(logits[kept][:, held], place)
        assert rows.loc[name, "loss_nats"] == pytest.approx(float(loss), rel=1e-6)
        hits = logits[kept][:, held].argmax(-1) == place
        assert rows.loc[name, "accuracy"] == pytest.approx(float(hits.float().mean()), abs=1e-6)
        assert rows.loc[name, "predicted_tokens"] == int(kept.sum()) and kept.sum() <= count * tiny.CONTEXT
    if count > 3:
        starts, ends = windows[:, :17].tolist(), windows[:, 17:].tolist()
        steps = np.random.Generator(np.random.Philox(0)).permutation(count - 1)[:2] + 1
        losses = [[choice_loss(torch_once, model, starts[i], ends[(i + s) % count]) for s in (0, *steps)] for i in range(count)]
        row = rows.loc[names[2]]
        assert row["loss_nats"] == pytest.approx(np.mean([loss[0] for loss in losses]) / 16, rel=1e-6)
        assert row["accuracy"] == pytest.approx(np.mean([np.argmin(loss) == 0 for loss in losses]))
        assert row["predicted_tokens"] == 16 * count


def test_among_all_tokens_is_the_plain_loss(recipe, store, corpus, engine_of):
    from cptlab.training.evaluation import evaluation_windows, token_loss

    run = tiny.spec(recipe, 4, precision="bf16")
    tiny.trained(store, run)
    engine, windows = engine_of(run, store), evaluation_windows(corpus, "two:11", tiny.CONTEXT)
    plain, every = engine.evaluate(windows), np.ones(tiny.VOCAB, bool)
    assert np.array_equal(engine.evaluate(windows, allowed=every), plain) and plain.shape == (11, 3)
    assert token_loss(engine, windows, every) == token_loss(engine, windows)
    few = np.zeros(tiny.VOCAB, bool)
    few[np.unique(windows)] = True  # all labels count, in a softmax over fewer
    assert not few.all()
    among = token_loss(engine, windows, few)
    assert among["loss_nats"] < token_loss(engine, windows)["loss_nats"] - 0.01 and among["predicted_tokens"] == 11 * tiny.CONTEXT
    counted = np.random.default_rng(0).random((11, tiny.CONTEXT)) < 0.5
    parts = engine.evaluate(windows, counted) + engine.evaluate(windows, ~counted)
    assert np.allclose(parts, plain, rtol=1e-12) and np.array_equal(engine.evaluate(windows, counted)[:, 2], counted.sum(1))


def test_tokens_of_a_source(recipe, corpus):
    from cptlab.training.evaluation import tokens_of

    found = {name: tokens_of(recipe, name) for name in ("one", "two")}
    for name, held in found.items():
        assert held.shape == (tiny.VOCAB,) and np.array_equal(np.flatnonzero(held), np.unique(corpus.tokens(name)))
    assert not np.array_equal(found["one"], found["two"])


def test_no_label_among_the_tokens(corpus, monkeypatch):
    from cptlab.training import evaluation

    monkeypatch.setattr(evaluation, "tokens_of", lambda recipe, source: np.zeros(recipe.vocab, bool))
    with pytest.raises(ConfigError, match="'two:3@one' is empty: no token of its windows occurs in the training text of 'one'"):
        evaluation.measurement(corpus, "two:3@one", tiny.CONTEXT)


def test_a_model_with_more_tokens_than_the_corpus(recipe, store, torch_once, tmp_path):
    """Those that the corpus lacks are not among the tokens of any source."""
    from test_models import HUB, hub_model, saved

    hub_model(torch_once, tmp_path / "model", vocab=tiny.VOCAB + 40)
    run = tiny.spec(recipe, 2, model=HUB, upstreams={"init": saved(tmp_path / "model")})
    record = tiny.trained(store, run, sets=("one:8", "one:8@one"))
    assert record["status"] == "done", record["error"]
    plain, among = (store.measurements(run.id).set_index("set").loc[name] for name in ("one:8", "one:8@one"))
    assert among["loss_nats"] < plain["loss_nats"] - 0.1
    assert 0.9 * plain["predicted_tokens"] < among["predicted_tokens"] <= plain["predicted_tokens"]


# --- choices -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 3])
def test_choices_of_any_length(recipe, store, torch_once, engine_of, stage):
    from cptlab.training.evaluation import Item, choice_losses, score_choices

    run, how = tiny.spec(recipe, 4), tiny.execution(zero_stage=stage, micro_batch=4)
    tiny.trained(store, run, how)
    engine, model = engine_of(run, store, how), reference(run, store)
    draw = np.random.default_rng(0)

    def words(length: int) -> list[int]:
        return draw.integers(0, tiny.VOCAB, length).tolist()

    shapes = [(1, (1, 3)), (20, (13, 1, 2)), (31, (2, 2)), (200, (5, 32, 1)), (3, (4,))]  # tokens of the context, of each choice
    items = [Item(words(length), [words(n) for n in choices], len(choices) - 1) for length, choices in shapes]
    found = choice_losses(engine, items)
    assert [len(losses) for losses in found] == [2, 3, 2, 3, 1]
    for item, losses in zip(items, found, strict=True):
        for choice, loss in zip(item.choices, losses, strict=True):
            context = item.context[-(tiny.CONTEXT + 1 - len(choice)) :]
            assert loss == pytest.approx(choice_loss(torch_once, model, context, choice), rel=1e-5)
    row = score_choices(engine, items)
    right = [losses[item.right] for item, losses in zip(items, found, strict=True)]
    assert row["predicted_tokens"] == 3 + 2 + 2 + 1 + 4 and row["loss_nats"] == pytest.approx(sum(right) / 12)
    assert row["accuracy"] == np.mean([np.argmin(losses) == item.right for item, losses in zip(items, found, strict=True)])
    assert 0 < row["accuracy"] < 1


@pytest.mark.parametrize(
    ("losses", "accuracy"), [([1.0, 2.0, 3.0], 1), ([1.0, 1.0, 3.0], 0), ([np.nan, 2.0, 3.0], 0), ([2.0, np.nan, 3.0], 0)]
)
def test_neither_a_tie_nor_a_nan_is_a_win(losses, accuracy, monkeypatch):
    from cptlab.training import evaluation

    monkeypatch.setattr(evaluation, "choice_losses", lambda engine, items: [np.array(losses)])
    assert evaluation.score_choices(None, [evaluation.Item([1], [[1], [2], [3]], 0)])["accuracy"] == accuracy


@pytest.mark.parametrize(("context", "choices"), [([], [[1], [2]]), ([1], [[1], []]), ([1], [[1], [2] * 33])])
def test_items_that_cannot_be_scored(recipe, store, engine_of, context, choices):
    from cptlab.training.evaluation import Item, choice_losses

    run = tiny.spec(recipe, 2)
    tiny.trained(store, run)
    with pytest.raises(ConfigError, match="item 1 has a context of .*: give at least one token of context and choices of 1 to 32 tokens"):
        choice_losses(engine_of(run, store), [Item([1], [[1]], 0), Item(context, choices, 0)])


@pytest.mark.parametrize(("count", "choices"), [(64, 4), (5, 5), (7, 2)])
def test_every_end_is_the_true_one_once_and_a_false_one_equally_often(count, choices):
    from cptlab.training.evaluation import end_items

    windows = np.arange(count * 257).reshape(count, 257)
    items = end_items(windows, choices)
    places = [[int(choice[-1]) // 257 for choice in item.choices] for item in items]
    assert [place[item.right] for place, item in zip(places, items, strict=True)] == list(range(count))
    assert all(len(set(place)) == choices for place in places)
    assert np.bincount(np.ravel(places)).tolist() == [choices] * count
    assert all(np.array_equal(np.r_[item.context, item.choices[item.right]], window) for item, window in zip(items, windows, strict=True))
    assert {len(choice) for item in items for choice in item.choices} == {16}
    fewer = end_items(windows, 2)
    assert all(np.array_equal(few.choices[1], item.choices[1]) for few, item in zip(fewer, items, strict=True))


def test_a_model_that_has_learnt_chooses_better_than_chance(recipe, store, torch_once):
    run = tiny.spec(recipe, 150)
    record = tiny.trained(store, run, sets=("one:64~4",), steps=(0, 150))
    assert record["status"] == "done", record["error"]
    accuracy = store.measurements(run.id).set_index(["step", "set"])["accuracy"]
    assert accuracy[0, "one~4"] < 0.45 < 0.6 < accuracy[150, "one~4"]


# --- no trace in training, and none of training ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 3])
def test_measuring_and_sampling_leave_training_alone(recipe, stores, torch_once, stage):
    run, how = tiny.spec(recipe, 8, precision="bf16"), tiny.execution(zero_stage=stage)
    prompts = (Prompt("abc", 12, 0.7, 1), Prompt("", 5, 1.0, 2), Prompt("de", 6, 0.0, 3))
    asked = {
        "nothing": {},
        "sets": {"sets": ("one:8", *KINDS), "steps": tuple(range(9))},
        "prompts": {"prompts": prompts, "steps": (0, 3, 8)},
        "both": {"sets": ("one:8",), "prompts": prompts, "steps": (0, 3, 8), "keep": (2,), "keep_state": (4,)},
    }
    hashes, curves = set(), set()
    for name, wanted in asked.items():
        record = tiny.trained(stores(name), run, how, **wanted)
        assert record["status"] == "done", record["error"]
        hashes.add(record["checkpoints"]["8"]["sha256"])
        curves.add((stores(name).path(run.id) / "curve.csv").read_text())
    assert len(hashes) == 1 and len(curves) == 1
    one, other = stores("prompts").samples(run.id), stores("both").samples(run.id)
    assert one == other and len(one) == 9
    assert {s["step"] for s in one} == {0, 3, 8} and all(s["text"] for s in one if s["step"] == 0)
    sets, both = stores("sets").measurements(run.id), stores("both").measurements(run.id)
    shared = sets.merge(both, on=["step", "set"])
    assert len(shared) == 3 and (shared["loss_nats_x"] == shared["loss_nats_y"]).all()


@pytest.mark.parametrize("stage", [1, 3])
def test_a_finished_run_is_measured_without_training(recipe, stores, torch_once, monkeypatch, stage):
    from cptlab.training import perform

    run, how, asked = tiny.spec(recipe, 4, precision="bf16"), tiny.execution(zero_stage=stage), {"steps": (2, 4), "keep": (2,)}
    whole, later = stores("whole"), stores("later")
    tiny.trained(whole, run, how, sets=("one:4", *KINDS), **asked)
    tiny.trained(later, run, how, sets=("one:4",), **asked)
    record = (later.path(run.id) / "run.json").read_bytes()
    weights = later.checkpoint(run.id, 4).path.read_bytes()
    monkeypatch.setattr(perform, "Training", lambda *_: 1 / 0)
    grid = Grid(later, how, sets=("one:4", *KINDS))
    grid.add(run, steps=(2, 4))
    assert grid.plan()["status"].tolist() == ["evaluate"]
    with ThreadPoolExecutor(1) as executor:
        results = grid.train(executor)
    assert results.failures.empty and len(results.measurements) == 8
    assert (later.path(run.id) / "measurements.csv").read_text() == (whole.path(run.id) / "measurements.csv").read_text()
    assert (later.path(run.id) / "run.json").read_bytes() == record and later.checkpoint(run.id, 4).path.read_bytes() == weights


def work_all(requests, root, how, cache) -> None:
    import os

    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    for request in requests:
        tiny.work_until(request, root, how)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_compiled_runs_measure_all_kinds_to_the_same_bits(recipe, tmp_path, in_process):
    """One graph more for the softmax among some tokens, none that changes the others."""
    how, small = tiny.execution(compile=True, micro_batch=4), tiny.model(layers=1, width=16, ffn_width=32)
    run, other = (tiny.spec(recipe, 4, model=small, precision="bf16", seed=seed) for seed in (0, 1))
    plain, kinds, cache = Store(tmp_path / "plain"), Store(tmp_path / "kinds"), tmp_path / "inductor"
    assert in_process(work_all, [Request(run, {}, ("two:5",), (0, 4))], plain.root, how, cache) == 0
    requests = [Request(spec, {}, (*KINDS, "two:6@two"), (0, 2, 4)) for spec in (other, run)]
    assert in_process(work_all, requests, kinds.root, how, cache) == 0
    record = kinds.record(run.id)
    assert record["status"] == "done" and record["provenance"]["execution"]["compile"] is True, record["error"]
    assert record["checkpoints"] == plain.record(run.id)["checkpoints"]
    assert (plain.path(run.id) / "curve.csv").read_text() == (kinds.path(run.id) / "curve.csv").read_text()
    before, after = (store.measurements(run.id) for store in (plain, kinds))
    assert len(before) == len(before.merge(after)) == 2 and len(after) == 12
