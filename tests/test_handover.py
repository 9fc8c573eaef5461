"""What a run takes over of the one that it starts from: masters, moments, Adam's step count."""

import pytest
import tiny
from safetensors.torch import load_file, safe_open, save_file

from cptlab.runs.lacking import Lacking
from cptlab.runs.request import Request
from cptlab.runs.spec import Optimiser

pytestmark = pytest.mark.usefixtures("torch_once")

STAGES = (0, 1, 2, 3)


def begun(store, run, how=tiny.EXECUTION) -> tuple[dict, int]:
    """State and Adam's step count of a run that is about to make its first step."""
    from cptlab.training.optimiser_state import optimizer_steps, read_state
    from cptlab.training.trainer import Training

    training = Training(Request(run), store, how, Lacking((), False, (), (), True, True))
    found = read_state(training.engine.deepspeed), optimizer_steps(training.engine.deepspeed)
    training.engine.close()
    return found


def ended(store, run, how=tiny.EXECUTION) -> dict:
    """Train ``run``; the state it ends with."""
    record = tiny.trained(store, run, how, keep_state=(run.steps,))
    assert record["status"] == "done", record["error"]
    return load_file(store.optimiser_state(run.id, run.steps))


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
    weights = load_file(store.checkpoint(base.id, 5))
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
    with safe_open(store.optimiser_state(middle.id, 2), "pt") as file:
        assert file.metadata() == {"optimizer_steps": "8"}


def test_a_state_from_before_the_count_was_noted(recipe, store):
    base = tiny.spec(recipe, 6)
    state = ended(store, base)
    save_file(state, store.optimiser_state(base.id, 6))
    assert begun(store, after(base))[1] == 6


@pytest.mark.parametrize("state", ["carry", "continue"])
@pytest.mark.parametrize("stage", STAGES)
def test_newly_trained_parameters_start_with_empty_moments(recipe, store, torch_once, stage, state):
    how = tiny.execution(zero_stage=stage)
    base = tiny.spec(recipe, 4, precision="bf16", trainable=("*layers.0*", "*norm*"))
    known = ended(store, base, how)
    weights = load_file(store.checkpoint(base.id, 4))
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
    before, now = load_file(store.checkpoint(base.id, 4)), load_file(store.checkpoint(run.id, 2))
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
