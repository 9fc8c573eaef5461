"""Several ranks of one run, through DeepSpeed's launcher, as on a cluster but on this machine's CPU."""

import sys

import numpy as np
import psutil
import pytest
import tiny

from cptlab.errors import StoreError, TrainingError
from cptlab.runs.request import Prompt, Request
from cptlab.runs.store import Store
from cptlab.sweep import ranks
from cptlab.sweep.worker import work


@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_are_one_run(recipe, tmp_path, torch_once, stage):
    base = tiny.spec(recipe, 4)
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    for store in (one, two):
        tiny.trained(store, base, keep_state=(4,))
    run = tiny.target(base, 10, carry=True)
    asked = {"sets": ("one:5", "two:9", "two:9@one", "one:5~3"), "steps": (0, 6, 10), "keep": (6,), "prompts": (Prompt("abc", 4, 0.0),)}
    tiny.trained(one, run, tiny.execution(zero_stage=stage, micro_batch=2), **asked)
    how = tiny.execution(zero_stage=stage, micro_batch=2, ranks=2, state_every=4)
    assert work(Request(run, {}, **asked), two, how) == "done", two.record(run.id)["error"]

    execution = two.record(run.id)["provenance"]["execution"]
    assert (execution["ranks"], execution["zero_stage"], execution["micro_batch"]) == (2, stage, 2)
    assert tiny.losses(two, run) == pytest.approx(tiny.losses(one, run), abs=1e-5)
    assert np.allclose(two.curve(run.id)["grad_norm"], one.curve(run.id)["grad_norm"], rtol=1e-4)
    ours, theirs = two.measurements(run.id), one.measurements(run.id)
    assert ours[["step", "set", "predicted_tokens"]].equals(theirs[["step", "set", "predicted_tokens"]])
    assert np.abs(ours["loss_nats"] - theirs["loss_nats"]).max() < 1e-5
    assert two.checkpoint_steps(run.id) == [6, 10]
    assert two.samples(run.id)[0] == one.samples(run.id)[0]
    assert not (two.path(run.id) / "lock").exists() and not list((two.root / "launch").iterdir())


@pytest.fixture
def launcher(monkeypatch):
    """``launcher(code)``: python code in the place of DeepSpeed's launcher."""
    return lambda code: monkeypatch.setattr(ranks, "_launcher", lambda how: [sys.executable, "-c", code])


def test_ranks_that_fail_are_a_record(recipe, store, launcher):
    run, how = tiny.spec(recipe, 3), tiny.execution(ranks=2)
    launcher("import sys; print('x' * 9999); sys.exit('out of memory')")
    for _ in range(2):  # also where a failed record is there already
        assert work(Request(run), store, how) == "failed"
    error = store.record(run.id)["error"]
    assert error["type"] == "TrainingError" and "ended with code 1" in error["message"] and "out of memory" in error["message"]
    assert len(error["message"]) < 4000
    launcher("pass")  # ends well and leaves nothing
    assert work(Request(run), store, how) == "failed"
    assert "ended with code 0" in store.record(run.id)["error"]["message"]


def test_a_failed_measurement_leaves_the_record(recipe, store, torch_once, launcher):
    run = tiny.spec(recipe, 3)
    record = tiny.trained(store, run)
    launcher("raise SystemExit(3)")
    with pytest.raises(TrainingError, match="ended with code 3"):
        work(Request(run, {}, ("one:2",), (3,)), store, tiny.execution(ranks=2))
    assert store.record(run.id) == record


def test_the_lock_is_kept_alive_and_ranks_end_with_it(recipe, store, launcher, monkeypatch, tmp_path):
    run = tiny.spec(recipe, 3)
    monkeypatch.setattr(ranks, "CHECK_SECONDS", 0.1)
    note = tmp_path / "pid"
    lock = store.path(run.id) / "lock"
    launcher(f"""
import os, pathlib, time
first = os.stat({str(lock)!r}).st_mtime_ns
while os.stat({str(lock)!r}).st_mtime_ns == first:
    time.sleep(0.02)
pathlib.Path({str(note)!r}).write_text(str(os.getpid()))
pathlib.Path({str(lock)!r}).write_text("of another")
time.sleep(60)
""")
    with pytest.raises(StoreError, match="taken over"):
        work(Request(run), store, tiny.execution(ranks=2))
    assert not psutil.pid_exists(int(note.read_text()))
    assert not (store.path(run.id) / "run.json").exists()
