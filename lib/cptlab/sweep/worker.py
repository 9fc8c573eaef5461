"""A worker process of a sweep: it lives for many runs, so that imports and compiled kernels are paid for once."""

import json

from cptlab.runs.lacking import lacking
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.sweep.process import quiet


def work(request: Request, store: Store, execution) -> str:
    """Do what the store lacks of ``request``; returns the run's status. Waits when another process is at the same run, then serves it."""
    with store.lock(request.id) as lock:
        wanted = lacking(store, request)
        if not wanted:
            return store.ended(request.id)
        if execution.ranks > 1:
            from cptlab.sweep.ranks import launch

            return launch(request, store, execution, lock)
        from cptlab.training.perform import train_or_evaluate

        with quiet():
            return train_or_evaluate(request, store, execution, wanted, lock)


def describe(request: Request) -> str:
    """One line for people: the run's labels and id."""
    return f"{request.id} {json.dumps(request.labels, ensure_ascii=False)}"
