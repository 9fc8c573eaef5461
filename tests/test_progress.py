"""What a sweep shows while it trains, when it fails, when it is interrupted, and at its end."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import tiny

from cptlab.errors import Interrupted
from cptlab.runs import notes
from cptlab.runs.lacking import lacking
from cptlab.runs.provenance import collect
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.sweep import progress
from cptlab.sweep.cost import Cost
from cptlab.sweep.grid import Grid
from cptlab.sweep.picture import Picture
from cptlab.sweep.progress import Sweep, failure_lines, progress_line, progress_text
from cptlab.sweep.scheduler import train


def until(holds, seconds=60):
    """Asked again and again: of a process that the pool's thread is just reaping, ``join`` returns at once and ``exitcode`` is None."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def diverging(recipe, steps=3):
    run = tiny.spec(recipe, steps)
    return replace(run, schedule=replace(run.schedule, max_lr=1e30))


# --- words -------------------------------------------------------------------------------------------------------------------


def test_the_line_says_what_each_run_is_doing(recipe, store):
    runs = [tiny.spec(recipe, 100, seed=seed) for seed in (0, 1, 2)]
    sweep = Sweep(store, {r.id: Request(r, {"arm": f"arm {i}"}) for i, r in enumerate(runs)}, workers=2, running={r.id for r in runs[:2]})
    store.write_progress(runs[1].id, {"step": 90, "steps": 100, "time": sweep.began - 5, "tokens_per_s": 9.0})  # of an earlier attempt
    assert progress_text(sweep, "; ") == "0 of 3 runs done, 2 running; arm 0: starting a worker; arm 1: starting a worker"
    notes.write(store, sweep.todo[runs[0].id], "building corpus tiny")
    notes.write(store, sweep.todo[runs[1].id], "evaluating", step=4, tokens_per_s=256.0)
    text = progress_text(sweep, "\n")
    assert text.splitlines()[1:] == ["arm 0: building corpus tiny", "arm 1: step 4 of 100, evaluating"] and "256 tokens/s" in text
    notes.write(store, sweep.todo[runs[1].id], "training", step=50, tokens_per_s=256.0)
    assert progress_text(sweep, "; ").endswith("arm 1: step 50 of 100")


def test_time_left(recipe, store):
    base, other = tiny.spec(recipe, 100), tiny.spec(recipe, 100, seed=1)
    arm = tiny.target(base, 100)
    todo = {r.id: Request(r) for r in (base, other, arm)}
    sweep = Sweep(store, todo, workers=2, running={base.id}, costs={run_id: Cost(100.0, 20.0) for run_id in todo})
    assert "4.0 min left" in progress_text(sweep, "; ")  # the chain of two, though 360 s over two workers are three minutes
    notes.write(store, todo[base.id], "training", step=50, tokens_per_s=2 * 256.0)  # twice as fast as estimated
    assert ", 1.5 min left" in progress_text(sweep, "; ")
    # Without an estimate by FLOPs at the measured rate: 150 steps of half a second each.
    sweep = Sweep(store, {r.id: Request(r) for r in (base, other)}, running={base.id}, began=sweep.began)
    assert ", 1.2 min left" in progress_text(sweep, "; ")


def test_a_line_of_another_process(recipe, store):
    run, other = tiny.spec(recipe, 100), tiny.spec(recipe, 100, seed=1)
    todo = {r.id: Request(r) for r in (run, other)}
    assert progress_line(store, todo) == "0 of 2 runs done, 0 running"
    identity = {"recipe_version": 2, "corpus_fingerprint": "", "upstreams": {}}
    error = {"type": "x", "message": "y", "step": None}
    record = {"labels": {}, "spec": {}, "identity": identity, "status": "failed", "error": error}
    store.write_record(other.id, record | {"summary": {}, "checkpoints": {}, "provenance": collect()})
    assert progress_line(store, [run.id, other.id]).startswith("0 of 2 runs done, 1 failed")
    assert progress_line(store, todo, since=time.time() + 1) == "0 of 2 runs done, 0 running"  # it failed in an earlier attempt
    with store.lock(run.id):
        notes.opening(store, todo[run.id])
        assert progress_line(store, [run.id]) == f"0 of 1 runs done, 1 running; {run.id}: " + store.progress(run.id)["phase"]


@pytest.mark.parametrize("audience", ["nobody", "terminal", "notebook"])
def test_a_failed_run_is_one_whole_line_at_once(recipe, store, torch_once, monkeypatch, capsys, audience):
    shown = []
    monkeypatch.setattr(progress, "audience", lambda: audience)
    monkeypatch.setattr(progress.Progress, "_say", lambda self, text: shown.append(text))
    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    bad, good = diverging(recipe), tiny.spec(recipe, 2)
    grid = Grid(store, tiny.EXECUTION)
    for run, arm in ((bad, "bad"), (tiny.target(bad, 2), "after"), (good, "good")):
        grid.add(run, arm=arm, seed=0)
    with ThreadPoolExecutor(1) as executor, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the line is enough
        grid.train(executor)
    error = store.record(bad.id)["error"]
    err = capsys.readouterr().err
    said = [line.split("\r")[-1] for line in err.split("\n") if "NonFiniteLoss" in line]
    assert said == [f"run bad, 0 ({bad.id}) failed at step {error['step']} of 3: NonFiniteLoss: {error['message']}"]
    end = {"nobody": err, "terminal": err.rstrip().split("\r")[-1], "notebook": shown[-1] if shown else ""}[audience]
    if audience != "nobody":
        assert end.startswith("1 of 3 runs done in ") and end.rstrip().endswith("; failed: bad, 0; skipped: after, 0")
        assert "0 of 3 runs done, 0 running" in (shown[0] if shown else err)  # before anything ran
    with ThreadPoolExecutor(1) as executor:
        grid.train(executor)  # what failed for good is served, and its arm skipped
    assert "NonFiniteLoss" not in capsys.readouterr().err


def test_a_failure_without_a_record_is_said_too(recipe, store):
    run = tiny.spec(recipe, 3)
    sweep = Sweep(store, {run.id: Request(run, {"arm": "x"})}, status={run.id: "failed"}, errors={run.id: "OSError: no\nspace"})
    told = set()
    assert failure_lines(sweep, told) == [f"run x ({run.id}) failed: OSError: no space"] and failure_lines(sweep, told) == []


def test_served_runs_show_nothing(recipe, store, torch_once, monkeypatch, capsys):
    monkeypatch.setattr(progress, "audience", lambda: "terminal")
    run = tiny.spec(recipe, 2)
    tiny.trained(store, run)
    capsys.readouterr()  # what the engine says when it is imported first
    grid = Grid(store, tiny.EXECUTION)
    grid.add(run, steps=(2,))
    grid.train()
    assert capsys.readouterr() == ("", "")


def test_phases_reach_the_store(recipe, store, torch_once, monkeypatch):
    seen, write = [], Store.write_progress
    monkeypatch.setattr(Store, "write_progress", lambda self, run_id, note: seen.append(note) or write(self, run_id, note))
    run = tiny.spec(recipe, 4)
    tiny.trained(store, run, sets=("one:4",), steps=(0, 4))
    phases = list(dict.fromkeys(note["phase"] for note in seen))
    opening = [phase for phase in phases[:2] if phase in ("building corpus tiny", "making the model")]
    assert phases == [*opening, "evaluating", "making the first step", "training"] and "making the model" in opening
    assert len(seen[-1]["measured"]) == 2 and store.progress(run.id) is None  # and the note goes when the run is done


# --- the picture -------------------------------------------------------------------------------------------------------------


def test_picture(recipe, store, torch_once):
    base = tiny.spec(recipe, 4)
    tiny.trained(store, base, sets=("one:4", "two:4"), steps=(0, 2, 4))
    arms = [tiny.target(base, 4, seed=seed) for seed in (0, 1)]
    grid = Grid(store, tiny.EXECUTION, sets=("one:4", "two:4"))
    grid.add(base, arm="base", steps=(0, 2, 4))
    for seed, run in enumerate(arms):
        grid.add(run, arm="continual", seed=seed)
    picture, sweep = Picture(grid), Sweep(store, {run.id: Request(run) for run in arms}, running={arms[0].id, arms[1].id})
    for run in arms:
        rows = [{"step": 0, "tokens": 0, "set": name, "loss_nats": 5.0, "accuracy": 0.1, "predicted_tokens": 9} for name in grid.sets]
        notes.write(store, Request(run), "evaluating", measured=rows)

    def draw():
        return picture.figure([(request, picture.rows(sweep, request)) for request in picture.requests])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture.png([(request, picture.rows(sweep, request)) for request in picture.requests])
        figure = draw()
    assert [ax.get_title() or ax.get_title("left") for ax in figure.axes] == ["one:4", "two:4"]  # where the style in force puts it
    colors = [[line.get_color() for line in ax.lines] for ax in figure.axes]
    assert colors[0] == colors[1] and len(colors[0]) == 3 and colors[0][1] == colors[0][2] != colors[0][0]  # the seeds of an arm share one
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [3, 1, 1]  # the base is finished: from its record
    before = figure.axes[0].get_ylim(), figure.axes[0].get_xlim()
    notes.write(store, Request(arms[0]), "training", measured=[])
    figure = draw()
    assert (figure.axes[0].get_ylim(), figure.axes[0].get_xlim()) == before
    notes.write(store, Request(arms[0]), "training", measured=[rows[0] | {"loss_nats": 50.0}])
    low, high = draw().axes[0].get_ylim()
    assert low == before[0][0] and high > 50


def test_nothing_is_drawn_before_there_is_something(recipe, store, monkeypatch):
    run = tiny.spec(recipe, 4)
    grid = Grid(store, tiny.EXECUTION, sets=("one:4",))
    grid.add(run, arm="x")
    picture = Picture(grid)
    monkeypatch.setattr(picture, "png", lambda curves: 1 / 0)
    picture.draw(Sweep(store, {run.id: Request(run)}, running={run.id}))
    assert picture.handle is None


# --- interrupts --------------------------------------------------------------------------------------------------------------


def test_an_interrupt_saves_the_run_and_says_where_it_goes_on(recipe, store, tmp_path):
    """A worker of the local pool, in the middle of a run whose state would not be saved for a long time."""
    how = tiny.execution(state_every=10**6, state_seconds=1e6)
    run, after = tiny.spec(recipe, 3000, precision="bf16"), tiny.spec(recipe, 5, seed=1)
    requests = [Request(run, {"arm": "base"}, steps=(3000,)), Request(after, {"arm": "last"})]

    def watch(sweep):
        note = sweep.note(run.id)
        if note and note["step"] >= 20:
            raise KeyboardInterrupt

    others = set(multiprocessing.active_children())  # of other tests
    with pytest.raises(Interrupted) as caught:
        train(requests, store, how, on_progress=watch)
    saved = notes.saved_step(store, run.id)
    assert saved >= 20 and store.status(run.id) == "partial" and not (store.path(run.id) / "lock").exists()
    assert str(caught.value).splitlines() == [
        "0 of 2 runs done. Run the cell again to go on",
        f"  base: stopped at step {saved} of 3000, saved there, goes on from there",
    ]
    until(lambda: set(multiprocessing.active_children()) <= others)
    # The same call goes on from there.
    steps = []

    def first(sweep):
        note = sweep.note(run.id)
        if note and note["step"]:
            steps.append(note["step"])
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(requests, store, how, on_progress=first)
    assert steps[0] >= saved


def test_what_an_interrupt_loses_is_said(recipe, store):
    runs = [tiny.spec(recipe, 100, seed=seed) for seed in range(4)]
    todo = {run.id: Request(run, {"arm": f"a{seed}"}) for seed, run in enumerate(runs)}
    sweep = Sweep(store, todo, running={run.id for run in runs[:3]}, status={runs[3].id: "done"})
    for run, step in ((runs[0], 57), (runs[1], 30)):
        notes.write(store, todo[run.id], "training", step=step)
    store.state_dir(runs[0].id).mkdir(parents=True)
    (store.state_dir(runs[0].id) / "resume.json").write_text(json.dumps({"step": 50}))
    assert progress.interrupted_text(sweep).splitlines()[1:] == [
        "  a0: stopped at step 57 of 100, goes on from step 50, the last one saved",
        "  a1: stopped at step 30 of 100, no state was saved yet: begins anew",
        "  a2: stopped before its first step",
    ]


def test_a_resumed_run_after_an_asked_stop_has_the_same_bits(recipe, store, in_process):
    request = Request(tiny.spec(recipe, 30, precision="bf16"), {}, ("one:4",))
    assert in_process(_stopped_at, request, store.root, 17) == 143
    assert notes.saved_step(store, request.id) == 18 and not store.held(request.id)
    tiny.trained(store, request.spec, sets=("one:4",), steps=request.steps)
    whole = Store(store.root.parent / "whole")
    tiny.trained(whole, request.spec, sets=("one:4",), steps=request.steps)
    assert tiny.results(store, request.spec)[:2] == tiny.results(whole, request.spec)[:2]
    assert not lacking(store, request)


def _stopped_at(request, root, step):
    import torch

    torch.set_num_threads(1)
    from cptlab.sweep.worker import work
    from cptlab.training import stopping, trainer

    stopping.listen()
    rate = trainer.learning_rate

    def signalled(run, at):
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(run, at)

    trainer.learning_rate = signalled
    work(request, Store(root), tiny.EXECUTION)


def test_a_worker_that_does_not_answer_is_killed(monkeypatch):
    from cptlab.sweep.pools import stop

    context = multiprocessing.get_context("spawn")
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_deaf)
    pool.submit(time.sleep, 60)
    while not pool._processes or threading.active_count() < 2:
        time.sleep(0.05)
    time.sleep(1.5)
    [process] = pool._processes.values()
    began = time.monotonic()
    stop(pool, 1.0)
    assert 0.9 < time.monotonic() - began < 30
    until(lambda: process.exitcode == -signal.SIGKILL)


def _deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def test_audience(monkeypatch):
    monkeypatch.delenv("CPTLAB_PROGRESS", raising=False)
    monkeypatch.delenv("VSCODE_PID", raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert progress.audience() == "nobody"
    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    assert progress.audience() == "notebook"
    monkeypatch.setenv("CPTLAB_PROGRESS", "0")
    assert progress.audience() == "nobody"
