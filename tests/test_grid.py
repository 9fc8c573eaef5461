"""Grids: what they plan, what they serve from records, and what they add to runs that are there."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pytest
import tiny

from cptlab.errors import ConfigError, StoreError
from cptlab.runs.request import Prompt, Request
from cptlab.runs.shapes import parameter_counts
from cptlab.runs.store import Store
from cptlab.runs.view import base_name
from cptlab.sweep.grid import Grid


@pytest.fixture
def grid_of(store, torch_once):
    """``grid_of((spec, what is wanted and labels), ...)`` is a grid of these runs."""

    def make(*cells, how=tiny.EXECUTION, **options) -> Grid:
        grid = Grid(store, how, "test", **options)
        for run, wanted in cells:
            grid.add(run, **wanted)
        return grid

    return make


def train(grid: Grid):
    with ThreadPoolExecutor(1) as executor:
        return grid.train(executor)


def statuses(grid: Grid) -> dict[str, str]:
    return grid.plan().set_index("id")["status"].to_dict()


@pytest.fixture
def no_training(monkeypatch):
    """``no_training()``: from here on, training is an error."""
    from cptlab.training import trainer

    return lambda: monkeypatch.setattr(trainer.Training, "train", lambda _: 1 / 0)


# --- tables ------------------------------------------------------------------------------------------------------------------


def test_tables_of_a_trained_grid(recipe, grid_of):
    base = tiny.spec(recipe, 4, precision="bf16")
    arms = [tiny.target(base, 3, seed=seed) for seed in (0, 1)]
    cells = [(base, {"arm": "base", "seed": 0, "prompts": (Prompt("abc", 4),)})]
    cells += [(run, {"arm": "continual", "seed": seed}) for seed, run in enumerate(arms)]
    results = train(grid_of(*cells, sets=("one:4", "two:4")))
    assert results.ids == [base.id, *(arm.id for arm in arms)] and results.failures.empty
    runs = results.runs.set_index("id")
    assert runs.loc[base.id, "arm"] == "base" and runs["tokens"].tolist() == [4 * 256, 3 * 256, 3 * 256]
    assert runs["flops"].tolist() == [run.flops for run in (base, *arms)]
    assert (runs[["non_embedding", "total"]] == pd.Series(parameter_counts(base.model))).all().all()
    assert (runs["epochs"] > 0).all() and (runs["seconds"] > 0).all()
    assert results.curves.groupby("id")["step"].max().to_dict() == {base.id: 4, **{arm.id: 3 for arm in arms}}
    final = results.final("two:4")
    assert len(final) == 3 and set(final["arm"]) == {"base", "continual"} and (final["flops"] > 0).all()
    assert results.samples["step"].tolist() == [0, 1, 2, 3, 4] and set(results.samples["prompt"]) == {"abc"}


def test_failures_are_listed(recipe, grid_of):
    bad = tiny.spec(recipe, 3, schedule=replace(tiny.spec(recipe).schedule, max_lr=1e30))
    arm, good = tiny.target(bad, 2), tiny.spec(recipe, 2)
    grid = grid_of((arm, {"arm": "a"}), (bad, {"arm": "b"}), (good, {"arm": "c"}))
    for _ in range(2):  # and again when it is served from the store
        results = train(grid)
        failures = results.failures.set_index("id")
        assert failures["status"].to_dict() == {arm.id: "skipped", bad.id: "failed"}
        assert "gradient norm" in failures.loc[bad.id, "error"]
        assert results.ids == [good.id] and results.runs.set_index("id").loc[bad.id, "arm"] == "b"
    assert statuses(grid) == {arm.id: "missing", bad.id: "failed", good.id: "cached"}


def test_a_grid_where_everything_failed(recipe, grid_of):
    bad = tiny.spec(recipe, 3, schedule=replace(tiny.spec(recipe).schedule, max_lr=1e30))
    results = train(grid_of((bad, {})))
    assert results.ids == [] and len(results.failures) == 1 and results.curves.empty and results.final("one").empty
    good = train(grid_of((tiny.spec(recipe, 2), {})))
    assert set(results.runs) == set(good.runs)  # a cell that selects columns works on both


def test_a_base_is_measured_on_what_other_targets_will_ask(recipe, store, grid_of, no_training):
    base = tiny.spec(recipe, 4, precision="bf16")
    train(grid_of((base, {"arm": "base"}), (tiny.target(base, 3), {"arm": "x"}), sets=("two:8",)))
    assert set(store.measurements(base.id)["set"]) == {"one", "two:8"}  # and not "two", whose text is too short for 64 windows
    assert set(store.measurements(tiny.target(base, 3).id)["set"]) == {"two:8"}
    no_training()
    assert len(train(grid_of((base, {"arm": "base"}), sets=("one",))).measurements) == len(Request(base).measured_steps)


def test_default_steps_take_in_the_first_shock(recipe, grid_of):
    results = train(grid_of((tiny.spec(recipe, 8), {}), sets=("one",)))
    assert {0, 1, 2, 3, 8} <= set(results.measurements["step"])


def test_a_torn_record_leaves_no_old_rows_behind(recipe, store, grid_of):
    run = tiny.spec(recipe, 4)
    train(grid_of((run, {"steps": (2, 4), "keep": (2,), "prompts": (Prompt("abc", 3),)}), sets=("one", "two")))
    path = store.path(run.id) / "run.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(StoreError, match="delete its folder"):
        store.record(run.id)
    path.unlink()  # only the file, though
    train(grid_of((run, {"steps": (4,)}), sets=("one",)))
    assert store.measurements(run.id)[["step", "set"]].values.tolist() == [[4, "one"]] and store.samples(run.id) == []
    assert store.checkpoint_steps(run.id) == [4]


def test_labels_that_are_result_columns(recipe, grid_of):
    with pytest.raises(ConfigError, match=r"\['tokens'\] are names of result columns"):
        grid_of((tiny.spec(recipe), {"tokens": 3}))
    with pytest.raises(ConfigError, match=r"'three' is not valid.*one, two"):
        grid_of((tiny.spec(recipe), {"sets": ("three",)}))
    with pytest.raises(ConfigError, match=r"steps \[11\] are outside 0\.\.10"):
        grid_of((tiny.spec(recipe), {"keep": (11,)}))


# --- plan --------------------------------------------------------------------------------------------------------------------


def test_plan(recipe, store, grid_of):
    base = tiny.spec(recipe, 4)
    arm, other = tiny.target(base, 3), tiny.spec(recipe, 5, seed=3)
    grid = grid_of((arm, {"arm": "continual"}), (arm, {"arm": "again"}), (other, {"arm": "scratch"}), how=tiny.execution(workers=2))
    plan = grid.plan().set_index("id")
    assert plan.index.tolist() == [arm.id, other.id, base.id]  # each run once, its upstream too
    assert plan["status"].tolist() == ["missing"] * 3 and plan["tokens"].tolist() == [3 * 256, 5 * 256, 4 * 256]
    assert plan.loc[base.id, "role"] == "upstream" and plan.loc[arm.id, "arm"] == "continual"
    assert plan["flops"].tolist() == [run.flops for run in (arm, other, base)]
    assert not store.root.exists()  # a plan writes nothing


def test_plan_after_training(recipe, store, grid_of):
    base = tiny.spec(recipe, 4)
    arm, other = tiny.target(base, 3), tiny.spec(recipe, 5, seed=3)
    train(grid_of((arm, {}), sets=("one:4",)))
    grid = grid_of((arm, {}), (other, {}), sets=("one:4",))
    assert statuses(grid) == {arm.id: "cached", other.id: "missing"}  # the base is not needed any more
    store.state_dir(other.id).mkdir(parents=True)
    (store.state_dir(other.id) / "resume.json").write_text("{}")
    assert statuses(grid)[other.id] == "partial"
    with store.lock(other.id):
        assert statuses(grid)[other.id] == "running"
    assert statuses(grid_of((arm, {"steps": (3,), "sets": ("two:4",)}))) == {arm.id: "evaluate"}
    assert statuses(grid_of((arm, {"sets": ("two:4",)}))) == {arm.id: "missing"}  # step 0 has no checkpoint
    assert statuses(grid_of((arm, {"prompts": (Prompt("a"),)}))) == {arm.id: "missing"}
    assert statuses(grid_of((tiny.target(base, 3, carry=True), {})))[base.id] == "missing"  # for its optimiser state


# --- records -----------------------------------------------------------------------------------------------------------------

SERVE = """
import pickle, sys
from pathlib import Path
store, how, requests = pickle.loads(Path(sys.argv[1]).read_bytes())
from cptlab.sweep.grid import Grid
grid = Grid(store, how)
for request in requests:
    grid.add(request.spec, sets=request.sets, steps=request.steps, arm="x")
assert set(grid.plan()["status"]) == {"cached"}
results = grid.train()
print(len(results.ids), len(results.measurements))
heavy = {"torch", "deepspeed", "transformers", "datasets", "tokenizers"} & set(sys.modules)
assert not heavy, heavy
"""


def test_records_are_served_without_torch_and_without_the_corpus(recipe, store, grid_of, tmp_path):
    base = tiny.spec(recipe, 4)
    runs = [base, tiny.target(base, 3)]
    train(grid_of(*((run, {}) for run in runs), sets=("one:4",)))
    for run in runs:  # as in a fresh clone: records without checkpoints
        shutil.rmtree(store.path(run.id) / "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    task = tmp_path / "task"
    task.write_bytes(pickle.dumps((store, tiny.execution(workers=2), [Request(run, {}, ("one:4",)) for run in runs])))
    environment = os.environ | {"CPTLAB_CACHE": str(tmp_path / "no-cache")}
    done = subprocess.run([sys.executable, "-c", SERVE, str(task)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", str(sum(len(Request(run).steps) for run in runs))]
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before


# --- one thing more ----------------------------------------------------------------------------------------------------------


def test_another_evaluation_set_evaluates_the_kept_checkpoint(recipe, store, grid_of, no_training):
    base = tiny.spec(recipe, 4, precision="bf16")
    arm = tiny.target(base, 4)
    whole = Store(store.root.parent / "whole")
    for where, sets in ((store, ("one:4",)), (whole, ("one:4", "two:5"))):
        for run in (base, arm):
            assert tiny.trained(where, run, steps=(2, 4), keep=(2,), sets=sets)["status"] == "done"
    records = {run.id: (store.path(run.id) / "run.json").read_bytes() for run in (base, arm)}
    store.checkpoint(base.id, 4).path.unlink()  # the arm's own weights are enough
    no_training()
    grid = grid_of((arm, {"steps": (2, 4)}), sets=("one:4", "two:5"))
    assert statuses(grid) == {arm.id: "evaluate"}
    results = train(grid)
    assert results.failures.empty and len(results.measurements) == 4
    assert {run.id: (store.path(run.id) / "run.json").read_bytes() for run in (base, arm)} == records
    assert (store.path(arm.id) / "measurements.csv").read_text() == (whole.path(arm.id) / "measurements.csv").read_text()
    assert statuses(grid) == {arm.id: "cached"}


def test_without_a_checkpoint_the_run_is_trained_again_to_the_same_bits(recipe, store, grid_of):
    base = tiny.spec(recipe, 4, precision="bf16")
    arm = tiny.target(base, 6)
    whole = Store(store.root.parent / "whole")
    for run in (base, arm):
        tiny.trained(store, run, sets=("one:4",), steps=(0, 6) if run is arm else (4,))
    shutil.copytree(store.root, whole.root)
    before = {run.id: store.record(run.id) for run in (base, arm)}
    for run in (base, arm):
        shutil.rmtree(store.path(run.id) / "checkpoints")
    grid = grid_of((arm, {"steps": (0, 2, 6), "prompts": (Prompt("abc", 3),)}), sets=("one:4", "two:5"))
    assert statuses(grid) == {arm.id: "missing", base.id: "missing"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # neither weights nor measurements differ
        results = train(grid)
    assert results.failures.empty and len(results.measurements) == 6 and len(results.samples) == 3
    assert {run.id: store.record(run.id) for run in (base, arm)} == before
    assert store.checkpoint(arm.id, 6).path.read_bytes() == whole.checkpoint(arm.id, 6).path.read_bytes()
    assert tiny.results(store, arm)[1] == tiny.results(whole, arm)[1]  # the curve is as it was
    old, new = whole.measurements(arm.id), store.measurements(arm.id)
    assert len(old.merge(new)) == len(old) == 2


def commit_weights(store, run):
    """The weights of a local run's last step, as base-weights of the same layer."""
    found = store.checkpoint(run.id, run.steps)
    folder = store.root / "base-weights"
    folder.mkdir(exist_ok=True)
    name = base_name(run.id, run.steps)
    shutil.copyfile(found.path, folder / name)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": {name: {"sha256": found.sha256}}}))


def test_arms_start_from_committed_base_weights(recipe, store, grid_of):
    base = tiny.spec(recipe, 4, precision="bf16")
    tiny.trained(store, base, sets=("one:4",))
    whole = Store(store.root.parent / "whole")
    shutil.copytree(store.root, whole.root)
    commit_weights(store, base)
    record = (store.path(base.id) / "run.json").read_bytes()
    shutil.rmtree(store.path(base.id) / "checkpoints")
    arm = tiny.target(base, 3)
    grid = grid_of((base, {"sets": ("one:4",), "steps": (4,)}), (arm, {}))
    assert statuses(grid) == {base.id: "cached", arm.id: "missing"}
    assert train(grid).failures.empty
    assert not (store.path(base.id) / "checkpoints").exists() and (store.path(base.id) / "run.json").read_bytes() == record
    tiny.trained(whole, arm)
    assert store.record(arm.id)["checkpoints"] == whole.record(arm.id)["checkpoints"]
    # A committed checkpoint can be evaluated, too; a damaged one is an error and not other weights.
    assert train(grid_of((base, {"sets": ("two:4",), "steps": (4,)}))).failures.empty
    committed = store.checkpoint(base.id, 4).path
    committed.write_bytes(committed.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="sha256"):
        store.checkpoint(base.id, 4).verified()
    shutil.rmtree(store.path(arm.id))
    assert "sha256" in train(grid_of((arm, {}))).failures["error"].iloc[0]
