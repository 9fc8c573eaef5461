"""Sweeps: order, failures, dead workers, two sweeps at once."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny

import cptlab
from cptlab.runs.lacking import lacking
from cptlab.runs.request import Request, log_steps
from cptlab.runs.spec import RECIPE_VERSION, Optimiser, Schedule, Upstream
from cptlab.runs.store import Store
from cptlab.sweep.scheduler import chain_flops, needed, train

DIVERGING = Schedule("constant", max_lr=1e30)


class Recorder(ThreadPoolExecutor):
    """Runs in this process, one at a time, and remembers what was submitted and what was done by then."""

    def __init__(self):
        super().__init__(1)
        self.submitted, self.done_before = [], {}

    def submit(self, function, request, store, how):
        self.submitted.append(request.id)
        self.done_before[request.id] = {run_id for run_id in store.ids() if store.record(run_id)["status"] == "done"}
        return super().submit(function, request, store, how)


@pytest.fixture
def sweep(store, torch_once):
    """``sweep(requests)`` trains them in this process; returns their status and the executor."""

    def run(requests, how=tiny.EXECUTION, **options):
        with Recorder() as executor:
            return train(requests, store, how, executor, **options), executor

    return run


# --- order -------------------------------------------------------------------------------------------------------------------


def test_upstreams_come_first_and_only_once(recipe, store, sweep):
    base = tiny.spec(recipe, 4)
    arms = [tiny.target(base, 3), tiny.target(base, 3, carry=True)]
    last = tiny.target(arms[0], 2)
    status, executor = sweep([Request(last), *map(Request, arms)], tiny.execution(workers=3))
    assert status == dict.fromkeys((base.id, arms[0].id, arms[1].id, last.id), "done")
    assert sorted(executor.submitted) == sorted(status)
    assert executor.submitted[0] == base.id
    assert all(base.id in executor.done_before[arm.id] for arm in arms) and arms[0].id in executor.done_before[last.id]
    assert lacking(store, Request(base, keep_state=(4,))).states == ()  # the arm that carries the optimiser over made it keep its state
    assert store.record(base.id)["labels"] == {"role": "upstream"}
    upstream = store.record(arms[0].id)["provenance"]["upstream_weights"]["init"]
    assert upstream == {"run": base.id, "step": 4, "sha256": store.record(base.id)["checkpoints"]["4"]["sha256"]}
    again, executor = sweep([Request(last), *map(Request, arms)])
    assert again == {} and executor.submitted == []


def test_needed_stops_at_what_is_there(recipe, store, torch_once):
    base = tiny.spec(recipe, 4)
    arm = tiny.target(base, 3)
    last = tiny.target(arm, 2)
    assert set(needed(store, [Request(last)])) == {base.id, arm.id, last.id}
    tiny.trained(store, base)
    assert set(needed(store, [Request(last)])) == {arm.id, last.id}
    tiny.trained(store, arm)
    store.checkpoint(base.id, 4).path.unlink()
    assert set(needed(store, [Request(last)])) == {last.id}
    store.checkpoint(arm.id, 3).path.unlink()
    assert set(needed(store, [Request(last)])) == {base.id, arm.id, last.id}


def test_only_the_init_upstream_keeps_its_optimiser_state(recipe, store):
    """A teacher that is another step of the same run needs none."""
    base = tiny.spec(recipe, 6)
    upstreams = {"init": Upstream(run=base), "teacher": Upstream(run=base, step=4)}
    for state, kept in (("reset", ()), ("carry", (6,)), ("continue", (6,))):
        asked = needed(store, [Request(tiny.target(base, 3, upstreams=upstreams, optimiser=Optimiser(state=state)))])
        assert asked[base.id].keep_state == kept and sorted(asked[base.id].keep) == [4, 6], state


def test_requests_for_one_run_are_merged(recipe, store, sweep):
    run = tiny.spec(recipe, 6)
    one, other = Request(run, {"a": 1}, ("one:4",), (6,), (2,)), Request(run, {"b": 2}, ("two:4",), (3,), (5,))
    _, executor = sweep([one, other])
    assert executor.submitted == [run.id]
    assert store.checkpoint_steps(run.id) == [2, 5, 6] and store.record(run.id)["labels"] == {"a": 1, "b": 2}
    table = store.measurements(run.id)
    assert set(zip(table["step"], table["set"], strict=True)) == {(s, n) for s in (3, 6) for n in ("one:4", "two:4")}


def test_longest_chain_starts_first(recipe, store, sweep):
    base = tiny.spec(recipe, 3)
    arm, alone = tiny.target(base, 5), tiny.spec(recipe, 4, seed=1)
    weights = chain_flops({r.id: Request(r) for r in (base, arm, alone)})
    assert weights[base.id] == pytest.approx(2 * weights[alone.id]) and weights[arm.id] > weights[alone.id]
    _, executor = sweep([Request(alone), Request(arm)])
    assert executor.submitted == [base.id, arm.id, alone.id]


def test_log_steps():
    assert log_steps(3) == (0, 1, 2, 3) and log_steps(4) == (0, 1, 2, 3, 4)
    steps = log_steps(1000)
    assert steps[:6] == (0, 1, 2, 3, 4, 5) and steps[-1] == 1000 and len(set(steps)) == len(steps)
    assert set(log_steps(500)) - {500} <= set(steps)  # two lengths share their steps


# --- failures ----------------------------------------------------------------------------------------------------------------


def test_a_diverging_run_is_a_record_and_the_others_go_on(recipe, store, sweep):
    bad = tiny.spec(recipe, 6, schedule=DIVERGING)
    after = tiny.target(bad, 2)
    later = tiny.target(after, 2)
    good = tiny.spec(recipe, 3, seed=2)
    requests = [Request(run) for run in (later, after, bad, good)]
    expected = {bad.id: "failed", after.id: "skipped", later.id: "skipped", good.id: "done"}
    status, executor = sweep(requests)
    assert status == expected and set(executor.submitted) == {bad.id, good.id}
    record = store.record(bad.id)
    assert record["error"]["type"] == "NonFiniteLoss" and "lower schedule.max_lr" in record["error"]["message"]
    assert 1 <= record["error"]["step"] <= 6 and record["spec"] == bad.canonical()
    assert store.status(after.id) == "missing"

    # It would end the same way: neither it nor what needs it is tried again.
    status, executor = sweep(requests)
    assert executor.submitted == [] and status == {after.id: "skipped", later.id: "skipped"}
    assert store.record(bad.id) == record


def test_any_other_error_is_tried_again(recipe, store, sweep, monkeypatch):
    from cptlab.training import trainer

    run, rate = tiny.spec(recipe, 4), trainer.learning_rate

    def broken(spec, step):
        if step == 2:
            raise MemoryError("no more")
        return rate(spec, step)

    monkeypatch.setattr(trainer, "learning_rate", broken)
    assert sweep([Request(run)])[0] == {run.id: "failed"}
    assert store.record(run.id)["error"] == {"type": "MemoryError", "message": "no more", "step": 2}
    monkeypatch.undo()
    assert sweep([Request(run)])[0] == {run.id: "done"}
    assert store.record(run.id)["error"] is None


def test_a_measurement_that_fails_does_not_end_the_sweep(recipe, store, sweep, monkeypatch):
    from cptlab.training import perform

    runs = [tiny.spec(recipe, 3, seed=seed) for seed in (0, 1)]
    tiny.trained(store, runs[0])
    record = store.record(runs[0].id)
    monkeypatch.setattr(perform, "measure_checkpoints", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match=f"{runs[0].id}.*ZeroDivisionError"):
        status, _ = sweep([Request(runs[0], {}, ("two:4",), (3,)), Request(runs[1])])
    assert status == {runs[0].id: "failed", runs[1].id: "done"}
    assert store.record(runs[0].id) == record


def test_an_interrupt_passes(recipe, store, sweep, monkeypatch):
    from cptlab.training import trainer

    def interrupted(spec, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "learning_rate", interrupted)
    run = tiny.spec(recipe, 4)
    with pytest.raises(KeyboardInterrupt):
        sweep([Request(run)])
    assert store.status(run.id) == "missing" and store.ids() == []


def test_a_run_taken_over_leaves_the_record_to_its_new_owner(recipe, store, torch_once, monkeypatch):
    from cptlab.errors import StoreError
    from cptlab.training import trainer

    run, rate = tiny.spec(recipe, 4), trainer.learning_rate
    monkeypatch.setattr(trainer, "PROGRESS_SECONDS", 0.0)

    def taken(spec, step):
        if step == 2:
            (store.path(run.id) / "lock").write_text("{}")
        return rate(spec, step)

    monkeypatch.setattr(trainer, "learning_rate", taken)
    with pytest.raises(StoreError, match="taken over"):
        tiny.trained(store, run)
    assert not (store.path(run.id) / "run.json").exists()


# --- processes ---------------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_its_run_resumed(recipe, store):
    """The local pool of two: one worker is killed in the middle of a run."""
    import json

    how = tiny.execution(workers=2, state_every=20)
    runs = [tiny.spec(recipe, 300, seed=seed, precision="bf16") for seed in (0, 1)]
    victim, killed, steps = runs[0], [], []

    def watch(sweep):
        note = store.state_dir(victim.id) / "resume.json"
        if not killed and note.exists() and (found := json.loads(note.read_text())["step"]) >= 100:
            owner = json.loads((store.path(victim.id) / "lock").read_text())["pid"]
            assert owner != os.getpid()
            os.kill(owner, signal.SIGKILL)
            killed.extend((found, time.time()))
        elif killed and (progress := store.progress(victim.id)) and progress["time"] > killed[1]:
            steps.append(progress["step"])

    status = train([Request(run) for run in runs], store, how, on_progress=watch)
    assert status == {run.id: "done" for run in runs}
    assert killed and steps and all(step >= killed[0] for step in steps)  # it went on from its state
    whole = Store(store.root.parent / "whole")
    tiny.trained(whole, victim, how, steps=log_steps(300))
    assert tiny.results(whole, victim) == tiny.results(store, victim)


def test_a_run_that_kills_its_workers_takes_no_neighbour_with_it(recipe, store, monkeypatch):
    """Two workers: the death of one breaks the pool, and so the other's run, each time."""
    from concurrent.futures.process import BrokenProcessPool

    from cptlab.sweep import scheduler

    class Pool(Executor):
        """As ProcessPoolExecutor: when a process dies, all that is under way is lost."""

        def __init__(self):
            self.under_way = []

        def submit(self, function, request, *rest):
            future = Future()
            self.under_way.append((future, function, request, rest))
            if len(self.under_way) == 1:
                threading.Timer(0.3, self.go).start()
            return future

        def go(self):
            company, self.under_way = self.under_way, []
            dies = any(request.id == bad.id for _, _, request, _ in company)
            companies.append({request.id for _, _, request, _ in company})
            for future, function, request, rest in company:
                if dies:
                    future.set_exception(BrokenProcessPool("a process ended abruptly"))
                else:
                    future.set_result(function(request, *rest))

        def shutdown(self, wait=True, *, cancel_futures=False):
            pass

    companies = []
    bad, good = tiny.spec(recipe, 3), tiny.spec(recipe, 3, seed=1)
    monkeypatch.setattr(scheduler, "local_pool", lambda how: Pool())
    status = train([Request(bad), Request(good)], store, tiny.execution(workers=2))
    assert status == {bad.id: "failed", good.id: "done"}
    assert {good.id} in companies and companies.count({bad.id, good.id}) <= 1  # the second time each was alone
    assert store.record(bad.id)["identity"]["recipe_version"] == RECIPE_VERSION
    assert store.record(bad.id)["spec"] == bad.canonical()


def test_a_run_that_kills_its_workers_fails(recipe, store, monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    from cptlab.sweep import scheduler

    class Deadly(ThreadPoolExecutor):
        def submit(self, function, request, *rest):
            def die():
                if request.id == bad.id:
                    raise BrokenProcessPool("a process ended abruptly")
                return function(request, *rest)

            return super().submit(die)

    bad, good = tiny.spec(recipe, 3), tiny.spec(recipe, 3, seed=1)
    monkeypatch.setattr(scheduler, "local_pool", lambda how: Deadly(1))
    status = train([Request(bad), Request(good), Request(tiny.target(bad, 2))], store, tiny.EXECUTION)
    assert status == {bad.id: "failed", good.id: "done", tiny.target(bad, 2).id: "skipped"}
    error = store.record(bad.id)["error"]
    assert error["type"] == "WorkerDied" and "died 2 times" in error["message"]
    assert lacking(store, Request(bad)).record  # another sweep tries again


def _sweep_and_log(requests, root, log):
    """One of two sweeps: notes each training that it does."""
    from cptlab.training import trainer

    begin = trainer.Training.train

    def noted(run):
        with open(log, "a") as stream:
            stream.write(f"{run.spec.id}\n")
        begin(run)

    trainer.Training.train = noted
    with ThreadPoolExecutor(1) as executor:
        status = train(requests, Store(root), tiny.EXECUTION, executor)
    assert set(status.values()) <= {"done"}, status


def test_two_sweeps_train_a_run_once(recipe, store, tmp_path, processes):
    base = tiny.spec(recipe, 60)
    requests = [Request(tiny.target(base, 30), {}, ("two:4",)), Request(base, {}, ("one:4",))]
    log = tmp_path / "log"
    sweeps = [processes.Process(target=_sweep_and_log, args=(requests, store.root, log)) for _ in range(2)]
    for process in sweeps:
        process.start()
    for process in sweeps:
        process.join(120)
        assert process.exitcode == 0
    assert sorted(log.read_text().split()) == sorted(request.id for request in requests)
    assert not needed(store, requests)
    assert not list(store.root.glob("*/lock"))


def test_optimiser_state_that_nobody_kept_is_trained_again(recipe, store, sweep):
    """A cached base has weights but no optimiser state; an arm that carries it over has the base trained once more, to the same bits."""
    base = tiny.spec(recipe, 6)
    tiny.trained(store, base, sets=("one:4",))
    before = tiny.results(store, base)
    arm = tiny.target(base, 2, optimiser=Optimiser(state="carry"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # no measurement and no weight differs
        status, executor = sweep([Request(arm)])
    assert status == {base.id: "done", arm.id: "done"} and executor.submitted == [base.id, arm.id]
    after = tiny.results(store, base)
    assert after[:2] == before[:2] and set(before[2].splitlines()) <= set(after[2].splitlines())


def test_a_script_that_trains_when_it_is_imported_is_told_so(recipe, tmp_path):
    """Workers are spawned, and a spawned process imports the script that started it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nimport tiny\nfrom cptlab.runs.request import Request\nfrom cptlab.runs.store import Store\n"
        "from cptlab.sweep.scheduler import train\nfolder = Path(sys.argv[1])\nrun = tiny.spec(tiny.make_recipe(folder), 2)\n"
        "print(train([Request(run)], Store(folder / 'store'), tiny.EXECUTION))\n"
    )
    where = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(cptlab.__file__).parents[1])])}
    done = subprocess.run([sys.executable, script, tmp_path], env=os.environ | where, capture_output=True, text=True, timeout=200)
    assert 'put that under `if __name__ == "__main__":`' in done.stderr and "failed" in done.stdout
