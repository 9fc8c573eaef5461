"""A worker process of a sweep: it lives for many runs, so that imports and compiled kernels are paid for once."""

import json

from cptlab.runs import notes
from cptlab.runs.lacking import lacking
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.sweep.process import quiet
from cptlab.training import stopping


def work(request: Request, store: Store, execution) -> str:
    """Do what the store lacks of ``request``; returns the run's status. Waits when another process is at the same run, then serves it.

    A worker that is asked to stop (:mod:`cptlab.training.stopping`) does not return: it ends, with the run's lock free.
    """
    try:
        with store.lock(request.id) as lock:
            return _work(request, store, execution, lock)
    finally:
        stopping.leave()


def _work(request: Request, store: Store, execution, lock) -> str:
    wanted = lacking(store, request)
    if not wanted:
        return store.ended(request.id)
    if wanted.train:
        notes.opening(store, request)
    else:
        notes.write(store, request, "evaluating")
    if execution.ranks > 1:
        from cptlab.sweep.ranks import launch

        status = launch(request, store, execution, lock)
    else:
        from cptlab.training.perform import train_or_evaluate

        with quiet():
            status = train_or_evaluate(request, store, execution, wanted, lock)
    if status == "done":
        notes.remove(store, request)
    return status


def describe(request: Request) -> str:
    """One line for people: the run's labels and id."""
    return f"{request.id} {json.dumps(request.labels, ensure_ascii=False)}"
