"""Identities that must not move by accident: every run of every notebook at every profile, every recipe, every other record.

``python tests/test_golden.py`` writes ``tests/golden.json`` anew, after a change that is meant to make other runs. Commit it with that
change and say in the changelog which runs it retrains.
"""

import json
import os
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden.json")
REPOSITORY = Path(__file__).resolve().parents[1]


def identities() -> dict:
    """Run ids by notebook and profile, fingerprints by recipe, names of the records in ``runs/corpora`` and ``runs/laws``."""
    from cptlab import notebooks, study
    from cptlab.corpora.recipe import recipe, recipe_names

    runs = {}
    for book in notebooks.find([]):
        for profile in study.profile_names():
            found = notebooks.plan(book, {"profile": profile})
            runs[f"{book.name} {profile}"] = sorted(set(found.runs["id"]))
    records = {folder: sorted(path.stem for path in (REPOSITORY / "runs" / folder).glob("*.json")) for folder in ("corpora", "laws")}
    return {"runs": runs, "recipes": {name: recipe(name).fingerprint for name in recipe_names()}, "records": records}


def test_identities_stay():
    found, known = identities(), json.loads(GOLDEN.read_text())
    for kind, entries in known.items():
        moved = [name for name in sorted(entries.keys() | found[kind].keys()) if entries.get(name) != found[kind].get(name)]
        assert not moved, f"{kind} with other identities than in {GOLDEN.name}: {moved}"


if __name__ == "__main__":
    os.environ["CPTLAB_RUNS"] = tempfile.mkdtemp()  # an empty store, as in the tests: a plan shows the upstreams that have to be trained
    GOLDEN.write_text(json.dumps(identities(), indent=1, sort_keys=True) + "\n")
