"""What a run's matrices are multiplied in: chosen by measurement, noted, kept for the life of a run, and told where runs are compared."""

import json
import os
import platform
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from safetensors.torch import load_file

import cptlab
from cptlab import machine
from cptlab.errors import ConfigError, StoreError
from cptlab.runs.execution import Execution
from cptlab.runs.lacking import Lacking
from cptlab.runs.record import compute_of
from cptlab.runs.request import Prompt, Request
from cptlab.runs.store import Store
from cptlab.statistics import paired_difference
from cptlab.sweep.grid import Grid
from cptlab.sweep.worker import work

pytestmark = pytest.mark.usefixtures("torch_once")

BF16, FP32, AUTO = (tiny.execution(compute=compute) for compute in ("bf16", "fp32", "auto"))


@pytest.fixture
def stores(tmp_path):
    return lambda name: Store(tmp_path / f"store-{name}")


@pytest.fixture
def faster(monkeypatch):
    """``faster(True)``: from here on bf16 is measured to be the faster type."""
    from cptlab.training import engine

    return lambda bf16: monkeypatch.setattr(engine, "bf16_is_faster", lambda device: bf16)


def start(request, store, how):
    """The run as it is about to be trained."""
    from cptlab.training.trainer import Training

    return Training(request, store, how, Lacking(store.views(request.id)[0], record=True, train=True))


# --- the choice --------------------------------------------------------------------------------------------------------------


def test_the_setting(monkeypatch):
    with pytest.raises(ConfigError, match=r"execution\.compute is 'fp16': give one of auto, bf16, fp32"):
        Execution(compute="fp16")
    assert Execution().compute == "auto" and Execution.from_mapping({"compute": "bf16"}).compute == "bf16"
    monkeypatch.setenv("CPTLAB_COMPUTE", "fp32")
    assert Execution.from_mapping({"compute": "bf16"}).compute == "fp32"
    monkeypatch.setenv("CPTLAB_COMPUTE", "half")
    with pytest.raises(ConfigError, match=r"execution\.compute is 'half'"):
        Execution.from_mapping({})


def test_the_choice(faster):
    from cptlab.training.engine import compute_type

    for bf16, chosen in ((True, "bf16"), (False, "fp32")):
        faster(bf16)
        assert compute_type("bf16", AUTO) == chosen
        assert [compute_type("bf16", how) for how in (BF16, FP32)] == ["bf16", "fp32"]
        assert [compute_type("fp32", how) for how in (AUTO, BF16, FP32)] == ["fp32"] * 3  # only bf16 has a choice
        assert [compute_type("bf16", AUTO, began) for began in ("bf16", "fp32")] == ["bf16", "fp32"]
    with pytest.warns(UserWarning, match=r"begun in fp32 stays in it: execution\.compute = 'bf16' is for new runs"):
        assert compute_type("bf16", BF16, "fp32") == "fp32"


def test_measuring(monkeypatch, capfd, torch_once):
    machine.matmul_rate.cache_clear()
    state = torch_once.random.get_rng_state()
    rates = [machine.matmul_rate(kind, "cpu", 64) for kind in ("bf16", "fp32")]
    assert machine.bf16_is_faster() in (True, False) and all(rate > 1e6 for rate in rates)
    assert machine.matmul_rate("bf16", "cpu", 64) == rates[0]  # measured once
    assert torch_once.get_num_threads() == 1
    torch_once.set_num_threads(2)
    machine.bf16_is_faster()
    assert torch_once.get_num_threads() == 2
    assert torch_once.equal(state, torch_once.random.get_rng_state())
    assert tuple(capfd.readouterr()) == ("", "")
    for bf16, faster in ((2.0, True), (0.2, False)):
        monkeypatch.setattr(machine, "matmul_rate", lambda kind, device, size, bf16=bf16: bf16 if kind == "bf16" else 1.0)
        assert machine.bf16_is_faster("cpu") is faster
        assert machine.bf16_is_faster("cuda:0") is faster


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variable is for x86 processors")
def test_a_processor_without_bf16_instructions():
    code = "from cptlab.machine import bf16_is_faster\nprint(bf16_is_faster())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "PYTHONPATH": str(Path(cptlab.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_auto_follows_the_measurement(recipe, stores, faster):
    run = tiny.spec(recipe, 3, precision="bf16")
    for bf16, chosen in ((True, "bf16"), (False, "fp32")):
        faster(bf16)
        record = tiny.trained(stores(chosen), run, AUTO)
        assert record["provenance"]["execution"]["compute"] == chosen == compute_of(record)
        forced = tiny.trained(stores(f"forced-{chosen}"), run, tiny.execution(compute=chosen))
        assert forced["checkpoints"] == record["checkpoints"]


def test_ranks_agree(recipe, store):
    run = tiny.spec(recipe, 3, precision="bf16")
    assert work(Request(run), store, tiny.execution(ranks=2)) == "done", store.record(run.id)["error"]
    assert compute_of(store.record(run.id)) == ("bf16" if machine.bf16_is_faster() else "fp32")


# --- one kind of run, one kind of files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_both_types_give_the_same_kind_of_run(recipe, stores, torch_once, stage):
    run = tiny.spec(recipe, 8, precision="bf16")
    kept = {"keep_state": (0, 8), "sets": ("one:5",), "steps": (0, 8)}
    for kind in ("bf16", "fp32"):
        record = tiny.trained(stores(kind), run, tiny.execution(zero_stage=stage, micro_batch=4, compute=kind), **kept)
        assert record["status"] == "done", record["error"]
        assert record["id"] == run.id and compute_of(record) == kind
    one, other = stores("bf16"), stores("fp32")
    assert tiny.losses(one, run) == pytest.approx(tiny.losses(other, run), abs=2e-2)
    assert tiny.losses(one, run) != tiny.losses(other, run)
    for path in ("model.safetensors", "optimizer.safetensors"):
        starts = [(store.checkpoint_dir(run.id, 0) / path).read_bytes() for store in (one, other)]
        assert starts[0] == starts[1]
        kinds = [
            {name: (tensor.dtype, tensor.shape) for name, tensor in load_file(store.checkpoint_dir(run.id, 8) / path).items()}
            for store in (one, other)
        ]
        assert kinds[0] == kinds[1]
        assert {dtype for dtype, _ in kinds[0].values()} == {torch_once.bfloat16 if path.startswith("model") else torch_once.float32}
    configs = [(store.checkpoint_dir(run.id, 8) / "config.json").read_text() for store in (one, other)]
    assert configs[0] == configs[1] and json.loads(configs[0])["dtype"] == "bfloat16"
    state, weights = (load_file(other.checkpoint_dir(run.id, 8) / f"{name}.safetensors") for name in ("optimizer", "model"))
    assert all(torch_once.equal(state[f"master/{name}"].bfloat16(), tensor) for name, tensor in weights.items())
    assert any(not torch_once.equal(state[f"master/{name}"], tensor.float()) for name, tensor in weights.items())


# ZeRO stage 3 leaves small parameters whole: it takes 100,000 numbers for one to be partitioned.
@pytest.mark.parametrize(("stage", "shape"), [(0, {}), (1, {}), (3, {}), (3, {"layers": 1, "width": 400})])
def test_a_kept_checkpoint_measures_as_training_did(recipe, stores, stage, shape):
    run, how = tiny.spec(recipe, 6, precision="bf16", model=tiny.model(**shape)), tiny.execution(zero_stage=stage, compute="fp32")
    tiny.trained(stores("along"), run, how, sets=("one:5",), steps=(0, 3, 6), keep=(3,), prompts=(Prompt("abc", 6),))
    tiny.trained(stores("later"), run, how, keep=(3,))
    tiny.trained(stores("later"), run, tiny.execution(zero_stage=stage, compute="auto"), sets=("one:5",), steps=(3, 6))
    along, later = (stores(name).measurements(run.id).set_index("step") for name in ("along", "later"))
    assert later.equals(along.loc[[3, 6]])
    # Measuring and sampling round the weights for a moment: training goes on from the unrounded ones.
    assert stores("along").record(run.id)["checkpoints"] == stores("later").record(run.id)["checkpoints"]
    assert stores("along").curve(run.id).equals(stores("later").curve(run.id))


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize(("first", "second"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_an_arm_continues_from_the_other_type(recipe, store, torch_once, first, second, stage):
    from cptlab.training.optimiser_state import read_state

    how = {kind: tiny.execution(zero_stage=stage, compute=kind) for kind in ("bf16", "fp32")}
    base = tiny.spec(recipe, 5, precision="bf16")
    tiny.trained(store, base, how[first], keep_state=(5,))
    weights, ended = load_file(store.checkpoint(base.id, 5).path), load_file(store.optimiser_state(base.id, 5).path)
    arm = tiny.target(base, 4, carry=True)
    run = start(Request(arm), store, how[second])
    begun = read_state(run.engine.deepspeed)
    run.engine.close()
    for key, value in begun.items():
        kind, _, name = key.partition("/")
        assert torch_once.equal(value, weights[name].float() if kind == "master" else ended[key]), key
    record = tiny.trained(store, arm, how[second])
    assert record["status"] == "done" and (compute_of(store.record(base.id)), compute_of(record)) == (first, second)


# --- fixed for the life of a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_a_resumed_run_stays_in_its_type(recipe, stores, faster, interrupted, kind, stage):
    run = tiny.spec(recipe, 12, precision="bf16")
    wanted = {"sets": ("one:5",), "steps": (0, 5, 12)}
    how = {name: tiny.execution(zero_stage=stage, compute=name, state_every=4) for name in ("auto", "bf16", "fp32")}
    tiny.trained(stores("whole"), run, how[kind], **wanted)
    faster(kind == "bf16")
    interrupted(6, tiny.trained, stores("broken"), run, how["auto"])
    faster(kind != "bf16")  # as on a machine of another kind
    interrupted(10, lambda: tiny.trained(stores("broken"), run, how["auto"], steps=(12,)))
    assert json.loads((stores("broken").state_dir(run.id) / "resume.json").read_text())["step"] == 8
    with pytest.warns(UserWarning, match=f"begun in {kind} stays in it"):
        record = tiny.trained(stores("broken"), run, how["fp32" if kind == "bf16" else "bf16"], steps=(12,))
    assert compute_of(record) == kind
    assert record["checkpoints"] == stores("whole").record(run.id)["checkpoints"]
    assert stores("broken").curve(run.id).equals(stores("whole").curve(run.id))


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize(("first", "second"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_state_is_read_by_either_type(recipe, store, torch_once, interrupted, first, second, stage):
    """The state says nothing of the type that wrote it; the note beside it does."""
    from cptlab.training.optimiser_state import read_state

    run = tiny.spec(recipe, 8, precision="bf16")
    how = tiny.execution(zero_stage=stage, state_every=4, compute=first)
    interrupted(5, tiny.trained, store, run, how)
    note = store.state_dir(run.id) / "resume.json"
    content = json.loads(note.read_text())
    assert content.pop("compute") == first
    note.write_text(json.dumps(content | {"compute": second}))
    going_on = start(Request(run, steps=(8,)), store, tiny.execution(zero_stage=stage))
    assert going_on.step == 4 and going_on.engine.compute == second
    state, saved = read_state(going_on.engine.deepspeed), load_file(note.parent / content["file"])
    going_on.engine.close()
    assert state.keys() == saved.keys() and all(torch_once.equal(state[key], saved[key]) for key in saved)
    assert tiny.trained(store, run, tiny.execution(zero_stage=stage), steps=(8,))["status"] == "done"


def test_a_finished_run_is_trained_again_and_measured_in_its_type(recipe, store, faster):
    run = tiny.spec(recipe, 6, precision="bf16")
    first = tiny.trained(store, run, FP32)
    faster(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # other weights would be told
        record = tiny.trained(store, run, AUTO, keep=(3,))
    assert record == first and store.checkpoint_steps(run.id) == [3, 6]
    assert compute_of(record) == "fp32"
    with pytest.warns(UserWarning, match="begun in fp32 stays in it"):
        tiny.trained(store, run, BF16, sets=("one:3",))
    assert len(store.measurements(run.id)) == 1


# --- told --------------------------------------------------------------------------------------------------------------------


def test_the_summary_is_of_the_type_used(recipe, stores, monkeypatch):
    from cptlab.training import trainer

    monkeypatch.setattr(trainer, "matmul_rate", lambda kind, device: {"bf16": 1e9, "fp32": 1e8}[kind])
    run = tiny.spec(recipe, 5, precision="bf16")
    for kind, rate in (("bf16", 10**9), ("fp32", 10**8)):
        summary = tiny.trained(stores(kind), run, tiny.execution(compute=kind))["summary"]
        assert summary["matmul_flops_per_s"] == rate
        assert summary["utilisation"] == pytest.approx(summary["tokens_per_s"] * run.flops / run.tokens_trained / rate, rel=1e-2)


def test_tables_tell_the_type(recipe, store):
    base = tiny.spec(recipe, 4, precision="bf16")
    runs = {"bf16": (base, BF16), "fp32": (tiny.spec(recipe, 4, precision="bf16", seed=1), FP32)}
    grid = Grid(store, AUTO, sets=("one:3",))
    for arm, (run, how) in runs.items():
        tiny.trained(store, run, how, sets=("one:3",))
        grid.add(run, steps=(4,), arm=arm)
    with ThreadPoolExecutor(1) as executor:
        results = grid.train(executor)
    for table in (results.runs, results.measurements, results.curves):
        assert table.groupby("arm")["compute"].unique().map(list).to_dict() == {"bf16": ["bf16"], "fp32": ["fp32"]}
    with pytest.raises(ConfigError, match=r"\['compute'\] are names of result columns"):
        grid.add(base, compute="bf16")
    with pytest.warns(UserWarning, match="computed in different types"):
        paired_difference(results.measurements.assign(seed=0), "loss_nats", "arm", of="bf16", minus="fp32", pair_by="seed")
    record = store.record(base.id)
    del record["provenance"]["execution"]["compute"]
    with pytest.raises(StoreError, match=f"run {base.id}: its run.json lacks provenance.execution.compute: restore it"):
        compute_of(record)


def test_a_comparison_across_types_is_flagged():
    frame = pd.DataFrame(
        [(arm, seed, 3.0 + seed, kind) for arm in ("a", "b") for seed, kind in enumerate(("bf16", "fp32", "bf16"))],
        columns=["arm", "seed", "loss", "compute"],
    )
    plain = frame.drop(columns="compute")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alike = paired_difference(frame, "loss", "arm", of="a", minus="b", pair_by="seed")
        assert alike.equals(paired_difference(plain, "loss", "arm", of="a", minus="b", pair_by="seed"))
        paired_difference(frame, "loss", "arm", of="a", minus="b", pair_by=["seed", "compute"])
    frame.loc[3, "compute"] = "fp32"  # arm b, seed 0
    with pytest.warns(
        UserWarning, match=r"1 of 3 pairs of 'a' and 'b' were computed in different types \(bf16, fp32\).*execution\.compute"
    ):
        mixed = paired_difference(frame, "loss", "arm", of="a", minus="b", pair_by="seed")
    assert list(mixed.columns) == ["seed", "of", "minus", "difference", "compute"]
    assert mixed["compute"].tolist() == ["bf16, fp32", "fp32", "bf16"]
    assert np.allclose(mixed["difference"], 0)
    by_type = frame.assign(compute=np.repeat(["bf16", "fp32"], 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # compared on purpose
        assert "compute" not in paired_difference(by_type, "loss", "compute", of="bf16", minus="fp32", pair_by="seed")
