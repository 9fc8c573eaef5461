"""A run that is killed, however often, ends in the same bits as one that never was."""

import json
import random
import shutil
import signal
import time

import pytest
import tiny

from cptlab.runs.request import Prompt, Request
from cptlab.runs.store import Store

STEPS = 40
ASKED = {"sets": ("one:8", "two:5"), "steps": (0, 3, 11, 24, STEPS), "keep": (10,), "keep_state": (20,), "prompts": (Prompt("abc", 6),)}


def saved_step(store: Store, run) -> int | None:
    note = store.state_dir(run.id) / "resume.json"
    return json.loads(note.read_text())["step"] if note.exists() else None


def base_store(recipe, folder, in_process, how):
    """A store with a base run and its optimiser state, for arms that carry it over."""
    base, store = tiny.spec(recipe, 6, precision="bf16"), Store(folder)
    assert in_process(tiny.work_until, Request(base, {}, (), (6,), (), (6,)), store.root, how) == 0
    return base, store


@pytest.mark.parametrize("stage", [1, 3])
def test_killed_at_random_steps(recipe, tmp_path, in_process, stage):
    how = tiny.execution(zero_stage=stage, state_every=4, micro_batch=4)
    base, whole = base_store(recipe, tmp_path / "whole", in_process, how)
    run = tiny.target(base, STEPS, carry=True)
    request = Request(run, {}, **ASKED)
    shutil.copytree(whole.root, tmp_path / "killed")
    killed = Store(tmp_path / "killed")
    assert in_process(tiny.work_until, request, whole.root, how) == 0

    generator = random.Random(stage)
    at = sorted(generator.sample(range(2, STEPS), 3 if stage == 1 else 2))
    for step in at:
        assert in_process(tiny.work_until, request, killed.root, how, step) == -signal.SIGKILL
        assert saved_step(killed, run) == (step // 4 * 4 or None)
        assert killed.status(run.id) in ("partial", "missing")
    torn = saved_step(killed, run) + 1
    if torn < STEPS - 4:  # and once with half of a state written
        assert in_process(tiny.work_until, request, killed.root, how, torn, True) == -signal.SIGKILL
        assert saved_step(killed, run) == torn - 1
    assert in_process(tiny.work_until, request, killed.root, how) == 0
    assert tiny.results(whole, run) == tiny.results(killed, run)
    assert set(killed.record(run.id)["checkpoints"]) == {"10", "20", str(STEPS)}
    assert not killed.state_dir(run.id).exists() and killed.progress(run.id) is None
    assert not list(killed.path(run.id).rglob("*.tmp"))
    for name in ("model", "optimizer"):
        path = f"{run.id}/checkpoints/step-00000020/{name}.safetensors"
        assert (whole.root / path).read_bytes() == (killed.root / path).read_bytes()


def test_killed_at_any_moment(recipe, tmp_path, processes):
    """Killed from outside, at whatever the run is doing just then."""
    how, run = tiny.execution(state_every=3), tiny.spec(recipe, 150, precision="bf16")
    request = Request(run, {}, ("one:8",))
    stores = {name: Store(tmp_path / name) for name in ("whole", "killed")}
    generator, kills = random.Random(7), 0
    for target in (*sorted(generator.sample(range(5, 110), 2)), None):
        process = processes.Process(target=tiny.work_until, args=(request, stores["killed"].root, how))
        process.start()
        while target is not None and process.is_alive():
            if (saved_step(stores["killed"], run) or 0) >= target:
                process.kill()
                kills += 1
                break
            time.sleep(generator.random() / 100)
        process.join(120)
        if target is None:
            assert process.exitcode == 0
    assert kills >= 1
    whole = processes.Process(target=tiny.work_until, args=(request, stores["whole"].root, how))
    whole.start()
    whole.join(120)
    assert tiny.results(stores["whole"], run) == tiny.results(stores["killed"], run)


def test_the_state_is_saved_by_the_clock_too_between_two_rows_of_the_curve(recipe, tmp_path, in_process):
    """A run of few, slow steps: rows of its curve are two steps apart, and it is killed after an odd one."""
    how, run = tiny.execution(state_every=10**6, state_seconds=0.0), tiny.spec(recipe, 220)
    whole, killed = Store(tmp_path / "whole"), Store(tmp_path / "killed")
    request = Request(run, {}, ("one:8",), (0, 9, 220))
    assert in_process(tiny.work_until, request, killed.root, how, 13) == -signal.SIGKILL
    assert saved_step(killed, run) == 13
    assert in_process(tiny.work_until, request, killed.root, tiny.execution(state_every=10**6)) == 0
    assert in_process(tiny.work_until, request, whole.root, tiny.execution(state_every=10**6)) == 0
    assert tiny.results(killed, run) == tiny.results(whole, run)


def test_a_torn_or_foreign_state_is_left_aside(recipe, tmp_path, in_process):
    how, run = tiny.execution(state_every=4), tiny.spec(recipe, 12)
    store = Store(tmp_path / "runs")
    request = Request(run, {}, ("one:8",), (0, 12))
    assert in_process(tiny.work_until, request, store.root, how, 9) == -signal.SIGKILL
    assert saved_step(store, run) == 8
    state = next(store.state_dir(run.id).glob("state-*.safetensors"))
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    # Killed at once: had it resumed from 8, it would save 8 no more.
    assert in_process(tiny.work_until, request, store.root, how, 5) == -signal.SIGKILL
    assert saved_step(store, run) == 4
    # Asked for a measurement before the saved step, it starts anew, too.
    more = Request(run, {}, ("one:8", "two:5"), (0, 2, 12))
    assert in_process(tiny.work_until, more, store.root, how) == 0
    table = store.measurements(run.id)
    assert set(zip(table["step"], table["set"], strict=True)) == {(s, n) for s in (0, 2, 12) for n in ("one:8", "two:5")}


# --- one worker, many runs ---------------------------------------------------------------------------------------------------


def work_all(requests, root, how, cache) -> None:
    import os

    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    for request in requests:
        tiny.work_until(request, root, how)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_compiled_runs_do_not_depend_on_what_the_worker_ran_before(recipe, tmp_path, in_process):
    how, small = tiny.execution(compile=True), {"layers": 1, "width": 16, "ffn_width": 32}
    run = tiny.spec(recipe, 4, model=tiny.model(**small), precision="bf16")
    other = tiny.spec(recipe, 3, model=tiny.model(**small | {"ffn_width": 48}), precision="bf16")
    alone, after = Store(tmp_path / "alone"), Store(tmp_path / "after")
    cache = tmp_path / "inductor"
    request = Request(run, {}, ("one:5",), (0, 4))
    assert in_process(work_all, [request], alone.root, how, cache) == 0
    assert in_process(work_all, [Request(other), request], after.root, how, cache) == 0
    assert tiny.results(alone, run) == tiny.results(after, run)
    assert alone.record(run.id)["provenance"]["execution"]["compile"] is True
