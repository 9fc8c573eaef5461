"""What a run takes over of the one that it starts from: masters, moments, Adam's step count."""

import shutil
import signal
from dataclasses import replace

import pytest
import tiny
from safetensors.torch import load_file, safe_open, save_file

from cptlab.errors import ConfigError, StoreError
from cptlab.runs.lacking import Lacking
from cptlab.runs.request import Request
from cptlab.runs.spec import DataOrder, Optimiser, Phase, Schedule, Upstream
from cptlab.runs.store import Store

pytestmark = pytest.mark.usefixtures("torch_once")

STAGES = (0, 1, 2, 3)
STEP = tiny.BATCH * tiny.CONTEXT


def begun(store, run, how=tiny.EXECUTION) -> tuple[dict, int]:
    """State and Adam's step count of a run that is about to make its first step."""
    from cptlab.training.optimiser_state import optimizer_steps, read_state
    from cptlab.training.trainer import Training

    training = Training(Request(run), store, how, Lacking(store.views(run.id)[0], record=True, train=True))
    found = read_state(training.engine.deepspeed), optimizer_steps(training.engine.deepspeed)
    training.engine.close()
    return found


def ended(store, run, how=tiny.EXECUTION) -> dict:
    """Train ``run``; the state it ends with."""
    record = tiny.trained(store, run, how, keep_state=(run.steps,))
    assert record["status"] == "done", record["error"]
    return load_file(store.optimiser_state(run.id, run.steps).path)


def after(base, steps=3, state="continue", **changes):
    return tiny.target(base, steps, optimiser=Optimiser(state=state), **changes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_continue_takes_masters_moments_and_step_count(recipe, store, torch_once, stage, precision):
    how = tiny.execution(zero_stage=stage)
    base = tiny.spec(recipe, 5, precision=precision)
    state = ended(store, base, how)
    found, steps = begun(store, after(base), how)
    assert steps == 5 and found.keys() == state.keys()
    assert all(torch_once.equal(found[key], state[key]) for key in state)
    weights = load_file(store.checkpoint(base.id, 5).path)
    rounded = any(not torch_once.equal(state[f"master/{name}"], value.float()) for name, value in weights.items())
    assert rounded == (precision == "bf16")  # or the masters would tell nothing that the weights do not


@pytest.mark.parametrize("state", ["carry", "continue"])
@pytest.mark.parametrize("stage", [1, 3])
def test_the_step_count_passes_along_a_chain(recipe, store, stage, state):
    how = tiny.execution(zero_stage=stage)
    base = tiny.spec(recipe, 6)
    middle = after(base, 2, state)
    last = after(middle, 3, state)
    ended(store, base, how)
    assert begun(store, middle, how)[1] == 6
    ended(store, middle, how)
    assert begun(store, last, how)[1] == 8
    with safe_open(store.optimiser_state(middle.id, 2).path, "pt") as file:
        assert file.metadata() == {"optimizer_steps": "8"}


def test_a_state_without_its_step_count_is_refused(recipe, store):
    base = tiny.spec(recipe, 6)
    state = ended(store, base)
    path = store.optimiser_state(base.id, 6).path
    save_file(state, path)
    store.note_checkpoint(base.id, 6)
    with pytest.raises(StoreError, match=f"{path.name} does not say Adam's step count: delete the folder"):
        begun(store, after(base))


@pytest.mark.parametrize("state", ["carry", "continue"])
@pytest.mark.parametrize("stage", STAGES)
def test_newly_trained_parameters_start_with_empty_moments(recipe, store, torch_once, stage, state):
    how = tiny.execution(zero_stage=stage)
    base = tiny.spec(recipe, 4, precision="bf16", trainable=("*layers.0*", "*norm*"))
    known = ended(store, base, how)
    weights = load_file(store.checkpoint(base.id, 4).path)
    run = after(base, 3, state)
    found, steps = begun(store, run, how)
    assert steps == 4 and {key for key in found if key.startswith("master/")} == {f"master/{name}" for name in weights}
    for key, value in found.items():
        kind, _, name = key.partition("/")
        if kind == "master":
            taken = known.get(key) if state == "continue" else None
            assert torch_once.equal(value, weights[name].float() if taken is None else taken), key
        else:
            assert torch_once.equal(value, known[key]) if key in known else not value.any(), key
    assert tiny.trained(store, run, how)["status"] == "done"


def test_frozen_parameters_have_their_checkpoints_weights(recipe, store, torch_once):
    """Also in fp32 after bf16, where the masters hold more: a state saved later lacks them, and a resumed run must find the same ones."""
    base = tiny.spec(recipe, 4, precision="bf16")
    ended(store, base)
    run = after(base, 2, precision="fp32", trainable=("*norm*",))
    assert tiny.trained(store, run)["status"] == "done"
    before, now = load_file(store.checkpoint(base.id, 4).path), load_file(store.checkpoint(run.id, 2).path)
    assert all(torch_once.equal(now[name], before[name].float()) == ("norm" not in name) for name in now)


@pytest.mark.parametrize("state", ["carry", "continue"])
def test_nothing_to_take_over(recipe, store, state):
    base = tiny.spec(recipe, 3, trainable=("*norm*",))
    ended(store, base)
    record = tiny.trained(store, after(base, 3, state, trainable=("*embed*",)))
    assert record["status"] == "failed" and "the upstream trained other parameters" in record["error"]["message"]


@pytest.mark.parametrize("state", ["carry", "continue"])
def test_the_state_is_not_here(recipe, store, state):
    base = tiny.spec(recipe, 3)
    tiny.trained(store, base)
    record = tiny.trained(store, after(base, 3, state))
    assert record["status"] == "failed" and record["error"]["type"] == "StoreError"
    assert f"train run {base.id} again with its optimiser state kept at step 3" in record["error"]["message"]


# --- a run in parts is the run ----------------------------------------------------------------------------------------------------


def going_on(base, steps, schedule, start=None, **changes):
    """A run that goes on from ``base`` (its step ``start``, or its last) as if there had been no stop."""
    start = start or base.steps
    elapsed = schedule.elapsed_tokens + start * STEP
    changes |= {"schedule": replace(schedule, elapsed_tokens=elapsed), "upstreams": {"init": Upstream(run=base, step=start)}}
    return after(base, steps, **{"mixture": base.mixture} | changes, data_order=DataOrder(read_on=True))


def rows(store, run) -> list:
    """The training curve, without the count of steps."""
    curve = store.curve(run.id)
    assert len(curve) == run.steps
    return curve[["lr", "loss_nats", "grad_norm"]].values.tolist()


def same_state(store, one, other) -> None:
    """Two runs ended with the same weights, masters and moments, to the bit."""
    states = [load_file(store.optimiser_state(run.id, run.steps).path) for run in (one, other)]
    assert states[0].keys() == states[1].keys() and all(bool((states[0][key] == states[1][key]).all()) for key in states[0])
    hashes = [store.record(run.id)["checkpoints"][str(run.steps)]["sha256"] for run in (one, other)]
    assert hashes[0] == hashes[1]


SCHEDULES = [
    Schedule("wsd", max_lr=3e-3, warmup_tokens=2 * STEP, decay_fraction=0.4, min_lr_ratio=0.0),
    Schedule("cosine", max_lr=3e-3, warmup_tokens=2 * STEP),
]
BY_KIND = {"argnames": "schedule", "argvalues": SCHEDULES, "ids": lambda schedule: schedule.kind}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(**BY_KIND)
def test_a_run_of_phases_is_the_chain_of_its_phases(recipe, store, schedule, precision):
    parts = [(7, {"one": 1}), (6, {"one": 1, "two": 3}), (3, {"two": 1})]
    whole = tiny.spec(
        recipe, mixture=None, tokens=None, phases=tuple(Phase(steps * STEP, mixture) for steps, mixture in parts),
        schedule=schedule, precision=precision,
    )  # fmt: skip
    ended(store, whole)
    placed = replace(schedule, elapsed_tokens=0, horizon_tokens=16 * STEP)
    chain = [tiny.spec(recipe, 7, schedule=placed, precision=precision)]
    for steps, mixture in parts[1:]:
        chain.append(going_on(chain[-1], steps, chain[-1].schedule, mixture=mixture))
    for run in chain:
        ended(store, run)
    assert rows(store, whole) == [row for run in chain for row in rows(store, run)]
    same_state(store, whole, chain[-1])
    summary = store.record(whole.id)["summary"]
    assert summary["shares"] == {"one": (56 + 12) / 128, "two": (36 + 24) / 128}
    assert summary["epochs"].keys() == {"one", "two"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(**BY_KIND)
def test_a_trunk_that_goes_on_is_the_uninterrupted_run(recipe, store, schedule, precision):
    """From one of its own early steps: the rest of the trunk. A branch with another decay leaves it there, and its trunk alone."""
    trunk = tiny.spec(recipe, 14, schedule=schedule, precision=precision)
    tiny.trained(store, trunk, keep_state=(9, 14))
    rest = going_on(trunk, 5, schedule, start=9)
    ended(store, rest)
    assert rows(store, rest) == rows(store, trunk)[9:]
    same_state(store, rest, trunk)
    branch = going_on(trunk, 2, replace(schedule, kind="linear"), start=9)
    ended(store, branch)
    assert rows(store, branch)[0][1] == rows(store, trunk)[9][1]  # the loss before its first update
    assert rows(store, branch)[-1] != rows(store, trunk)[10]


def test_a_killed_run_of_phases_ends_in_the_same_bits(recipe, tmp_path, in_process):
    """Killed in each phase, in a run that itself goes on from another."""
    how, whole, killed = tiny.execution(state_every=4, micro_batch=4), Store(tmp_path / "whole"), Store(tmp_path / "killed")
    base = tiny.spec(recipe, 5, precision="bf16")
    assert in_process(tiny.work_until, Request(base, {}, (), (5,), (), (5,)), whole.root, how) == 0
    shutil.copytree(whole.root, killed.root)
    phases = (Phase(9 * STEP, {"one": 1, "two": 1}), Phase(13 * STEP, {"one": 1}), Phase(8 * STEP, {"two": 9, "one": 1}))
    run = going_on(base, 1, base.schedule, mixture=None, tokens=None, phases=phases)
    request = Request(run, {}, ("two:4",), (0, 9, 12, 30), (9,))
    assert in_process(tiny.work_until, request, whole.root, how) == 0
    for step in (6, 11, 17, 26):
        assert in_process(tiny.work_until, request, killed.root, how, step) == -signal.SIGKILL
    assert in_process(tiny.work_until, request, killed.root, how) == 0
    assert tiny.results(whole, run) == tiny.results(killed, run)


def test_branches_of_a_study_are_the_uninterrupted_runs(recipe, store):
    from cptlab.study import open_study

    study = open_study("a_new_one", "smoke")
    shape = {"corpus": recipe, "model": tiny.model(), "batch_tokens": STEP, "precision": "bf16"}
    schedule = {"warmup_tokens": 2 * STEP, "min_lr_ratio": 0.0, "decay_fraction": 0.25}
    branches = study.branches(None, "one", [8 * STEP, 16 * STEP + 1], 3e-3, schedule=schedule, **shape)
    assert {run.upstreams["init"].run.id for run in branches.values()} == {branches[8 * STEP].upstreams["init"].run.id}  # one trunk
    for budget, branch in branches.items():
        whole = study.run(None, "one", budget, 3e-3, schedule={"kind": "wsd"} | schedule, **shape)
        trunk, steps = branch.upstreams["init"].run, branch.upstreams["init"].step
        tiny.trained(store, trunk, keep_state=tuple(run.upstreams["init"].step for run in branches.values()))
        for run in (branch, whole):
            ended(store, run)
        assert steps + branch.steps == whole.steps == budget // STEP
        assert rows(store, trunk)[:steps] + rows(store, branch) == rows(store, whole)
        same_state(store, branch, whole)
    for wrong, message in (({}, "within the warm-up of 4,096"), ({"warmup_tokens": 7 * STEP}, "within the warm-up")):
        with pytest.raises(ConfigError, match=message):
            study.branches(None, "one", [8 * STEP], 3e-3, schedule=wrong, **shape)
