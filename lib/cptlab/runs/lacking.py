"""What the store cannot answer of a request."""

from dataclasses import dataclass

from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.runs.view import View, sample_key

# Errors that the run itself leads to: trying again gives the same end. All others (memory, disk, a killed process) are tried again.
FINAL_ERRORS = ("NonFiniteLoss",)


@dataclass(frozen=True)
class Lacking:
    """What the store lacks of a request. ``train`` says that it takes training, not only a kept checkpoint; ``view`` is the one that
    answers, or that comes nearest."""

    view: View
    measurements: tuple[tuple[int, str], ...] = ()
    samples: bool = False
    checkpoints: tuple[int, ...] = ()
    states: tuple[int, ...] = ()
    record: bool = False
    train: bool = False

    def __bool__(self):
        return self.record or self.samples or bool(self.measurements or self.checkpoints or self.states)


def lacking(store: Store, request: Request) -> Lacking:
    """Compare a request with the store; reads files only (a few milliseconds).

    Of two views the first that answers all is taken; when none does, what lacks is judged by the run as it was trained here.
    """
    for view in store.views(request.id):
        found = _lacking(view, request)
        if not found:
            break
    return found


def _lacking(view: View, request: Request) -> Lacking:
    if view.status == "failed" and view.record["error"]["type"] in FINAL_ERRORS:
        return Lacking(view)
    done = view.status == "done"
    pairs = tuple((step, name) for step in request.steps for name in request.sets)
    samples = bool(request.prompts)
    if done:
        known = {(row["step"], row["set"]) for row in view.measurement_rows()}
        pairs = tuple(pair for pair in pairs if pair not in known)
        if request.prompts:
            sampled = {sample_key(sample) for sample in view.samples()}
            samples = not all((step, p.text, p.seed, p.temperature, p.length) in sampled for step in request.steps for p in request.prompts)
    checkpoints = tuple(step for step in request.keep if view.checkpoint(step) is None)
    states = tuple(step for step in request.keep_state if view.optimiser_state(step) is None)
    have = set(view.checkpoint_steps())
    train = not done or bool(checkpoints or states) or samples or any(step not in have for step, _ in pairs)
    return Lacking(view, pairs, samples, checkpoints, states, not done, train)
