"""Notes of a run in progress: how far it is, for whoever watches. The trainer writes them, and before it the worker.

A note has ``phase`` (what is being done), ``step`` of ``steps``, ``tokens``, ``loss_nats`` (of training), ``tokens_per_s``, ``measured``
(rows of measurements so far) and ``time`` (when it was written, seconds since the epoch).
"""

import json
import time

from cptlab.runs.request import Request
from cptlab.runs.store import Store


def write(store: Store, request: Request, phase: str, **more) -> None:
    """Note what is being done of a run; ``more`` are fields of the note that are known."""
    note = {"step": 0, "steps": request.spec.steps, "tokens": 0, "loss_nats": None, "tokens_per_s": 0.0, "measured": []}
    store.write_progress(request.id, note | more | {"phase": phase, "time": time.time()})


def opening(store: Store, request: Request) -> None:
    """Note that the run begins: its corpus is built, where it has to be, or the model is made."""
    from cptlab.corpora import is_built

    corpus = request.spec.corpus
    making = "making the model" if is_built(corpus) else f"building corpus {corpus.name}"
    write(store, request, making, step=saved_step(store, request.id))


def remove(store: Store, request: Request) -> None:
    """Remove the note, of what has ended."""
    (store.path(request.id) / "progress.json").unlink(missing_ok=True)


def saved_step(store: Store, run_id: str) -> int:
    """Step that a broken run goes on from: that of its last saved state; 0 without one."""
    try:
        return int(json.loads((store.state_dir(run_id) / "resume.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
