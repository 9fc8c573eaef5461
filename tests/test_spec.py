"""Identity of runs: equal specs share it, any other weights have another one, and it does not change by accident."""

import dataclasses
import json
import math
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import cptlab
from cptlab.corpora.recipe import recipe, recipe_names
from cptlab.errors import ConfigError
from cptlab.identity import ADDED, PlainSpec, canonical
from cptlab.runs import spec as spec_module
from cptlab.runs.shapes import ModelSpec
from cptlab.runs.spec import DataOrder, Optimiser, Phase, RunSpec, Schedule, Upstream


@dataclass(frozen=True)
class StubCorpus:
    """What a spec reads of a recipe; keeps these identities apart from the corpora's own."""

    name: str = "stub"
    names: tuple = ("en", "fr", "zh")
    vocab: int = 512
    fingerprint: str = "ab" * 32


def model(**changes):
    return ModelSpec(**({"layers": 2, "width": 64, "heads": 2, "ffn_width": 160, "vocab": 512, "context": 128} | changes))


def spec(**changes):
    return RunSpec(**({"model": model(), "corpus": StubCorpus(), "mixture": {"en": 1}, "tokens": 409600} | changes))


def phased(*phases, **changes):
    return spec(**({"mixture": None, "tokens": None, "phases": phases} | changes))


BASE = spec()
HUB = Upstream(hub="a/b", revision="1" * 40)
AFTER = {"upstreams": {"init": Upstream(run=BASE)}, "seed": 2}

# A valid change of every field. The test below fails when a field is added and not listed here.
RUN_CHANGES = {
    "model": model(layers=4, width=128),
    "corpus": StubCorpus(fingerprint="cd" * 32),
    "mixture": {"en": 3, "fr": 1},
    "tokens": 413696,
    "batch_tokens": 8192,
    "schedule": Schedule(kind="linear"),
    "optimiser": Optimiser(clip_norm=0.5),
    "objective": None,  # one objective so far; others, and their options: test_objectives
    "trainable": ("*embed*",),
    "upstreams": {"init": Upstream(run=BASE)},
    "precision": "fp32",
    "seed": 1,
    "data_order": DataOrder(unique_tokens=4096),
    "phases": None,  # takes mixture and tokens with it
    "objective_options": None,
}
MODEL_CHANGES = {
    "layers": 3, "width": 128, "heads": 1, "ffn_width": 128, "vocab": None, "context": 256, "kv_heads": 2, "family": "gpt-neox",
    "tied_embeddings": True, "rope_theta": 5e5, "init_std": 0.01,
}  # fmt: skip
SCHEDULE_CHANGES = {
    "kind": "wsd", "max_lr": 1e-3, "min_lr_ratio": 0.0, "warmup_tokens": 4096, "warmup_start_ratio": 0.5, "decay_fraction": 0.1,
    "horizon_tokens": 10**6, "elapsed_tokens": 4096,
}  # fmt: skip
ORDER_CHANGES = {"block_tokens": 1024, "read_on": True, "unique_tokens": 4096}
PHASE_CHANGES = {"tokens": 8192, "mixture": {"fr": 1}, "objective": None, "objective_options": None}  # one objective so far
OPTIMISER_CHANGES = {
    "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0, "clip_norm": 0.0, "state": "carry", "lr_factors": {"*norm*": 0.5},
}  # fmt: skip


def changed_specs():
    yield from ((name, spec(**{name: value})) for name, value in RUN_CHANGES.items() if value is not None)
    yield from ((f"model.{name}", spec(model=model(**{name: value}))) for name, value in MODEL_CHANGES.items() if value is not None)
    yield "model.vocab", spec(model=model(vocab=1024), corpus=StubCorpus(vocab=1024))
    yield from ((f"schedule.{name}", spec(schedule=Schedule(**{name: value}))) for name, value in SCHEDULE_CHANGES.items())
    yield from ((f"data_order.{name}", spec(data_order=DataOrder(**{name: value}), **AFTER)) for name, value in ORDER_CHANGES.items())
    yield "phases", phased(Phase(204800, {"en": 1}), Phase(204800, {"en": 1}))
    for name, value in ((name, value) for name, value in PHASE_CHANGES.items() if value is not None):
        yield f"phases.{name}", phased(Phase(204800, {"en": 1}), Phase(**({"tokens": 204800, "mixture": {"en": 1}} | {name: value})))
    yield "init alone", spec(**AFTER)
    for name, value in OPTIMISER_CHANGES.items():
        yield f"optimiser.{name}", spec(optimiser=Optimiser(**{name: value}), upstreams={"init": Upstream(run=BASE)})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((RunSpec, RUN_CHANGES), (ModelSpec, MODEL_CHANGES), (Schedule, SCHEDULE_CHANGES), (Optimiser, OPTIMISER_CHANGES)),
        *((DataOrder, ORDER_CHANGES), (Phase, PHASE_CHANGES)),
    ],
)
def test_every_field_is_tried(kind, changes):
    assert [f.name for f in dataclasses.fields(kind)] == list(changes)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Schedule("cosine", warmup_tokens=51 * 4096), "warmup_tokens = 208,896 is 51 steps of 4,096 tokens, but .* has 50 steps: "),
        (Schedule("wsd", warmup_tokens=41 * 4096), "is 41 steps of .* has 50 steps, of which the last 10 decay: give a shorter warm-up"),
    ],
)
def test_a_warm_up_ends_before_the_schedule_and_its_decay(schedule, said):
    with pytest.raises(ConfigError, match=said):
        spec(tokens=50 * 4096, schedule=schedule)
    spec(tokens=50 * 4096, schedule=dataclasses.replace(schedule, warmup_tokens=schedule.warmup_tokens - 4096))
    spec(tokens=50 * 4096, schedule=dataclasses.replace(schedule, horizon_tokens=70 * 4096))


def test_every_field_changes_the_identity():
    specs = dict(changed_specs())
    ids = {"base": BASE.id} | {name: one.id for name, one in specs.items()}
    assert len(set(ids.values())) == len(ids), ids
    assert all(one != BASE for one in specs.values())
    assert all(len(one.id) == 16 and set(one.id) <= set("0123456789abcdef") for one in specs.values())


def test_golden_identity():
    """A failure here means that every stored run would be orphaned. If that is meant, raise RECIPE_VERSION and write the new ids."""
    assert spec_module.RECIPE_VERSION == 2
    assert BASE.id == "b069492ff1bbbff3"
    full = spec(
        model=model(kv_heads=2, tied_embeddings=True),
        mixture={"fr": 0.75, "en": 0.25},
        schedule=Schedule(kind="wsd", max_lr=1e-3, horizon_tokens=10**6),
        optimiser=Optimiser(state="carry"),
        trainable=("*embed*", "*norm*"),
        upstreams={"init": Upstream(run=BASE, step=50)},
        precision="fp32",
        seed=3,
    )
    assert full.id == "3b5cb804645d6a13"
    assert replace(full, mixture={"fr": 1}, data_order=DataOrder()).id == "e63c4831bcf72303"


def test_a_new_recipe_version_is_another_identity(monkeypatch):
    monkeypatch.setattr(spec_module, "RECIPE_VERSION", 3)
    assert spec().id != BASE.id


def test_identity_is_the_same_in_another_process():
    code = (
        "from types import SimpleNamespace\nfrom cptlab.runs.spec import *\n"
        "corpus = SimpleNamespace(name='other', names=('zh', 'fr', 'en'), vocab=512, fingerprint='ab' * 32)\n"
        "m = ModelSpec(layers=2, width=64, heads=2, ffn_width=160, vocab=512, context=128)\n"
        "import sys\nprint(RunSpec(model=m, corpus=corpus, mixture={'en': 1}, tokens=409600).id, 'torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(Path(cptlab.__file__).parents[1]), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [BASE.id, "False"], done.stderr


def test_what_does_not_determine_the_weights_does_not_count():
    one = spec(mixture={"en": 1, "fr": 3}, schedule=Schedule(min_lr_ratio=0, warmup_start_ratio=1), trainable=["*"])
    same = [
        spec(mixture={"fr": 3, "en": 1}, schedule=Schedule(min_lr_ratio=0.0, warmup_start_ratio=1.0)),
        spec(mixture={"fr": 0.75, "en": 0.25}, schedule=Schedule(min_lr_ratio=0, warmup_start_ratio=1)),
        spec(mixture={"fr": 6.0, "en": 2, "zh": 0}, schedule=Schedule(min_lr_ratio=0, warmup_start_ratio=1), tokens=409600),
        spec(mixture={"en": 1, "fr": 3}, schedule=Schedule(min_lr_ratio=0, warmup_start_ratio=1), corpus=StubCorpus(name="renamed")),
    ]
    assert {other.id for other in same} == {one.id}
    assert len({one, *same}) == 1
    assert spec(corpus=StubCorpus(name="renamed")).canonical()["corpus"]["name"] == "renamed"  # still told in the record


def test_a_mixture_of_thirds_survives_copies():
    one = spec(mixture={"en": 1, "fr": 1, "zh": 1})
    copy = one
    for _ in range(5):
        copy = replace(copy, mixture=dict(copy.mixture))
    assert copy.id == one.id
    assert sum(one.mixture.values()) == pytest.approx(1, abs=1e-15)


def test_upstreams_chain():
    stage1 = spec(upstreams={"init": Upstream(run=BASE)})
    stage2 = spec(upstreams={"init": Upstream(run=stage1)})
    other_base = spec(seed=1)
    assert spec(upstreams={"init": Upstream(run=other_base)}).id != stage1.id
    assert spec(upstreams={"init": Upstream(run=spec(upstreams={"init": Upstream(run=other_base)}))}).id != stage2.id
    assert len({BASE.id, stage1.id, stage2.id}) == 3
    assert spec(upstreams={"init": Upstream(run=BASE, step=50)}).id != stage1.id
    assert spec(upstreams={"init": Upstream(run=BASE, step=100)}).id == stage1.id  # its last step, said or not
    assert spec(upstreams={"teacher": Upstream(run=BASE)}).id != stage1.id
    assert stage1.canonical()["upstreams"] == {"init": {"run": BASE.id, "step": 100}}
    assert stage2.runs_upstream() == [(stage1, 100)]


def test_hub_upstreams_count_by_name_and_revision():
    def hub(name, revision):
        return spec(model=model(family="hub"), upstreams={"init": Upstream(hub=name, revision=revision)})

    named = [hub("a/pythia-70m", "1" * 40), hub("a/pythia-70m", "2" * 40), hub("a/pythia-160m", "2" * 40)]
    assert len({run.id for run in named}) == 3
    assert named[0].canonical()["upstreams"] == {"init": {"hub": "a/pythia-70m", "revision": "1" * 40}}
    assert named[0].runs_upstream() == []
    # A folder is what it holds, wherever it lies.
    one, moved, changed = (hub(path, f"sha256:{digit * 64}") for path, digit in (("x/a", "1"), ("y/b", "1"), ("x/a", "2")))
    assert one.id == moved.id and one == moved and one.id != changed.id
    assert one.canonical()["upstreams"] == {"init": {"folder": f"sha256:{'1' * 64}"}}
    assert pickle.loads(pickle.dumps(one)).upstreams["init"] == one.upstreams["init"]


@pytest.mark.parametrize("revision", [None, "", "main", "step1000", "1" * 39, "A" * 40, "sha256:12", f"{'1' * 40}\n"])
def test_a_revision_that_moves_is_no_identity(revision):
    with pytest.raises(ConfigError, match=r"'a/b' has revision .*hub_commit\('a/b', .*folder_revision"):
        Upstream(hub="a/b", revision=revision)


def test_a_hub_start_needs_the_family_that_takes_its_shape():
    hub = {"init": Upstream(hub="a/b", revision="1" * 40)}
    for wrong in (model(), model(vocab=77), model(family="gpt-neox", kv_heads=2)):
        with pytest.raises(ConfigError, match="init is a Hugging Face model.*model.family is '(llama|gpt-neox)': use .*family='hub'"):
            spec(model=wrong, upstreams=hub)
    begun = spec(model=model(family="hub"), upstreams=hub)
    assert spec(model=model(family="hub"), upstreams={"init": Upstream(run=begun)}).runs_upstream() == [(begun, 100)]
    with pytest.raises(ConfigError, match="goes on from one.*use .*family='hub'"):
        spec(upstreams={"init": Upstream(run=begun)})
    with pytest.raises(ConfigError, match="model.family is 'hub', but init names a run of family 'llama'"):
        spec(model=model(family="hub"), upstreams={"init": Upstream(run=BASE)})
    assert spec(upstreams={"teacher": Upstream(hub="a/b", revision="1" * 40)}).model.family == "llama"


def test_pickle_keeps_the_identity():
    one = spec(mixture={"en": 1, "fr": 2}, upstreams={"init": Upstream(run=spec(mixture={"en": 1, "fr": 6, "zh": 7}), step=7)})
    copy = pickle.loads(pickle.dumps(one))
    assert copy.id == one.id
    assert copy == one
    assert hash(copy) == hash(one)
    assert copy.upstreams["init"].run.id == one.upstreams["init"].run.id
    assert pickle.loads(pickle.dumps(copy)).canonical() == one.canonical()


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.seed = 2
    with pytest.raises(TypeError):
        BASE.mixture["fr"] = 1
    with pytest.raises(TypeError):
        BASE.upstreams["init"] = Upstream(run=BASE)
    mixture = {"en": 1}
    one = spec(mixture=mixture)
    mixture["fr"] = 1
    assert dict(one.mixture) == {"en": 1.0}


# --- data order and phases ---------------------------------------------------------------------------------------------------


def test_equal_orders_are_one():
    assert BASE.data_order == DataOrder() and spec(data_order=DataOrder()).id == BASE.id
    assert spec(data_order=DataOrder(block_tokens=128)).id == BASE.id  # the context
    mixed = spec(mixture={"en": 1, "fr": 1})
    assert spec(data_order=DataOrder(unique_tokens=4100)).id == spec(data_order=DataOrder(unique_tokens=4096)).id  # whole blocks
    assert spec(data_order=DataOrder(512, unique_tokens=4500)).data_order == DataOrder(512, unique_tokens=4096)
    for one in (mixed, phased(Phase(8192, {"en": 1}), Phase(8192, {"en": 1, "fr": 1}))):
        assert pickle.loads(pickle.dumps(one)).id == one.id == replace(one).id == replace(one, mixture=dict(one.mixture)).id


def test_a_run_that_finds_nothing_to_read_on_is_the_run_that_does_not():
    plain = spec(**AFTER, mixture={"fr": 1})
    assert spec(**AFTER, mixture={"fr": 1}, data_order=DataOrder(read_on=True)).id == plain.id
    both = spec(**AFTER, mixture={"fr": 9, "en": 1}, data_order=DataOrder(read_on=True))
    assert both.data_order.read_on and both.id != spec(**AFTER, mixture={"fr": 9, "en": 1}).id
    later = spec(upstreams={"init": Upstream(run=plain)}, data_order=DataOrder(read_on=True))
    assert later.data_order.read_on  # the base behind the arm read it


def test_texts_of_another_corpus_are_not_read_on():
    other = spec(corpus=StubCorpus(fingerprint="cd" * 32), **AFTER)
    assert spec(corpus=StubCorpus(name="renamed"), **AFTER, data_order=DataOrder(read_on=True)).data_order.read_on
    with pytest.raises(ConfigError, match="data_order.read_on.*corpus 'stub'"):
        spec(corpus=StubCorpus(fingerprint="cd" * 32), **AFTER, data_order=DataOrder(read_on=True))
    back = spec(upstreams={"init": Upstream(run=other)}, data_order=DataOrder(read_on=True))
    assert back.data_order.read_on  # BASE, on this corpus, stands behind the other


def test_phases_give_mixture_and_tokens():
    one = phased(Phase(8192, {"en": 1}), Phase(4096 * 6 + 5, {"en": 1, "fr": 3}))
    assert one.tokens == one.tokens_trained == 8 * 4096 and one.steps == 8
    assert dict(one.mixture) == pytest.approx({"en": 2 / 8 + 6 / 8 / 4, "fr": 6 / 8 * 3 / 4})
    assert [phase.tokens for phase in one.phases] == [8192, 4096 * 6] and dict(one.phases[1].mixture) == {"en": 0.25, "fr": 0.75}
    assert phased(*one.phases, mixture=dict(one.mixture), tokens=one.tokens).id == one.id
    assert replace(one, seed=5).phases == one.phases
    assert spec(phases=[]).id == BASE.id


class Thing:
    pass


@pytest.mark.parametrize(
    "value",
    [
        *(lambda: 0, len, Thing(), Thing, {1, 2}, b"x", 1j, math.nan, math.inf, -math.inf),
        *(np.zeros(2), np.int64(3), np.float32(0.5), Path("x"), {1: 2}, [None, {"a": Thing()}]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_canonical_raises_on_all_but_plain_literals(value):
    with pytest.raises(ConfigError):
        canonical(value)
    with pytest.raises(ConfigError):
        canonical({"nested": [value]})


def test_canonical_forms():
    assert canonical({"b": (1, 2.0), "a": [None, True, "x", 0.5]}) == {"a": [None, True, "x", 0.5], "b": [1, 2]}
    assert json.dumps(canonical(-0.0)) == "0"
    assert canonical(1e300) == 1e300  # beyond exact whole numbers a float stays a float
    assert list(canonical({"b": 1, "a": 1})) == ["a", "b"]


def test_an_added_field_is_left_out_at_its_default():
    @dataclass(frozen=True)
    class Grown(PlainSpec):
        old: int = 1
        new: tuple = dataclasses.field(default=(), metadata=ADDED)

    assert Grown().canonical() == {"old": 1} and Grown(new=(2,)).canonical() == {"old": 1, "new": [2]}


def test_an_added_field_with_a_factory_is_refused():
    """Its default could not be told from a value, and every identity would change."""

    @dataclass(frozen=True)
    class Grown(PlainSpec):
        new: dict = dataclasses.field(default_factory=dict, metadata=ADDED)

    with pytest.raises(TypeError, match=r"Grown\.new is marked ADDED"):
        canonical(Grown())


def test_canonical_spec_is_json_and_survives_it():
    one = spec(mixture={"en": 1, "fr": 2}, schedule=Schedule(max_lr=0.1 + 0.2))
    assert json.loads(json.dumps(one.canonical(), allow_nan=False)) == one.canonical()
    both = phased(Phase(8192, {"en": 1}), Phase(8192, {"en": 1, "fr": 1}))
    assert set(one.canonical()) == set(both.canonical()) == {f.name for f in dataclasses.fields(RunSpec)}
    assert json.loads(json.dumps(both.canonical(), allow_nan=False)) == both.canonical()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: model(family="mamba"), "mamba"),
        (lambda: model(layers=0), "model.layers"),
        (lambda: model(width=64.0), "model.width"),
        (lambda: model(heads=3), "model.heads"),
        (lambda: model(width=6), "odd"),
        (lambda: model(heads=4, kv_heads=3), "kv_heads"),
        (lambda: Schedule(kind="step"), "schedule.kind"),
        (lambda: Schedule(max_lr=0), "max_lr"),
        (lambda: Schedule(decay_fraction=2), "decay_fraction"),
        (lambda: Schedule(elapsed_tokens=-1), "schedule.elapsed_tokens"),
        (lambda: Schedule(elapsed_tokens=1e6), "schedule.elapsed_tokens"),
        (lambda: Optimiser(state="keep"), "optimiser.state"),
        (lambda: Upstream(), "either"),
        (lambda: Upstream(run=BASE, hub="a/b", revision="x"), "either"),
        (lambda: Upstream(hub="a/b", revision="1" * 40, step=5), "only runs have steps"),
        (lambda: Upstream(run=BASE, step=101), "1..100"),
        (lambda: spec(objective="masked"), "objective"),
        (lambda: spec(precision="int8"), "precision"),
        (lambda: spec(batch_tokens=100), "batch_tokens"),
        (lambda: spec(tokens=4095), "less than one batch"),
        (lambda: spec(mixture={"de": 1}), "de"),
        (lambda: spec(mixture={}), "mixture"),
        (lambda: spec(mixture={"en": 0}), "mixture"),
        (lambda: spec(mixture={"en": -1, "fr": 2}), "mixture"),
        (lambda: spec(model=model(vocab=1024)), "vocab"),
        (lambda: spec(model=model(family="hub")), "init"),
        (lambda: spec(optimiser=Optimiser(state="carry")), "carry"),
        (lambda: DataOrder(block_tokens=0), "data_order.block_tokens"),
        (lambda: DataOrder(unique_tokens=1e6), "data_order.unique_tokens"),
        (lambda: spec(data_order=DataOrder(block_tokens=192)), "data_order.block_tokens = 192 is not a multiple of the context, 128"),
        (lambda: spec(data_order=DataOrder(unique_tokens=127)), "data_order.unique_tokens = 127 is less than one block of 128"),
        (lambda: spec(data_order=DataOrder(read_on=True)), "data_order.read_on.*'init'"),
        (lambda: spec(model=model(family="hub"), data_order=DataOrder(read_on=True), upstreams={"init": HUB}), "read_on.*'init'"),
        (lambda: spec(**AFTER, data_order=DataOrder(256, True)), "read_on.*block_tokens = 128 and unique_tokens = None, this one has 256"),
        (lambda: spec(**AFTER, data_order=DataOrder(None, True, 4096)), "data_order.read_on.*this one has 128 and 4096"),
        (lambda: spec(mixture=None), "without phases"),
        (lambda: spec(tokens=None), "without phases"),
        (lambda: phased(Phase(8192, {"en": 1})), "one phase"),
        (lambda: phased(Phase(8192, {"en": 1}), Phase(4095, {"en": 1})), "phases.1..tokens = 4095 is less than one batch"),
        (lambda: phased(Phase(8192, {"en": 1}), Phase(8192, {"de": 1})), "de"),
        (lambda: phased(Phase(8192, {"en": 1}), Phase(8192, {"fr": 1}), tokens=8192), "tokens = 8192 .*give None for both"),
        (lambda: phased(Phase(8192, {"en": 1}), Phase(8192, {"fr": 1}), mixture={"en": 1}), "give None for both"),
        (lambda: Phase(0, {"en": 1}), "phase.tokens"),
        (lambda: Phase(8192, {"en": -1}), "mixture"),
        (lambda: spec(optimiser=Optimiser(state="continue")), "continue"),
    ],
)  # fmt: skip
def test_impossible_specs_are_refused_by_name(make, named):
    with pytest.raises(ConfigError, match=named):
        make()


def test_nan_in_a_spec_never_gets_an_identity():
    for changes in ({"seed": math.nan}, {"model": model(rope_theta=lambda: 1)}, {"trainable": (len,)}):
        with pytest.raises(ConfigError):
            _ = spec(**changes).id


def test_real_recipes_count_by_fingerprint():
    names = recipe_names()
    if not names:
        pytest.skip("no recipes yet")
    corpus = recipe(names[0])
    one = RunSpec(model=model(vocab=corpus.vocab), corpus=corpus, mixture={corpus.names[0]: 1}, tokens=409600)
    renamed = replace(one, corpus=replace(corpus, name="renamed"))
    split = replace(one, corpus=replace(corpus, validation=replace(corpus.validation, salt="another")))
    assert renamed.id == one.id
    assert split.id != one.id
    assert pickle.loads(pickle.dumps(one)).id == one.id
