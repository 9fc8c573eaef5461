"""The record of a run, ``run.json``: made and checked in one place."""

from typing import TYPE_CHECKING

from cptlab.errors import StoreError
from cptlab.runs.provenance import collect

if TYPE_CHECKING:
    from cptlab.runs.request import Request

FORMAT = 1
RECORD_KEYS = {
    "format": int, "id": str, "labels": dict, "spec": dict, "identity": dict, "status": str, "error": (dict, type(None)),
    "summary": dict, "checkpoints": dict, "provenance": dict,
}  # fmt: skip
IDENTITY_KEYS = ("recipe_version", "corpus_fingerprint", "upstreams")


def base_record(request: "Request") -> dict:
    """The part of a record that is known before training."""
    from cptlab.runs.spec import RECIPE_VERSION

    spec = request.spec
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
    """What a run's matrices were multiplied in: ``bf16``, ``fp32`` or ``fp16``.

    Raises:
        StoreError: the record does not say it.
    """
    try:
        return record["provenance"]["execution"]["compute"]
    except (KeyError, TypeError):
        raise StoreError(
            f"run {record['id']}: its run.json lacks provenance.execution.compute: restore it from git, or delete its folder to train the "
            "run again"
        ) from None


def failed_record(request: "Request", kind: str, message: str, step: int | None) -> dict:
    """Record of a run that could not be trained."""
    error = {"type": kind, "message": message, "step": step}
    return base_record(request) | {"status": "failed", "error": error, "summary": {}, "checkpoints": {}, "provenance": collect()}


def check_record(record: dict, run_id: str, where: str) -> None:
    """
    Raises:
        StoreError: ``record`` is not what a record has to be; ``where`` names the file in the message.
    """
    if not isinstance(record, dict):
        raise StoreError(f"{where} holds no JSON object: restore it from git, or delete it to train the run again")
    if record.get("format") != FORMAT:
        raise StoreError(
            f"{where}: format is {record.get('format')!r}, this version reads {FORMAT}: use the cptlab that wrote it, or retrain"
        )
    for key, kind in RECORD_KEYS.items():
        if key not in record or not isinstance(record[key], kind):
            raise StoreError(
                f"{where}: field {key!r} is {'missing' if key not in record else f'{record[key]!r:.60}'}: restore it, or retrain the run"
            )
    if record["id"] != run_id:
        raise StoreError(
            f"{where}: id is {record['id']!r}, but the folder says {run_id!r}: a record cannot be moved to another run's folder"
        )
    missing = [key for key in IDENTITY_KEYS if key not in record["identity"]]
    if missing:
        raise StoreError(f"{where}: identity lacks {', '.join(missing)}")
    if record["status"] not in ("done", "failed"):
        raise StoreError(f"{where}: status is {record['status']!r}: a record says 'done' or 'failed'")
    if (record["status"] == "failed") != (record["error"] is not None):
        raise StoreError(
            f"{where}: status is {record['status']!r} with error {record['error']!r:.60}: a failed run has an error, a finished one none"
        )
    if record["error"] is not None and not {"type", "message", "step"} <= set(record["error"]):
        raise StoreError(f"{where}: error needs type, message and step")
