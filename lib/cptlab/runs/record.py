"""The record of a run, ``run.json``: made in one place."""

from cptlab.runs.provenance import collect
from cptlab.runs.request import Request
from cptlab.runs.spec import RECIPE_VERSION, RunSpec


def base_record(request: Request) -> dict:
    """The part of a record that is known before training."""
    spec: RunSpec = request.spec
    return {
        "labels": request.labels,
        "spec": spec.canonical(),
        "identity": {
            "recipe_version": RECIPE_VERSION,
            "corpus_fingerprint": spec.corpus.fingerprint,
            "upstreams": {name: up.canonical() for name, up in spec.upstreams.items()},
        },
    }


def compute_of(record: dict) -> str:
    """What a run's matrices were multiplied in: ``bf16``, ``fp32`` or ``fp16``; in records from before it was noted, its precision."""
    return record["provenance"].get("execution", {}).get("compute", record["spec"].get("precision"))


def failed_record(request: Request, kind: str, message: str, step: int | None) -> dict:
    """Record of a run that could not be trained."""
    error = {"type": kind, "message": message, "step": step}
    return base_record(request) | {"status": "failed", "error": error, "summary": {}, "checkpoints": {}, "provenance": collect()}
