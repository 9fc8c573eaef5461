"""What is checked before a run reads weights or text: that they are those which the records name."""

from pathlib import Path

from cptlab.corpora.shards import Corpus
from cptlab.errors import StoreError, TrainingError
from cptlab.runs.evaluation_sets import EvaluationSet
from cptlab.runs.provenance import drift
from cptlab.runs.request import Request
from cptlab.runs.spec import Upstream
from cptlab.runs.store import Store
from cptlab.runs.view import Checkpoint, View


def upstream_weights(store: Store, upstream: Upstream, state: bool = False) -> Checkpoint:
    """The checkpoint that an upstream names, its content compared with the hash in its record.

    Args:
        state: its optimiser state is needed, too (:func:`kept_state`): both are then of one trajectory.

    Raises:
        TrainingError: it is not here.
        StoreError: the state is not here, or it is another file.
    """
    run_id, step = upstream.run.id, upstream.step
    view = store.start(run_id, step, state)
    if view is None and state and store.checkpoint(run_id, step):
        raise StoreError(
            f"the optimiser state of run {run_id} is not here: train run {run_id} again with its optimiser state kept at step {step}"
        )
    if view is None:
        raise TrainingError(f"the weights of the upstream, run {run_id} step {step}, are not here: train it first")
    found = view.checkpoint(step)
    found.verified()
    return found


def kept_state(store: Store, upstream: Upstream) -> Path:
    """The optimiser state kept at an upstream's step, compared with its hash; of the trajectory of :func:`upstream_weights`."""
    return store.optimiser_state(upstream.run.id, upstream.step).verified()


def check_text(corpus: Corpus, request: Request, store: Store, view: View) -> None:
    """Compare the token shards with the manifest, with the record of the run when it has one, and with those that its upstreams read.

    Raises:
        CorpusError: a shard is not the file that was built.
        TrainingError: the corpus was built to other tokens than a record names.
    """
    spec = request.spec
    sets = (EvaluationSet.parse(name) for name in request.measured_sets)
    corpus.verify({*spec.mixture, *(name for one in sets for name in (one.source, one.among) if name)})
    records = [("its own record", view.record)] if view.status == "done" else []
    for name, upstream in spec.upstreams.items():
        same = upstream.run is not None and upstream.run.corpus.fingerprint == spec.corpus.fingerprint
        if same and store.status(upstream.run.id) == "done":
            records.append((f"the record of its {name}, run {upstream.run.id}", store.record(upstream.run.id)))
    for what, record in records:
        differing = drift(record, {"versions": {}, "corpus_shards": corpus.shard_hashes})
        if differing:
            names = ", ".join(name.removeprefix("corpus_shards.") for name in differing)
            raise TrainingError(
                f"corpus {spec.corpus.name!r}, built here in {corpus.path}, has other tokens ({names}) than {what} names: install the "
                "locked versions and build it again, or train everything anew (cptlab figures --fresh)"
            )
