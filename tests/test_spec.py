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
from cptlab.identity import canonical
from cptlab.runs import spec as spec_module
from cptlab.runs.shapes import ModelSpec
from cptlab.runs.spec import Optimiser, RunSpec, Schedule, Upstream


@dataclass(frozen=True)
class StubCorpus:
    """What a spec reads of a recipe; keeps these identities apart from the corpora's own."""

    name: str = "stub"
    names: tuple = ("en", "fr", "zh")
    vocab: int = 512
    fingerprint: str = "ab" * 32


def model(**changes):
    return ModelSpec(**({"layers": 2, "width": 64, "heads": 2, "ffn": 160, "vocab": 512, "context": 128} | changes))


def spec(**changes):
    return RunSpec(**({"model": model(), "corpus": StubCorpus(), "mixture": {"en": 1}, "tokens": 409600} | changes))


BASE = spec()

# A valid change of every field. The test below fails when a field is added and not listed here.
RUN_CHANGES = {
    "model": model(layers=4, width=128),
    "corpus": StubCorpus(fingerprint="cd" * 32),
    "mixture": {"en": 3, "fr": 1},
    "tokens": 413696,
    "batch_tokens": 8192,
    "schedule": Schedule(kind="linear"),
    "optimiser": Optimiser(clip=0.5),
    "objective": None,  # one objective so far; others, and their options: test_objectives
    "trainable": ("*embed*",),
    "upstreams": {"init": Upstream(run=BASE)},
    "precision": "fp32",
    "seed": 1,
    "objective_options": None,
}
MODEL_CHANGES = {
    "layers": 3, "width": 128, "heads": 1, "ffn": 128, "vocab": None, "context": 256, "kv_heads": 2, "family": "gpt-neox", "tied": True,
    "rope_theta": 5e5, "init_std": 0.01,
}  # fmt: skip
SCHEDULE_CHANGES = {
    "kind": "wsd", "max_lr": 1e-3, "min_ratio": 0.0, "warmup": 0.01, "start_ratio": 0.5, "decay": 0.1, "horizon_tokens": 10**6,
}  # fmt: skip
OPTIMISER_CHANGES = {
    "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0, "clip": 0.0, "state": "carry", "rates": {"*norm*": 0.5},
}  # fmt: skip


def changed_specs():
    yield from ((name, spec(**{name: value})) for name, value in RUN_CHANGES.items() if value is not None)
    yield from ((f"model.{name}", spec(model=model(**{name: value}))) for name, value in MODEL_CHANGES.items() if value is not None)
    yield "model.vocab", spec(model=model(vocab=1024), corpus=StubCorpus(vocab=1024))
    yield from ((f"schedule.{name}", spec(schedule=Schedule(**{name: value}))) for name, value in SCHEDULE_CHANGES.items())
    for name, value in OPTIMISER_CHANGES.items():
        yield f"optimiser.{name}", spec(optimiser=Optimiser(**{name: value}), upstreams={"init": Upstream(run=BASE)})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(RunSpec, RUN_CHANGES), (ModelSpec, MODEL_CHANGES), (Schedule, SCHEDULE_CHANGES), (Optimiser, OPTIMISER_CHANGES)],
)
def test_every_field_is_tried(kind, changes):
    assert [f.name for f in dataclasses.fields(kind)] == list(changes)


def test_every_field_changes_the_identity():
    specs = dict(changed_specs())
    ids = {"base": BASE.id} | {name: one.id for name, one in specs.items()}
    assert len(set(ids.values())) == len(ids), ids
    assert all(one != BASE for one in specs.values())
    assert all(len(one.id) == 16 and set(one.id) <= set("0123456789abcdef") for one in specs.values())


def test_golden_identity():
    """A failure here means that every stored run would be orphaned. If that is meant, raise RECIPE_VERSION and write the new ids."""
    assert spec_module.RECIPE_VERSION == 1
    assert BASE.id == "259fffe093500ca0"
    full = spec(
        model=model(kv_heads=2, tied=True),
        mixture={"fr": 0.75, "en": 0.25},
        schedule=Schedule(kind="wsd", max_lr=1e-3, horizon_tokens=10**6),
        optimiser=Optimiser(state="carry"),
        trainable=("*embed*", "*norm*"),
        upstreams={"init": Upstream(run=BASE, step=50)},
        precision="fp32",
        seed=3,
    )
    assert full.id == "4e356cfb266c0a0a"


def test_a_new_recipe_version_is_another_identity(monkeypatch):
    monkeypatch.setattr(spec_module, "RECIPE_VERSION", 2)
    assert spec().id != BASE.id


def test_identity_is_the_same_in_another_process():
    code = (
        "from types import SimpleNamespace\nfrom cptlab.runs.spec import *\n"
        "corpus = SimpleNamespace(name='other', names=('zh', 'fr', 'en'), vocab=512, fingerprint='ab' * 32)\n"
        "m = ModelSpec(layers=2, width=64, heads=2, ffn=160, vocab=512, context=128)\n"
        "import sys\nprint(RunSpec(model=m, corpus=corpus, mixture={'en': 1}, tokens=409600).id, 'torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(Path(cptlab.__file__).parents[1]), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [BASE.id, "False"], done.stderr


def test_what_does_not_determine_the_weights_does_not_count():
    one = spec(mixture={"en": 1, "fr": 3}, schedule=Schedule(min_ratio=0, warmup=1), trainable=["*"])
    same = [
        spec(mixture={"fr": 3, "en": 1}, schedule=Schedule(min_ratio=0.0, warmup=1.0)),
        spec(mixture={"fr": 0.75, "en": 0.25}, schedule=Schedule(min_ratio=0, warmup=1)),
        spec(mixture={"fr": 6.0, "en": 2, "zh": 0}, schedule=Schedule(min_ratio=0, warmup=1), tokens=409600),
        spec(mixture={"en": 1, "fr": 3}, schedule=Schedule(min_ratio=0, warmup=1), corpus=StubCorpus(name="renamed")),
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

    assert (
        len(
            {hub("EleutherAI/pythia-70m", "step1000").id, hub("EleutherAI/pythia-70m", "main").id, hub("EleutherAI/pythia-160m", "main").id}
        )
        == 3
    )
    assert hub("a/b", "main").runs_upstream() == []


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


def test_canonical_spec_is_json_and_survives_it():
    one = spec(mixture={"en": 1, "fr": 2}, schedule=Schedule(max_lr=0.1 + 0.2))
    assert json.loads(json.dumps(one.canonical(), allow_nan=False)) == one.canonical()
    assert set(one.canonical()) == {f.name for f in dataclasses.fields(RunSpec) if not f.metadata}  # less what was added


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
        (lambda: Schedule(warmup=2), "warmup"),
        (lambda: Optimiser(state="keep"), "optimiser.state"),
        (lambda: Upstream(), "either"),
        (lambda: Upstream(run=BASE, hub="a/b", revision="x"), "either"),
        (lambda: Upstream(hub="a/b"), "revision"),
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
