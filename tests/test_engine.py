"""The DeepSpeed engine: the same numbers whatever the ZeRO stage, and nothing but training changes the weights."""

import fnmatch
import pickle
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import tiny
from safetensors.torch import load_file

from cptlab.errors import ConfigError
from cptlab.runs.lacking import Lacking
from cptlab.runs.request import Prompt, Request
from cptlab.runs.spec import Optimiser, Schedule
from cptlab.runs.store import Store

pytestmark = pytest.mark.usefixtures("torch_once")

STAGES = (0, 1, 2, 3)


@pytest.fixture
def stores(tmp_path):
    """A store a name: the ZeRO stage is no part of a run's identity."""
    return lambda name: Store(tmp_path / f"store-{name}")


def start(request, store, how=tiny.EXECUTION):
    """The run as it is about to be trained."""
    from cptlab.training.trainer import Training

    return Training(request, store, how, Lacking(store.views(request.id)[0], record=True, train=True))


def state_of(run):
    from cptlab.training.optimiser_state import read_state

    state = read_state(run.engine.deepspeed)
    run.engine.close()
    return state


# --- the same numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [1.0, 0.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zero_stages_agree(recipe, stores, precision, clip):
    run = tiny.spec(recipe, 8, precision=precision, optimiser=Optimiser(clip_norm=clip))
    curves = []
    for stage in STAGES:
        record = tiny.trained(stores(stage), run, tiny.execution(zero_stage=stage, micro_batch=4))
        assert record["status"] == "done", (stage, record["error"])
        curves.append(stores(stage).curve(run.id))
    for curve in curves:
        apart = np.abs(curve["loss_nats"] - curves[1]["loss_nats"])
        # In half precision the stages round gradients and their norm at other places, and a weight that falls on the other side moves on.
        assert apart.max() < (1e-6 if precision == "fp32" else 2e-3)
        assert apart[:2].max() < 1e-6
        assert np.allclose(curve["grad_norm"], curves[1]["grad_norm"], rtol=1e-5 if precision == "fp32" else 1e-2)
    assert curves[0]["loss_nats"].iloc[-1] < curves[0]["loss_nats"].iloc[0] - 0.1


RATES = (("*.layers.0.*", 0.25), ("*layernorm*", 0.1), ("*.layers.*", 0.5), ("lm_head*", 3))


def factor_of(name: str, rates: tuple) -> float:
    return next((factor for pattern, factor in rates if fnmatch.fnmatch(name, pattern)), 1.0)


@pytest.mark.parametrize("rates", [(), RATES], ids=["one rate", "rates"])
@pytest.mark.parametrize("stage", STAGES)
def test_weights_are_those_that_torch_alone_gives(recipe, stores, torch_once, stage, rates):
    """Four steps of plain torch: AdamW with decay on matrices only, clipping, the schedule's rates and the parameters' factors on them."""
    from cptlab.corpora import open_corpus
    from cptlab.training.models import build_model
    from cptlab.training.sampler import Sampler
    from cptlab.training.schedules import learning_rate

    optimiser = Optimiser(clip_norm=0.5, weight_decay=0.3, lr_factors=rates)
    run = tiny.spec(recipe, 4, schedule=Schedule(max_lr=1e-2, warmup_tokens=tiny.BATCH * tiny.CONTEXT), optimiser=optimiser)
    tiny.trained(stores(stage), run, tiny.execution(zero_stage=stage))

    model = build_model(run, tiny.EXECUTION)
    sampler = Sampler({"one": open_corpus(recipe).tokens("one")}, {"one": 1.0}, tiny.CONTEXT, tiny.BATCH, run.seed)
    groups = [
        {"params": [p], "weight_decay": 0.3 if p.ndim >= 2 else 0.0, "factor": factor_of(name, rates)}
        for name, p in model.named_parameters()
    ]
    optimizer = torch_once.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(4):
        windows = torch_once.from_numpy(sampler.windows_of(step))
        logits = model(windows[:, :-1]).logits
        loss = torch_once.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        torch_once.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(run, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert tiny.losses(stores(stage), run) == pytest.approx(losses, abs=2e-6)
    saved = load_file(stores(stage).checkpoint(run.id, 4).path)
    for name, parameter in model.named_parameters():
        assert torch_once.allclose(saved[name], parameter, atol=2e-5), name


@pytest.mark.parametrize("stage", STAGES)
def test_gradient_accumulation_agrees(recipe, stores, stage):
    run = tiny.spec(recipe, 8)
    for micro in (8, 2):
        tiny.trained(stores(micro), run, tiny.execution(zero_stage=stage, micro_batch=micro))
    assert tiny.losses(stores(8), run) == pytest.approx(tiny.losses(stores(2), run), abs=1e-5)
    assert stores(2).record(run.id)["provenance"]["execution"]["micro_batch"] == 2


def test_micro_batch_is_a_divisor():
    from cptlab.training.engine import largest_divisor

    assert [largest_divisor(12, limit) for limit in (1, 5, 6, 11, 12, 99)] == [1, 4, 6, 6, 12, 12]
    assert largest_divisor(7, 4) == 1


def test_fp16_needs_a_device_that_has_it(recipe, store):
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().is_fp16_supported():
        pytest.skip("this device has fp16")
    with pytest.raises(ConfigError, match="fp16 is not supported on this device: use bf16 or fp32"):
        start(Request(tiny.spec(recipe, 2, precision="fp16")), store)
    record = tiny.trained(store, tiny.spec(recipe, 2, precision="fp16"))
    assert record["status"] == "failed" and record["error"]["type"] == "ConfigError"


# --- learning rates by parameter -----------------------------------------------------------------------------------------------


def test_rates_are_checked_and_in_the_identity(recipe):
    plain, run = tiny.spec(recipe), tiny.spec(recipe, optimiser=Optimiser(lr_factors=RATES))
    assert run.id != plain.id == tiny.spec(recipe, optimiser=Optimiser(lr_factors={})).id
    assert plain.canonical()["optimiser"]["lr_factors"] == []
    assert Optimiser(lr_factors=dict(RATES)) == Optimiser(lr_factors=[list(pair) for pair in RATES]) == run.optimiser
    assert tiny.spec(recipe, optimiser=Optimiser(lr_factors=RATES[::-1])).id != run.id  # the first match decides
    assert pickle.loads(pickle.dumps(run)).id == run.id == replace(run, optimiser=replace(run.optimiser)).id
    for wrong in (0.5, "*norm*", ("*norm*",), {"*norm*": 0}, {"*norm*": float("inf")}, {"*norm*": "2"}, [(1, 2.0)], [1, 2]):
        with pytest.raises(ConfigError, match=r"optimiser\.lr_factors is .*: give patterns with positive factors"):
            Optimiser(lr_factors=wrong)


@pytest.mark.parametrize(
    ("rates", "trainable", "unused"),
    [
        ({"*.layers.9.*": 0.5, "*norm*": 2}, ("*",), r"\['\*\.layers\.9\.\*'\]"),
        ({"*": 0.5, "*norm*": 2}, ("*",), r"\['\*norm\*'\]"),
        ({"*norm*": 2, "*embed*": 0.5}, ("*norm*",), r"\['\*embed\*'\]"),
    ],
    ids=["no such", "an earlier one", "frozen"],
)
def test_a_rate_that_nothing_has(recipe, store, rates, trainable, unused):
    run = tiny.spec(recipe, 2, optimiser=Optimiser(lr_factors=rates), trainable=trainable)
    with pytest.raises(ConfigError, match=f"{unused} match no trained parameter that no earlier pattern has"):
        start(Request(run), store)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_rates_are_resumed_and_carried(recipe, stores, interrupted, stage, precision):
    optimiser = {"optimiser": Optimiser(lr_factors=RATES, state="carry")}
    base = tiny.spec(recipe, 4, precision=precision, optimiser=Optimiser(lr_factors={"*norm*": 0.5}))
    run, how = tiny.target(base, 8, **optimiser), tiny.execution(zero_stage=stage, state_every=3)
    for name in ("whole", "broken"):
        tiny.trained(stores(name), base, how, keep_state=(4,))
    record = tiny.trained(stores("whole"), run, how)
    assert record["status"] == "done", record["error"]
    interrupted(5, tiny.trained, stores("broken"), run, how)
    tiny.trained(stores("broken"), run, how)
    assert tiny.results(stores("whole"), run) == tiny.results(stores("broken"), run)


# --- optimiser state ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_carry_over_of_the_optimiser(recipe, store, torch_once, stage, precision):
    how = tiny.execution(zero_stage=stage)
    base = tiny.spec(recipe, 5, precision=precision, schedule=Schedule("constant"))
    record = tiny.trained(store, base, how, keep_state=(5,))
    assert record["status"] == "done", record["error"]
    ended = load_file(store.optimiser_state(base.id, 5).path)
    weights = load_file(store.checkpoint(base.id, 5).path)
    for carry in (True, False):
        run = start(Request(tiny.target(base, 3, carry=carry, schedule=Schedule("constant"))), store, how)
        from cptlab.training.optimiser_state import optimizer_steps

        assert optimizer_steps(run.engine.deepspeed) == (5 if carry else 0)
        begun = state_of(run)
        assert begun.keys() == ended.keys()
        for key, value in begun.items():
            kind, _, name = key.partition("/")
            if kind == "master":
                assert torch_once.equal(value, weights[name].float()), key
            elif carry:
                assert torch_once.equal(value, ended[key]) and value.any(), key
            else:
                assert not value.any(), key


def test_the_first_step_uses_the_carried_moments(recipe, store):
    base = tiny.spec(recipe, 6)
    tiny.trained(store, base, keep_state=(6,))
    runs = {carry: tiny.target(base, 3, carry=carry) for carry in (True, False)}
    assert runs[True].id != runs[False].id
    weights = {}
    for carry, run in runs.items():
        assert tiny.trained(store, run)["status"] == "done"
        weights[carry] = load_file(store.checkpoint(run.id, 3).path)
    assert any(not bool((weights[True][name] == weights[False][name]).all()) for name in weights[True])


# --- sampling, and one process for many runs --------------------------------------------------------------------------------


def test_sampling_is_by_seed_and_temperature(recipe, store):
    run = tiny.spec(recipe, 2)
    prompts = tuple(Prompt("abc", 16, t, s) for t, s in ((0.8, 0), (0.8, 1), (0.0, 0), (0.0, 1)))
    tiny.trained(store, run, steps=(0,), prompts=prompts)
    text = {(s["temperature"], s["seed"]): s["text"] for s in store.samples(run.id)}
    assert text[0.8, 0] != text[0.8, 1] and text[0.0, 0] == text[0.0, 1]


def test_a_worker_serves_one_run_after_another(recipe, stores):
    """What a process trained before leaves no trace in a run."""
    run = tiny.spec(recipe, 5, precision="bf16")
    tiny.trained(stores("first"), run, sets=("one:3",))
    tiny.trained(stores("other"), tiny.spec(recipe, 3, model=tiny.model(layers=1, width=16, family="gpt-neox", kv_heads=2), seed=9))
    tiny.trained(stores("again"), run, sets=("one:3",))
    assert tiny.results(stores("first"), run) == tiny.results(stores("again"), run)


def work_in(folder, request, root) -> None:
    """Train in this process, whose temporary files go to ``folder``."""
    tempfile.tempdir = str(folder)
    tiny.work_until(request, root, tiny.EXECUTION)


def test_a_process_leaves_no_temporary_files(recipe, store, tmp_path, in_process):
    folder, run = tmp_path / "temporary", tiny.spec(recipe, 2)
    folder.mkdir()
    assert in_process(work_in, folder, Request(run), store.root) == 0
    assert store.record(run.id)["status"] == "done" and not list(folder.iterdir())


def test_a_batch_that_does_not_split(recipe, store, monkeypatch):
    from cptlab.training import engine

    monkeypatch.setattr(engine, "start_process_group", lambda: (0, 3))
    with pytest.raises(ConfigError, match="a batch of 8 sequences does not split over 3 ranks"):
        start(Request(tiny.spec(recipe, 2)), store)


def test_compilation_needs_a_compiler(recipe, store, monkeypatch):
    from cptlab.training import engine

    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    monkeypatch.setattr(engine.torch.cuda, "is_available", lambda: False)
    engine._can_compile.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no C\\+\\+ compiler was found"):
            run = start(Request(tiny.spec(recipe, 2)), store, replace(tiny.EXECUTION, compile=True))
        assert not run.engine.compiled
        run.engine.close()
    finally:
        engine._can_compile.cache_clear()
