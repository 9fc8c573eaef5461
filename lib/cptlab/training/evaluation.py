"""Evaluation: the windows of a set, and kept checkpoints measured without training."""

import numpy as np
import torch.distributed as dist

from cptlab.corpora import open_corpus
from cptlab.errors import TrainingError
from cptlab.runs.execution import Execution
from cptlab.runs.lacking import Lacking
from cptlab.runs.record import compute_of
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.training.engine import Engine, compute_type
from cptlab.training.models import build_model, load_weights
from cptlab.training.objectives.token import TokenObjective


def evaluation_windows(corpus, name: str, context: int) -> np.ndarray:
    """Windows [n, context + 1] of an evaluation set ``SOURCE``, ``SOURCE:n`` or ``SOURCE:all``, spread evenly over the validation text."""
    source, _, size = name.partition(":")
    tokens = corpus.tokens(source, "validation")
    available = (len(tokens) - 1) // context
    count = available if size == "all" else min(available, int(size or 64))
    if count < 1:
        raise TrainingError(f"the validation text of {source!r} has {len(tokens)} tokens, less than one window of {context + 1}")
    places = (np.arange(count) * available // count) * context
    return np.stack([tokens[place : place + context + 1] for place in places]).astype(np.int64)


def measure_checkpoints(request: Request, store: Store, execution: Execution, wanted: Lacking) -> None:
    """Evaluate kept checkpoints on the sets that are still missing; nothing is trained."""
    corpus = open_corpus(request.spec.corpus)
    compute = compute_type(request.spec.precision, execution, compute_of(store.record(request.id)))
    rows = []
    for step in sorted({step for step, _ in wanted.measurements}):
        weights = store.checkpoint(request.id, step)
        model = build_model(request.spec, execution, weights)
        load_weights(model, weights)
        engine = Engine(request.spec, execution, TokenObjective(model), compute)
        for name in (name for s, name in wanted.measurements if s == step):
            windows = evaluation_windows(corpus, name, request.spec.model.context)
            rows.append({"step": step, "tokens": step * request.spec.batch_tokens, "set": name} | engine.evaluate(windows))
        engine.close()
    if not dist.is_initialized() or dist.get_rank() == 0:
        store.add_measurements(request.id, rows)
