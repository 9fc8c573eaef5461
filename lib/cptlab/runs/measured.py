"""Computations that are kept as records beside the runs: measured once, then served."""

import hashlib
import json
from collections.abc import Callable

from cptlab.files import atomic_json
from cptlab.runs.store import Store


def measured(folder: str, kind: str, identity: dict, store: Store, measure: Callable[[], dict]) -> dict:
    """What ``measure`` gives, with ``record``, ``settings`` (``identity``) and provenance, from its record in ``folder`` of ``store``.

    The record is named by ``kind`` and a hash of ``identity``; where there is none, it is measured and recorded.
    """
    name = f"{kind}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]}"
    if found := store.find(f"{folder}/{name}.json"):
        return json.loads(found.read_text(encoding="utf-8"))
    from cptlab.runs.provenance import collect

    found = measure() | {"settings": identity, "record": f"{folder}/{name}", "provenance": collect()}
    atomic_json(store.root / folder / f"{name}.json", found)
    return found
