"""What the store cannot answer of a request."""

from dataclasses import dataclass

from cptlab.runs.request import Request
from cptlab.runs.store import Store

# Errors that the run itself leads to: trying again gives the same end. All others (memory, disk, a killed process) are tried again.
FINAL_ERRORS = ("NonFiniteLoss",)


@dataclass(frozen=True)
class Lacking:
    """What the store lacks of a request. ``train`` says that it takes training, not only a kept checkpoint."""

    measurements: tuple[tuple[int, str], ...]
    samples: bool
    checkpoints: tuple[int, ...]
    states: tuple[int, ...]
    record: bool
    train: bool

    def __bool__(self):
        return self.record or self.samples or bool(self.measurements or self.checkpoints or self.states)


def lacking(store: Store, request: Request) -> Lacking:
    """Compare a request with the store; reads files only (a few milliseconds)."""
    run_id = request.id
    status = store.status(run_id)
    if status in ("failed", "running") and (store.path(run_id) / "run.json").exists():  # "running" also while we hold its lock ourselves
        error = store.record(run_id)["error"] or {}
        if error.get("type") in FINAL_ERRORS:
            return Lacking((), False, (), (), False, False)
    done = status == "done"
    pairs, samples = (), bool(request.prompts)
    if done:
        table = store.measurements(run_id)
        known = set(zip(table["step"].tolist(), table["set"].tolist(), strict=True))
        pairs = tuple((step, name) for step in request.steps for name in request.sets if (step, name) not in known)
        if request.prompts:
            sampled = {(s["step"], s["prompt"], s["seed"]) for s in store.samples(run_id)}
            samples = not all((step, p.text, p.seed) in sampled for step in request.steps for p in request.prompts)
    else:
        pairs = tuple((step, name) for step in request.steps for name in request.sets)
    checkpoints = tuple(step for step in request.keep if store.checkpoint(run_id, step) is None)
    states = tuple(step for step in request.keep_state if not store.optimiser_state(run_id, step).is_file())
    have = set(store.checkpoint_steps(run_id))
    train = not done or bool(checkpoints or states) or samples or any(step not in have for step, _ in pairs)
    return Lacking(pairs, samples, checkpoints, states, not done, train)
