"""Run a set of requests in the order that their upstreams allow, on any executor, and keep going when one fails.

This module imports no torch: a sweep whose runs are all in the store is served from files.
"""

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from cptlab.runs.request import Request, missing
from cptlab.runs.store import Store
from cptlab.runs.worker import describe, initialise, work
from cptlab.training.execution import Execution
from cptlab.training.sizes import run_flops

TRIES = 2  # of a run whose worker process died


def needed(store: Store, requests: Iterable[Request]) -> dict[str, Request]:
    """The requests that the store cannot serve, with the upstreams that they need trained first, by run id.

    Requests for the same run are merged. An upstream is asked only for the checkpoint (and, where the optimiser is carried
    over, the state) to start from: nothing above a cached or committed checkpoint is trained.
    """
    wanted: dict[str, Request] = {}
    for request in requests:
        wanted[request.id] = wanted[request.id].merged(request) if request.id in wanted else request
    result: dict[str, Request] = {}
    queue = [request for request in wanted.values() if missing(store, request)]
    while queue:
        request = queue.pop()
        result[request.id] = request
        if not missing(store, request).train:
            continue
        for spec, step in request.spec.runs_upstream():
            state = (step,) if request.spec.optimiser.state == "carry" and request.spec.upstreams["init"].run is spec else ()
            base = result.get(spec.id) or wanted.get(spec.id) or Request(spec, {"role": "upstream"}, steps=(spec.steps,))
            merged = base.merged(Request(spec, {}, steps=base.steps, keep=(step,), keep_state=state))
            if missing(store, merged) and result.get(spec.id) != merged:
                queue.append(merged)
    return result


def chain_flops(requests: dict[str, Request]) -> dict[str, float]:
    """FLOPs of each run and of the longest chain of runs that waits for it: what to start first."""
    below: dict[str, list[str]] = {run_id: [] for run_id in requests}
    for request in requests.values():
        for spec, _ in request.spec.runs_upstream():
            if spec.id in below:
                below[spec.id].append(request.id)
    result: dict[str, float] = {}

    def weigh(run_id: str) -> float:
        if run_id not in result:
            result[run_id] = run_flops(requests[run_id].spec) + max(map(weigh, below[run_id]), default=0.0)
        return result[run_id]

    for run_id in requests:
        weigh(run_id)
    return result


# glibc gives large tensors back to the kernel at once and pays a fault a page for each new one: 10,000 faults a step at 0.7M
# parameters. Read at the start of a process; other C libraries ignore it.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def local_pool(execution: Execution) -> ProcessPoolExecutor:
    """Long-lived worker processes, spawned (a fork of a process that holds torch can hang) and ending with this one."""
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    return ProcessPoolExecutor(
        execution.workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=initialise,
        initargs=(execution.threads, os.getpid()),
    )


def train(
    requests: Iterable[Request],
    store: Store,
    execution: Execution,
    executor: Executor | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, str]:
    """Bring the store to where it can serve every request; returns the status of each run that was worked on.

    Args:
        requests: what is wanted, in any order.
        executor: any ``concurrent.futures.Executor`` whose processes see the store's folder (a local pool by default; submitit on Slurm).
        on_progress: called about twice a second with the ids being worked on.

    A run that fails leaves a record with its error, those that need it are skipped, and the others go on.
    """
    todo = needed(store, requests)
    if not todo:
        return {}
    weights = chain_flops(todo)
    # Longest chain first fills the cores to the end; equal shapes side by side save compilations.
    order = sorted(todo, key=lambda run_id: (-weights[run_id], repr(todo[run_id].spec.model), run_id))
    # An upstream that diverged in an earlier sweep is not tried again, and what needs its weights is skipped again.
    hopeless = {
        run_id
        for run_id, request in todo.items()
        if missing(store, request).train
        for spec, step in request.spec.runs_upstream()
        if spec.id not in todo and store.checkpoint(spec.id, step) is None
    }
    status: dict[str, str] = {}
    tries = dict.fromkeys(todo, 0)
    running: dict[Future, str] = {}
    own = executor is None
    pool = local_pool(execution) if own else executor
    try:
        while len(status) < len(todo):
            for run_id in order:
                if len(running) >= execution.workers:
                    break
                if run_id in status or run_id in running.values():
                    continue
                ups = [spec.id for spec, _ in todo[run_id].spec.runs_upstream() if spec.id in todo]
                if run_id in hopeless or any(status.get(up) in ("failed", "skipped") for up in ups):
                    status[run_id] = "skipped"
                elif all(status.get(up) == "done" for up in ups):
                    running[pool.submit(work, todo[run_id], store.root.resolve(), execution)] = run_id
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            broken = False
            for future in finished:
                run_id = running.pop(future)
                try:
                    status[run_id] = future.result()
                except BrokenProcessPool:
                    broken = True
                    _worker_died(store, todo[run_id], tries, status)
                except Exception as error:  # work that leaves no record, such as a measurement that fails: the sweep goes on
                    status[run_id] = "failed"
                    warnings.warn(f"run {describe(todo[run_id])}: {type(error).__name__}: {error}", stacklevel=2)
            if broken:
                for future, run_id in running.items():
                    future.cancel()
                    _worker_died(store, todo[run_id], tries, status)
                running.clear()
                if own:
                    pool.shutdown(wait=False, cancel_futures=True)
                    pool = local_pool(execution)
            if on_progress:
                on_progress(progress_line(store, todo, status, set(running.values())))
    except BaseException:
        if own:
            _stop(pool)
        raise
    if own:
        pool.shutdown()
    return status


def _worker_died(store: Store, request: Request, tries: dict[str, int], status: dict[str, str]) -> None:
    """Count a death of the process that trained ``request``; past the limit it is a failed record, before it the run resumes."""
    from cptlab.runs.provenance import collect

    if store.status(request.id) == "done" and not missing(store, request):
        status[request.id] = "done"
        return
    tries[request.id] += 1
    if tries[request.id] >= TRIES:
        message = f"the process that trained it died {TRIES} times (killed, or out of memory?)"
        error = {"type": "WorkerDied", "message": message, "step": None}
        if store.status(request.id) != "done":
            identity = {"recipe_version": 0, "corpus_fingerprint": request.spec.corpus.fingerprint, "upstreams": {}}
            record = {"labels": request.labels, "spec": request.spec.canonical(), "identity": identity, "status": "failed", "error": error}
            store.write_record(request.id, record | {"summary": {}, "checkpoints": {}, "provenance": collect()})
        status[request.id] = "failed"


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers at once; their runs resume from the last saved state."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


def progress_line(
    store: Store, todo: dict[str, Request] | Iterable[str], status: dict[str, str] | None = None, running: set[str] | None = None
) -> str:
    """One line on a sweep: runs done, tokens/s, time left. With ids only (another process's sweep) the store says who runs."""
    ids = list(todo)
    if status is None:
        found = {run_id: store.status(run_id) for run_id in ids}
        status = {run_id: s for run_id, s in found.items() if s in ("done", "failed")}
        running = {run_id for run_id, s in found.items() if s == "running"}
    notes = {run_id: note for run_id in running or () if (note := store.progress(run_id)) and time.time() - note["time"] < 60}
    rate = sum(note["tokens_per_s"] for note in notes.values())
    failed = sum(value != "done" for value in status.values())
    line = f"{len(status)}/{len(ids)} runs done" + (f", {failed} failed" if failed else "")
    line += f", {len(running or ())} running, {rate:,.0f} tokens/s"
    if isinstance(todo, dict) and rate:
        # Work left in FLOPs, at the rate in FLOPs of what runs now: sizes differ too much to count in tokens.
        cost = {run_id: run_flops(request.spec) for run_id, request in todo.items()}
        speed = sum(note["tokens_per_s"] * cost[r] / (todo[r].spec.steps * todo[r].spec.batch_tokens) for r, note in notes.items())
        left = sum(flops for run_id, flops in cost.items() if run_id not in status)
        left -= sum(cost[r] * note["step"] / note["steps"] for r, note in notes.items())
        if speed:
            line += f", {max(0.0, left) / speed / 60:.0f} min left"
    return line
