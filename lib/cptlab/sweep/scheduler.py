"""Run a set of requests in the order that their upstreams allow, on any executor, and keep going when one fails.

This module imports no torch: a sweep whose runs are all in the store is served from files.
"""

import multiprocessing
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool

from cptlab.errors import Interrupted, require
from cptlab.runs.execution import Execution
from cptlab.runs.lacking import lacking
from cptlab.runs.record import failed_record
from cptlab.runs.request import Request, log_steps
from cptlab.runs.spec import RunSpec
from cptlab.runs.store import Store
from cptlab.sweep.cost import costs
from cptlab.sweep.pools import local_pool, stop
from cptlab.sweep.progress import Sweep, interrupted_text
from cptlab.sweep.worker import describe, work
from cptlab.training import stopping

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
    queue = [(request, lacks) for request in wanted.values() if (lacks := lacking(store, request))]
    while queue:
        request, lacks = queue.pop()
        if request.id in result:  # two upstreams of one run may be two steps of another
            request = result[request.id].merged(request)
        result[request.id] = request
        if not lacks.train:
            continue
        for name, upstream in request.spec.upstreams.items():
            spec, step = upstream.run, upstream.step
            if spec is None:
                continue
            state = (step,) if name == "init" and request.spec.optimiser.state != "reset" else ()
            base = result.get(spec.id) or wanted.get(spec.id) or upstream_request(spec)
            merged = base.merged(Request(spec, {}, steps=base.steps, keep=(step,), keep_state=state))
            if result.get(spec.id) != merged and (lacks := lacking(store, merged)):
                queue.append((merged, lacks))
    return result


def upstream_request(spec: RunSpec) -> Request:
    """A run that is only started from: no measurement is demanded, but those that other notebooks may ask for are taken along."""
    return Request(spec, {"role": "upstream"}, steps=(spec.steps,), also_sets=spec.corpus.names, also_steps=log_steps(spec.steps))


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
            result[run_id] = requests[run_id].spec.flops + max(map(weigh, below[run_id]), default=0.0)
        return result[run_id]

    for run_id in requests:
        weigh(run_id)
    return result


def train(
    requests: Iterable[Request],
    store: Store,
    execution: Execution,
    executor: Executor | None = None,
    on_progress: Callable[[Sweep], None] | None = None,
) -> dict[str, str]:
    """Bring the store to where it can serve every request; returns the status of each run that was worked on.

    Args:
        requests: what is wanted, in any order.
        executor: any ``concurrent.futures.Executor`` whose processes see the store's folder (a local pool by default; submitit on Slurm).
        on_progress: called about twice a second with the sweep, and once before anything runs.

    A run that fails leaves a record with its error, those that need it are skipped, and the others go on.

    Raises:
        Interrupted: by the user; the runs in progress were given some seconds to save themselves, and the message says where they stopped.
    """
    require(
        not getattr(multiprocessing.current_process(), "_inheriting", False),
        'a worker imports the script that started it, and this one trains when it is imported: put that under `if __name__ == "__main__":`',
    )
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
        if lacking(store, request).train
        for spec, step in request.spec.runs_upstream()
        if spec.id not in todo and store.checkpoint(spec.id, step) is None
    }
    sweep = Sweep(store, todo, execution.workers, costs=costs(store, todo, execution) if on_progress else None)
    status = sweep.status
    tries = dict.fromkeys(todo, 0)
    suspects: set[str] = set()  # runs in whose company a worker died: which of them killed it shows when each is run alone
    running: dict[Future, str] = {}
    own = executor is None
    tell = on_progress or (lambda sweep: None)
    tell(sweep)
    pool = local_pool(execution) if own else executor
    try:
        while len(status) < len(todo):
            for run_id in order:
                if len(running) >= execution.workers or suspects.intersection(running.values()):
                    break
                if run_id in status or run_id in running.values() or (run_id in suspects and running):
                    continue
                ups = [spec.id for spec, _ in todo[run_id].spec.runs_upstream() if spec.id in todo]
                if run_id in hopeless or any(status.get(up, "done") != "done" for up in ups):
                    status[run_id] = "skipped"
                elif all(status.get(up) == "done" for up in ups):
                    running[pool.submit(work, todo[run_id], store.resolved(), execution)] = run_id
            sweep.running = set(running.values())
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            died = set()
            for future in finished:
                run_id = running.pop(future)
                try:
                    status[run_id] = future.result()
                except BrokenProcessPool:
                    died.add(run_id)
                except Exception as error:  # work that leaves no record, such as a measurement that fails: the sweep goes on
                    sweep.errors[run_id] = f"{type(error).__name__}: {error}"
                    status[run_id] = "failed"
                    if on_progress is None:
                        warnings.warn(f"run {describe(todo[run_id])}: {sweep.errors[run_id]}", stacklevel=2)
            if died:
                for future, run_id in running.items():
                    future.cancel()
                    died.add(run_id)
                running.clear()
                suspects |= died
                for run_id in died:
                    _worker_died(store, todo[run_id], tries, status)
                if own:
                    stop(pool, stopping.SECONDS)
                    pool = local_pool(execution)
            sweep.running = set(running.values())
            tell(sweep)
    except KeyboardInterrupt:
        if own:
            stop(pool, stopping.SECONDS)
        raise Interrupted(interrupted_text(sweep)) from None
    except BaseException:
        if own:
            stop(pool)
        raise
    if own:
        pool.shutdown()
    return status


def _worker_died(store: Store, request: Request, tries: dict[str, int], status: dict[str, str]) -> None:
    """Count a death of the process that trained ``request``; past the limit it is a failed record, before it the run resumes."""
    if store.status(request.id) == "done" and not lacking(store, request):
        status[request.id] = "done"
        return
    tries[request.id] += 1
    if tries[request.id] >= TRIES:
        if store.status(request.id) != "done":
            message = f"the process that trained it died {TRIES} times (killed, out of memory, or a script without a guard on __main__?)"
            store.write_record(request.id, failed_record(request, "WorkerDied", message, None))
        status[request.id] = "failed"
