"""What a plan announces: speeds from records, calibration, evaluation, start-up, and the bound of a sweep."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny

from cptlab.corpora import recipe as named
from cptlab.runs.provenance import here
from cptlab.runs.request import Prompt, Request
from cptlab.sweep import calibration as measuring
from cptlab.sweep import cost, speed
from cptlab.sweep.calibration import Calibration, calibration
from cptlab.sweep.cost import Cost, bound, costs, wall
from cptlab.sweep.grid import Grid


@pytest.fixture(autouse=True)
def calibrated(monkeypatch, tmp_path):
    """A machine of 1e11 FLOPs a second, in an empty repository: no record but the test's own."""
    monkeypatch.setenv("CPTLAB_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr(speed, "calibration", lambda threads, compute, measure: Calibration("fp32", 1e11, 0.0) if measure else None)


def record(store, run, tokens_per_s, layer=None, machine=None, matmul=1e11, **execution):
    """A record of ``run`` as far as speeds are read from it."""
    how = {"compile": False, "ranks": 1} | execution
    content = {
        "spec": run.canonical(), "summary": {"tokens_per_s": tokens_per_s, "matmul_flops_per_s": matmul},
        "provenance": {"machine": machine or here(), "execution": how},
    }  # fmt: skip
    folder = (layer or store.root) / run.id
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(content))


def one(store, run, how=tiny.EXECUTION, calibrate=True, **wanted) -> Cost:
    return costs(store, {run.id: Request(run, **({"steps": (run.steps,)} | wanted))}, how, calibrate=calibrate)[run.id]


def test_records_here_come_first_then_others_scaled_then_the_calibration(recipe, store, tmp_path):
    run = tiny.spec(recipe, 1000, seed=9)
    plain = one(store, run)
    assert plain.basis == "calibration" and plain.training > run.flops / 1e11
    committed = tmp_path / "root" / "runs"
    record(store, tiny.spec(recipe, 3), 8000.0, committed, machine={"cpu": "another"}, matmul=2e11)
    scaled = one(store, run)
    assert scaled.basis == "records elsewhere, scaled" and scaled.training == pytest.approx(256_000 / 4000)
    for seed, rate in enumerate((900.0, 1000.0, 9999.0)):
        record(store, tiny.spec(recipe, 3, seed=seed), rate)
    here_ones = one(store, run)
    assert here_ones.basis == "records here" and here_ones.training == pytest.approx(256.0)
    # Another way to run it, another shape: nothing is known of those.
    assert one(store, run, tiny.execution(compile=True)).basis == "calibration"
    assert one(store, tiny.spec(recipe, 5, model=tiny.model(width=64, ffn_width=128))).basis == "calibration"


def test_a_local_record_of_another_machine_is_scaled(recipe, store):
    record(store, tiny.spec(recipe, 3), 8000.0, machine={"cpu": "another"}, matmul=4e11)
    assert one(store, tiny.spec(recipe, 1000)).training == pytest.approx(256_000 / 2000)


def test_profiles_of_accelerators_are_planned_from_their_own_number(recipe, store):
    run = tiny.spec(recipe, 1000)
    for how in (tiny.execution(flops_per_second=1e15), tiny.execution()):
        found = one(store, run, how, calibrate=how.flops_per_second > 1e12)
        assert found.basis == "profile" and found.training == pytest.approx(run.flops / how.flops_per_second)


def test_evaluation_samples_and_compilation_cost(recipe, store):
    run = tiny.spec(recipe, 1000)
    record(store, tiny.spec(recipe, 3), 1000.0)
    least = one(store, run).rest
    measured = one(store, run, sets=("one:100", "two:50~4"), steps=(0, 500, 1000)).rest - least
    assert measured == pytest.approx(3 * (100 + 50 * 4) * 32 * 0.4 / 1000)  # at 0.4 of the cost of a token that is trained on
    assert one(store, run, prompts=(Prompt("a", 40),), steps=(0, 1000)).rest - least == pytest.approx(80 * 2 * cost.SAMPLE_LAYER)
    compiled = tiny.execution(compile=True)
    assert one(store, run, compiled).rest - least > cost.COLD
    record(store, tiny.spec(recipe, 3, seed=1), 1000.0, compile=True)
    assert one(store, run, compiled).rest - least == pytest.approx(cost.WARM)


def test_a_shape_is_compiled_once_a_worker(recipe, store):
    base = tiny.spec(recipe, 4)
    todo = {r.id: Request(r) for r in (*(tiny.target(base, 4, seed=s) for s in range(3)), base)}
    rest = [found.rest for found in costs(store, todo, tiny.execution(compile=True, workers=2), calibrate=True).values()]
    assert [round(value - min(rest)) for value in rest] == [3, 3, 0, 40]  # the arms' workers find the base's kernels


def test_bound(recipe):
    base, alone = tiny.spec(recipe, 4), tiny.spec(recipe, 4, seed=5)
    arm = tiny.target(base, 4)
    todo = {r.id: Request(r) for r in (arm, alone, base)}
    assert bound(todo, {base.id: 10.0, arm.id: 20.0, alone.id: 5.0}, 2) == 30.0  # the chain, though 35 / 2 are less
    assert bound(todo, {base.id: 10.0, arm.id: 20.0, alone.id: 35.0}, 2) == 35.0
    assert bound(todo, {base.id: 10.0, arm.id: 20.0, alone.id: 35.0}, 1) == 65.0
    assert bound(todo, {arm.id: 20.0}, 2) == 20.0 and bound({}, {}, 2) == 0.0


def test_start_up_and_each_corpus_count_once(recipe, store, monkeypatch):
    monkeypatch.setattr("cptlab.corpora.is_built", lambda wanted: False)
    todo = {run.id: Request(run) for run in (tiny.spec(recipe, 4, seed=seed) for seed in range(4))}
    found = dict.fromkeys(todo, Cost(10.0, 2.0))
    once = cost.START + cost.corpus_seconds(recipe)
    assert once > cost.START + 1 and wall(todo, found, tiny.execution(workers=2)) == (once + 24.0, once + 12.0)
    monkeypatch.setattr("cptlab.corpora.is_built", lambda wanted: True)
    assert wall(todo, found, tiny.execution(workers=4)) == (cost.START + 12.0, cost.START + 12.0)
    assert wall({}, {}, tiny.EXECUTION) == (0.0, 0.0)


def test_seconds_of_a_corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path))
    smoke, laptop, cleaned = map(cost.corpus_seconds, map(named, ("verses-en-fr-zh-smoke", "verses-en-fr-zh", "spoilt-fr-clean")))
    assert 3 < smoke < 6 and 10 < laptop < 16 and cleaned > 2 * laptop  # 4.2 and 12.2 s were measured


def test_plan_tells_the_minutes_of_the_whole(recipe, store, capsys):
    grid = Grid(store, tiny.execution(workers=2))
    for seed in range(3):
        grid.add(tiny.spec(recipe, 1000, seed=seed), arm=str(seed))
    record(store, tiny.spec(recipe, 3), 1000.0)
    plan = grid.plan()
    once = plan.attrs["minutes"] - plan["minutes"].sum() / 2
    assert once * 60 == pytest.approx(cost.START + cost.corpus_seconds(recipe), abs=1.5)
    assert plan.attrs["chain"] < plan.attrs["minutes"] and plan.attrs["workers"] == 2 and plan.attrs["basis"] == ["records here"]
    said = capsys.readouterr().out
    assert (
        said
        == f"3 runs to do: about {plan.attrs['minutes']:.1f} min here with 2 workers, {plan.attrs['chain']:.1f} min for the longest chain\n"
    )
    assert Grid(store, tiny.EXECUTION).plan().attrs["minutes"] == 0.0 and capsys.readouterr().out == ""


def test_unknown_flops_give_unknown_minutes(recipe, store):
    run = tiny.spec(recipe, 4)
    found = costs(store, {run.id: Request(run)}, replace(tiny.EXECUTION, flops_per_second=1e15), {run.id: math.nan})
    assert math.isnan(found[run.id].seconds) and math.isnan(cost.minutes(found[run.id].seconds))


def test_calibration_is_kept_and_leaves_this_process_without_torch(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path))
    assert calibration(1, "fp32", measure=False) is None
    first = calibration(1, "fp32")
    assert first.compute == "fp32" and first.rate > 1e8
    monkeypatch.setattr(measuring.subprocess, "run", lambda *_, **__: 1 / 0)
    assert calibration(1, "fp32") == calibration(1, "fp32", measure=False) == first
    with pytest.raises(ZeroDivisionError):
        calibration(2, "fp32")  # another number of threads is measured for itself
    monkeypatch.setattr(measuring, "DAY", 0.0)
    assert calibration(1, "fp32", measure=False) is None


def test_a_calibration_that_fails_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path))
    (tmp_path / "calibration.json").write_text("[]")
    monkeypatch.setattr(measuring, "CODE", "raise SystemExit(3)")
    assert calibration(1, "fp32") is None


def test_planning_imports_no_torch():
    code = "import sys, cptlab.sweep.grid, cptlab.sweep.picture, cptlab.sweep.cost; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
