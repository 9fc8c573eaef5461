"""What runs will take on this machine, in seconds: training, measurements, samples, compilation, saved states; then once for all start-up
and corpora. Speeds are of :mod:`cptlab.sweep.speed`; imports no torch.

On 2-core AMD EPYCs the compiled shapes of the laptop profile took 44 to 60 s to compile the first time, and 3 s from the cache.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cptlab.runs.evaluation_sets import EvaluationSet
from cptlab.runs.execution import Execution
from cptlab.runs.lacking import lacking
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.sweep.speed import Speeds

START = 6.0  # seconds of a worker's start and imports, of reading the corpus and of making the first engine
RUN = 0.5  # of making a model and its engine, in a worker that has the imports behind it
EDITION, SOME_BOOKS = 1.5, 0.35  # of building a corpus, for each edition of a translated book; the share where a few of its books are read
FILE_BYTES = 2.7e6  # a second, of a user's own files
CLEANED = 7.0  # times as long, where the text is cleaned
WARM = 3.0  # of compiling a shape whose kernels are in the cache
COLD, COLD_LAYER = 28.0, 6.0  # else, and for each layer
FORWARD = 1.2 / 3  # cost of a token that is measured, of one that is trained on: its forward pass, and the sums over it
SAMPLE_LAYER = 4e-4  # of one layer for one sampled token
STATE_BYTES, DISK = 16, 2e8  # of a saved parameter; bytes a second


@dataclass(frozen=True)
class Cost:
    """Seconds of one run on one worker; ``basis`` says where the speed is from."""

    training: float = 0.0
    rest: float = 0.0
    basis: str = ""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.training + self.rest


def costs(
    store: Store, todo: Mapping[str, Request], execution: Execution, flops: Mapping[str, float] | None = None, calibrate: bool = False
) -> dict[str, Cost]:
    """What each request of ``todo`` costs, by run id; a shape's compilation is with the first runs of it, one for each worker.

    Args:
        flops: of training, by run id, where the spec alone does not know them.
    """
    if not todo:
        return {}
    speeds, found, compiled = Speeds(store, execution, calibrate), {}, {}
    for run_id, request in todo.items():
        spec = request.spec
        lacks = lacking(store, request)
        a_token, basis = speeds.of(request, (flops or {}).get(run_id, spec.flops))
        layers = getattr(spec.model, "layers", 0) or 12
        steps = len(request.measured_steps) if lacks.train else len({step for step, _ in lacks.measurements})
        rest = RUN + FORWARD * a_token * steps * sum(_tokens(request, name) for name in request.measured_sets)
        if lacks.train:
            rest += len(request.steps) * sum(prompt.length for prompt in request.prompts) * SAMPLE_LAYER * layers
            rest += (spec.steps // execution.state_every) * STATE_BYTES * _parameters(spec) / DISK
        # Every worker compiles a shape once; with an upstream of the same shape, or runs of it here before, its kernels are in the cache.
        follows = any(up.id in todo and up.model == spec.model for up, _ in spec.runs_upstream())
        shape = repr(spec.model), follows
        compiled[shape] = compiled.get(shape, 0) + 1
        if execution.compile and lacks.train and compiled[shape] <= execution.workers:
            warm = follows or any(one["own"] for one in speeds.same(request))
            rest += WARM if warm else COLD + COLD_LAYER * min(layers, 24)
        found[run_id] = Cost(a_token * spec.tokens_trained if lacks.train else 0.0, rest, basis)
    return found


def _parameters(spec) -> float:
    from cptlab.runs.shapes import parameter_counts

    return 0.0 if spec.model.family == "hub" else parameter_counts(spec.model)["total"]


def _tokens(request: Request, name: str) -> float:
    """Tokens that an evaluation set takes at each step."""
    wanted, context = EvaluationSet.parse(name), request.spec.model.context
    count = 256 if wanted.count is None else wanted.count  # all that there are: nobody knows how many before the corpus is built
    return count * context * max(1, wanted.choices)


def bound(todo: Mapping[str, Request], seconds: Mapping[str, float], workers: int) -> float:
    """Seconds of a sweep from those of its runs: all shared out over the workers, but no less than the longest chain of runs of which each
    waits for the one before. Runs without ``seconds`` are done."""
    chains: dict[str, float] = {}

    def chain(run_id: str) -> float:
        if run_id not in chains:
            above = (spec.id for spec, _ in todo[run_id].spec.runs_upstream() if spec.id in todo)
            chains[run_id] = seconds.get(run_id, 0.0) + max(map(chain, above), default=0.0)
        return chains[run_id]

    return max(sum(seconds.values()) / workers, max(map(chain, todo), default=0.0))


def wall(todo: Mapping[str, Request], found: Mapping[str, Cost], execution: Execution) -> tuple[float, float]:
    """Seconds that a sweep of ``todo`` takes, and those of its longest chain alone, both with start-up and corpora; 0 without work."""
    if not todo:
        return 0.0, 0.0
    once = START + sum(corpus_seconds(request.spec.corpus) for request in {r.spec.corpus.fingerprint: r for r in todo.values()}.values())
    seconds = {run_id: cost.seconds for run_id, cost in found.items()}
    return once + bound(todo, seconds, execution.workers), once + bound(todo, seconds, max(1, len(todo)))


def corpus_seconds(recipe) -> float:
    """Seconds of building a corpus, its sources fetched; 0 when it is built."""
    from cptlab.corpora import is_built

    if is_built(recipe):
        return 0.0
    seconds = 1.0
    for ref in recipe.sources.values():
        sizes = (Path(name).stat().st_size for name in ref.files if Path(name).is_file())
        seconds += sum(sizes) / FILE_BYTES if ref.files else EDITION * max(1, len(ref.versions)) * (SOME_BOOKS if ref.books else 1.0)
    return seconds * (CLEANED if recipe.clean else 1.0)


def minutes(seconds: float) -> float:
    """Seconds in minutes, rounded to hundredths; NaN stays."""
    return seconds if math.isnan(seconds) else round(seconds / 60, 2)
