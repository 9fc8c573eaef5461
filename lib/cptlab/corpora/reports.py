"""What a corpus holds, and what its cleaning took: from the built corpus, or from the record that a run store keeps of it.

A record holds counts, never text, so that a clone without any corpus can show what a pipeline did.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cptlab.corpora.recipe import CorpusRecipe, is_recipe_name, recipe, recipe_names
from cptlab.errors import CorpusError
from cptlab.files import atomic_json
from cptlab.paths import cache_dir
from cptlab.runs.store import Store

COUNTS = ("documents", "bytes", "tokens")


def build_corpus(wanted: CorpusRecipe | str, say: Callable[[str], None] | None = None) -> dict:
    """Build a corpus. Plain data: name, fingerprint, path, built (False: it was there), seconds, the rest as in :func:`report`."""
    from cptlab.corpora.build import is_built, open_corpus

    start, there = time.perf_counter(), is_built(wanted)
    corpus = open_corpus(wanted, say)
    seconds = time.perf_counter() - start
    return _summary(corpus.path) | {"built": not there, "seconds": seconds}


def report(wanted: CorpusRecipe | str) -> dict:
    """A built corpus as plain data: name, fingerprint, path, rows (source, split, documents, bytes, tokens, bytes_per_token), cleaning
    (None: it was not cleaned), set_aside (files that could not be read: source, file, reason, detail).

    Args:
        wanted: a recipe, or the name or the first digits of the fingerprint of a corpus.

    Raises:
        CorpusError: it is not built yet.
    """
    return _summary(find(wanted))


def why(wanted: CorpusRecipe | str, document: str) -> dict:
    """What became of a document and why: see :func:`cptlab.corpora.clean.ledger.why`."""
    from cptlab.corpora.clean import ledger

    return ledger.why(find(wanted), document)


def sample(wanted: CorpusRecipe | str, count: int) -> list[dict]:
    """The first ``count`` removed or edited documents of each step and rule: rows of the ledger."""
    from cptlab.corpora.clean import ledger

    return ledger.sample(find(wanted), count)


def find(wanted: CorpusRecipe | str) -> Path:
    """Folder of a built corpus, by recipe, name or fingerprint."""
    from cptlab.corpora.build import corpus_dir, is_built

    if isinstance(wanted, CorpusRecipe) or is_recipe_name(wanted):
        if is_built(wanted):
            return corpus_dir(recipe(wanted) if isinstance(wanted, str) else wanted)
        name = wanted if isinstance(wanted, str) else wanted.name
        raise CorpusError(f"corpus {name!r} is not built yet: run `cptlab corpora build {name}`")
    found = {}
    for manifest in _manifests():
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["name"] == wanted or (len(wanted) >= 4 and content["fingerprint"].startswith(wanted)):
            found[content["fingerprint"]] = manifest.parent
    if not found:
        known = ", ".join(recipe_names())
        here = sorted({json.loads(path.read_text(encoding="utf-8"))["name"] for path in _manifests()})
        raise CorpusError(f"no corpus {wanted!r} is built here: built are {', '.join(here) or 'none'}; the recipes are {known}")
    if len(found) > 1:
        some = ", ".join(fingerprint[:16] for fingerprint in found)
        raise CorpusError(f"several corpora are called {wanted!r}: name one by its fingerprint, {some}")
    return found.popitem()[1]


def built() -> list[str]:
    """Fingerprints of all corpora in the cache."""
    return sorted(json.loads(path.read_text(encoding="utf-8"))["fingerprint"] for path in _manifests())


def _manifests() -> list[Path]:
    """Of all built corpora, not of those that are being built."""
    return sorted((cache_dir() / "corpora").glob("[!.]*/manifest.json"))


def _summary(folder: Path) -> dict:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    columns = ("source", "split", *COUNTS)
    rows = [{column: shard[column] for column in columns} for shard in manifest["shards"].values()]
    rows = [row | {"bytes_per_token": row["bytes"] / row["tokens"]} for row in rows]
    own = {name: manifest[name] for name in ("name", "fingerprint")} | {"path": str(folder), "rows": rows}
    own |= {"cleaning": manifest.get("cleaning"), "set_aside": manifest.get("set_aside", [])}
    return own | {"seconds_to_build": manifest["seconds"]}


def recorded(wanted: CorpusRecipe | str, store: Store) -> dict:
    """The report of a corpus without its path: from its record in ``store``; where there is none the corpus is
    built and the record written. ``record`` names it, for the provenance of figures."""
    wanted = recipe(wanted) if isinstance(wanted, str) else wanted
    name = f"corpora/{wanted.fingerprint[:16]}"
    if path := store.find(f"{name}.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["fingerprint"] != wanted.fingerprint:
            raise CorpusError(f"{path} is the record of corpus {found['fingerprint'][:16]}: delete it, it is written anew")
        return found
    from cptlab.runs.provenance import collect

    found = build_corpus(wanted)
    found = {name: value for name, value in found.items() if name not in ("path", "built", "seconds", "seconds_to_build")}
    found |= {"record": name, "provenance": collect()}
    atomic_json(store.root / f"{name}.json", found)
    return found


def in_words(evidence: Mapping[str, Any]) -> str:
    """The evidence of a step's decision as a line for people: ``0.0408, above the limit of 0.005``; of a list the beginning."""
    rest, said = dict(evidence), []
    if {"value", "side", "limit"} <= rest.keys():
        value, side, limit = (rest.pop(name) for name in ("value", "side", "limit"))
        said.append(f"{value:.3g}, {side} the limit of {limit:g}")
    examples = rest.pop("examples", [])
    said += [f"{name.replace('_', ' ')} {_in_short(value)}" for name, value in rest.items()]
    return ", ".join(said) + (f"; such as {in_words(examples[0])}" if examples else "")


def _in_short(value: Any) -> str:
    if isinstance(value, list):
        few = ", ".join(map(_in_short, value[:3]))
        return f"{few}, … ({len(value):,} in all)" if len(value) > 3 else few
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def flow(found: dict, split: str = "train") -> list[dict]:
    """What was left after each step: rows of step, title, source, documents, bytes, tokens; the first step is ``read``, the last but for
    up-sampling the shards."""
    cleaning = found["cleaning"]
    if cleaning is None:
        raise CorpusError(f"corpus {found['name']!r} was not cleaned: its recipe has no steps")
    taken = [row for row in cleaning["taken"] if row["split"] == split]
    sources = sorted({row["source"] for row in cleaning["read"]})
    rows = []
    for source in sources:
        left = {count: _sum(cleaning["left"], source, split, count) + _sum(taken, source, split, count) for count in COUNTS}
        rows.append({"step": "read", "title": "read", "source": source} | left)
        for step in cleaning["steps"]:
            mine = [row for row in taken if row["step"] == step["step"]]
            left = {count: left[count] - _sum(mine, source, split, count) for count in COUNTS}
            rows.append({**step, "source": source} | left)
    return rows


def _sum(rows: list[dict], source: str, split: str, count: str) -> int:
    return sum(row[count] for row in rows if row["source"] == source and row["split"] == split)
