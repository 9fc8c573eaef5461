"""Verdicts as they are kept and shown: ``claims.json`` beside the figures, and the table of all claims made from it."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cptlab import claims, outputs, paths
from cptlab.claims import Claim, Verdict, wording
from cptlab.errors import ConfigError, StoreError
from cptlab.estimate import Estimate
from cptlab.files import atomic_json, atomic_write

NOT_RUN = "not_run"
MARKS = ("<!-- claims: written by `cptlab claims` -->", "<!-- end of claims -->")  # around the table in the README


def save(verdicts: Iterable[Verdict], folder: Path | None = None) -> None:
    """Merge ``verdicts`` into ``claims.json`` (claim id -> verdict) of ``folder`` (default: that of the figures), dropping ids that the
    ledger no longer has.

    Notebooks may save at the same time: reading and replacing happen under one lock. The same input gives the same bytes.
    """
    from filelock import FileLock

    path = (folder or paths.figures_dir()) / "claims.json"
    guard = paths.cache_dir() / "locks" / f"claims-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.lock"
    guard.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(guard):
        entries = saved(path.parent)
        for verdict in verdicts:
            entries[verdict.claim.id] = {
                "verdict": verdict.outcome,
                "quantities": {
                    quantity: {field: _plain(getattr(estimate, field)) for field in ("value", "low", "high")}
                    | {"n": estimate.n, "counts": estimate.counts, "dof": estimate.dof}
                    | ({"of": _plain(estimate.sides[0]), "minus": _plain(estimate.sides[1])} if estimate.sides else {})
                    | {"verdict": verdict.outcomes[quantity]}
                    for quantity, estimate in verdict.estimates.items()
                },
                "profile": verdict.profile,
                "notebook": verdict.notebook,
                "runs": list(verdict.runs),
            } | ({"dials": dict(verdict.dials)} if verdict.dials else {})
        known = claims.load()
        atomic_json(path, {claim_id: entry for claim_id, entry in entries.items() if claim_id in known})


def _plain(number: float | None) -> float | str | None:
    """JSON form of a number: eight significant digits, as in the figures' CSV; NaN is null, infinities are text."""
    if number is None or math.isnan(number):
        return None
    return float(f"{number:.8g}") if math.isfinite(number) else str(number)


def _number(plain: float | str | None) -> float:
    return math.nan if plain is None else float(plain)


def saved(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """The verdicts in ``claims.json`` of ``folder`` (default: that of the figures; empty without one); StoreError when unreadable."""
    path = (folder or paths.figures_dir()) / "claims.json"
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, dict):
            raise ValueError("expected an object")
    except ValueError as error:
        raise StoreError(f"{path} cannot be read ({error}); delete it and run `cptlab figures`, which writes it anew") from error
    return entries


def of_profile(profile: str) -> dict[str, dict[str, Any]]:
    """Verdicts by id: the committed ones, or those of the last executed notebooks at another profile, no dial turned."""
    if profile == outputs.COMMITTED_PROFILE:
        return saved()
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(outputs.executed_dir(profile).glob("*/claims.json")):
        found |= {claim: entry for claim, entry in saved(path.parent).items() if not entry.get("dials")}
    return found


def rows(profile: str = outputs.COMMITTED_PROFILE) -> list[dict[str, Any]]:
    """One row a claim of the ledger, in its order: ``id``, ``verdict``, the ``quantity`` that decides it with its ``effect``, ``low`` and
    ``high`` (None where there is none), ``runs``, all ``quantities``, ``notebook``, ``source``, ``statement``.

    The quantity that decides is the first, in the ledger's order, whose outcome is the verdict.
    """
    found = of_profile(profile)
    return [_row(claim, found.get(claim.id)) for claim in claims.load().values()]


def _row(claim: Claim, entry: Mapping[str, Any] | None) -> dict[str, Any]:
    row = {"id": claim.id, "verdict": NOT_RUN, "quantity": None, "effect": None, "low": None, "high": None, "runs": []}
    about = {"quantities": {}, "notebook": claim.notebook, "source": claim.source, "statement": claim.statement}
    if entry is None:
        return row | about
    numbers = {test.quantity: entry["quantities"].get(test.quantity) for test in claim.tests}
    if absent := [name for name, number in numbers.items() if number is None]:
        raise StoreError(f"claims.json has no {absent[0]} for {claim.id}, which its rule needs: run `cptlab figures {claim.notebook[:2]}`")
    deciding = next(name for name, number in numbers.items() if number["verdict"] == entry["verdict"])
    number = numbers[deciding]
    row |= {"verdict": entry["verdict"], "quantity": deciding, "effect": number["value"], "low": number["low"], "high": number["high"]}
    return row | {"runs": entry["runs"]} | about | {"quantities": numbers}


def estimate(number: Mapping[str, Any]) -> Estimate:
    """The estimate behind an entry of ``quantities``."""
    value = None if number["value"] is None else float(number["value"])
    sides = (_number(number["of"]), _number(number["minus"])) if "of" in number else None
    return Estimate(value, _number(number["low"]), _number(number["high"]), number["n"], number["dof"], number["counts"], sides)


def markdown(table: list[dict[str, Any]], whole: bool = False) -> str:
    """The rows as a Markdown table: claim, statement, the number that decides, verdict; ``whole``: every quantity with what it means."""
    ledger = claims.load()
    lines = ["| claim | what it says | ours [95 % interval] | verdict |", "|---|---|---|---|"]
    for row in table:
        claim, numbers = ledger[row["id"]], row["quantities"]
        meanings = {test.quantity: test.meaning for test in claim.tests}
        if whole:
            shown = "<br>".join(f"{meanings[name]} ({name}): {estimate(number).number}" for name, number in numbers.items())
        else:
            shown = f"{estimate(numbers[row['quantity']]).number} ({row['quantity']})" if numbers else ""
        cells = (row["id"], claim.statement, shown, f"**{wording(row['verdict'], claim.audit)}**")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def write(table: list[dict[str, Any]]) -> list[Path]:
    """Write the table into ``claims.md`` beside the figures and between the marks of the README; returns the files that changed.

    Raises:
        ConfigError: a README without the marks.
    """
    whole = paths.figures_dir() / "claims.md"
    texts = {whole: f"# Claims\n\nThe rules stand in `claims.yaml`; `cptlab claims` writes this table.\n\n{markdown(table, whole=True)}"}
    readme = paths.root() / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, mark, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not mark or not end:
        raise ConfigError(f"{readme} has no lines {MARKS[0]} and {MARKS[1]}: put them where the table of claims belongs")
    texts[readme] = f"{before}{mark}\n\n{markdown(table)}\n{end}{after}"
    changed = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        atomic_write(path, texts[path])
    return changed
