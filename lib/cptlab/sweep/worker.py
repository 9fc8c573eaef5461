"""A worker process of a sweep: it lives for many runs, so that imports and compiled kernels are paid for once."""

import json
from pathlib import Path

from cptlab.runs.lacking import lacking
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.sweep.process import quiet


def work(request: Request, root: Path, execution) -> str:
    """Do what the store lacks of ``request``; returns the run's status. Waits when another process is at the same run, then serves it."""
    store = Store(root)
    with store.lock(request.id) as lock:
        if not lacking(store, request):
            return ended(store, request.id)
        if execution.ranks > 1:
            from cptlab.sweep.ranks import launch

            return launch(request, store, execution, lock)
        from cptlab.training.trainer import train_or_evaluate

        with quiet():
            return train_or_evaluate(request, store, execution, lock)


def record_time(store: Store, run_id: str) -> int:
    path = store.path(run_id) / "run.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def ended(store: Store, run_id: str) -> str:
    """How the run's record says it ended; ``missing`` without one. (Its status is ``running`` for as long as we hold the lock.)"""
    return store.record(run_id)["status"] if record_time(store, run_id) else "missing"


def describe(request: Request) -> str:
    """One line for people: the run's labels and id."""
    return f"{request.id} {json.dumps(request.labels, ensure_ascii=False)}"
