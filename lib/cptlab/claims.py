"""The ledger of claims: what a work says, the rule that decides it, and what our runs showed.

``claims.yaml`` holds statements and rules, written before the runs; :mod:`cptlab.verdicts` keeps and shows the verdicts. A rule compares
the ``value`` of an estimate or a bound (``low``, ``high``) with a number: ``low >= 0.25 and value < 0.6``. "and" binds before "or".
"""

import dataclasses
import json
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptlab.errors import ConfigError
from cptlab.estimate import Estimate
from cptlab.paths import root

REPRODUCED = "reproduced"
CONTRADICTED = "contradicted"
INCONCLUSIVE = "inconclusive"

# How people read them: runs decide at their scale, an audit of printed numbers at none.
_OF_RUNS = {CONTRADICTED: "contradicted at this scale"}
_OF_AUDITS = {REPRODUCED: "borne out", CONTRADICTED: "not borne out", INCONCLUSIVE: "left open"}

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_COMPARISON = re.compile(r"\s*(value|low|high)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_CLAIM_FIELDS = {"id": str, "source": str, "statement": str, "notebook": str, "tests": list}
_OPTIONAL_FIELDS = {"published": str, "audit": bool, "note": str, "caveat": str}
_TEST_FIELDS = ("quantity", "meaning", "reproduced", "contradicted")


@dataclass(frozen=True)
class Condition:
    """A rule in parsed form: any of ``alternatives`` whose comparisons (field, operator, number) all hold."""

    text: str
    alternatives: tuple[tuple[tuple[str, str, float], ...], ...]

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read a rule; ValueError says which part is wrong."""
        alternatives = []
        for alternative in re.split(r"\bor\b", text):
            comparisons = []
            for part in re.split(r"\band\b", alternative):
                match = _COMPARISON.fullmatch(part)
                if match is None:
                    raise ValueError(f"{part.strip()!r} is not a comparison of value, low or high with a number, such as 'low >= 0.25'")
                comparisons.append((match[1], match[2], float(match[3])))
            alternatives.append(tuple(comparisons))
        return cls(text, tuple(alternatives))

    def holds(self, estimate: Estimate) -> bool:
        """Whether ``estimate`` meets the rule; a missing value or bound (None, NaN) meets no comparison."""

        def true(field: str, symbol: str, number: float) -> bool:
            found = getattr(estimate, field)
            return found is not None and _OPERATORS[symbol](found, number)

        return any(all(true(*comparison) for comparison in alternative) for alternative in self.alternatives)


@dataclass(frozen=True)
class Test:
    """One quantity that a claim stands on, and the rules over its estimate."""

    __test__ = False  # not a pytest class

    quantity: str
    meaning: str
    reproduced: Condition
    contradicted: Condition


@dataclass(frozen=True)
class Claim:
    """A statement of a work (``source``), the notebook that tests it, and the tests that decide it, all of which must hold.

    ``published`` is the figure or table of the work that shows it; ``audit`` marks a claim about printed numbers, decided without runs.
    ``note`` says what one should know of the claim, ``caveat`` what is known to be wrong with its runs; no rule reads either.
    """

    id: str
    source: str
    statement: str
    notebook: str
    tests: tuple[Test, ...]
    published: str = ""
    audit: bool = False
    note: str = ""
    caveat: str = ""
    line: int = dataclasses.field(default=0, compare=False)  # of the ledger


@dataclass(frozen=True)
class Verdict:
    """What the estimates say of a claim; ``outcomes`` holds the same for each quantity, ``runs`` the ids of the runs behind it."""

    claim: Claim
    outcome: str
    outcomes: dict[str, str]
    estimates: dict[str, Estimate]
    profile: str
    notebook: str
    runs: tuple[str, ...] = ()
    dials: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command that repeats it."""
        number = self.notebook.split("_")[0]
        name = number if number.isdigit() else self.notebook
        profile = "" if self.profile == "laptop" else f" --profile {self.profile}"  # laptop is the default
        return f"cptlab figures {name}{profile}" + "".join(f" {as_option(name, value)}" for name, value in self.dials.items())


def wording(outcome: str, audit: bool = False) -> str:
    """A verdict as people read it: "contradicted at this scale", of an audit "not borne out"."""
    return (_OF_AUDITS if audit else _OF_RUNS).get(outcome, outcome)


def as_option(dial: str, value: Any) -> str:
    """A dial as an option of the command line: ``-p near=de``, ``-p 'seeds=[0, 1]'``."""
    import shlex

    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"-p {shlex.quote(f'{dial}={text}')}"


def check_promises(promises: Mapping[str, Iterable[str]], notebook: str) -> None:
    """Whether a notebook may set out to decide claims (id -> the quantities that it will compute), asked before its runs.

    Raises:
        ConfigError: an id without a rule or of another notebook; a quantity that a rule needs and the notebook does not promise, or
            the other way round.
    """
    ledger = load() if promises else {}
    for claim_id, quantities in promises.items():
        claim = _of(ledger, claim_id, notebook)
        wanted, promised = {test.quantity for test in claim.tests}, set([quantities] if isinstance(quantities, str) else quantities)
        if missing := sorted(wanted - promised):
            raise ConfigError(
                f"claim {claim_id}: its rule (claims.yaml, line {claim.line}) needs {', '.join(missing)}, which {notebook} does not "
                f'promise: compute it and name it in study.grid(decides={{"{claim_id}": [...]}}), or change the rule before the runs'
            )
        if more := sorted(promised - wanted):
            raise ConfigError(f"claim {claim_id}: {notebook} promises {', '.join(more)}, on which no rule in claims.yaml stands: write one")


def _of(ledger: Mapping[str, "Claim"], claim_id: str, notebook: str) -> "Claim":
    if claim_id not in ledger:
        raise ConfigError(f"no claim {claim_id!r} in claims.yaml, which has {', '.join(ledger)}: write its rule there before the runs")
    if ledger[claim_id].notebook != notebook:
        raise ConfigError(f"claim {claim_id} is decided in notebook {ledger[claim_id].notebook!r} (claims.yaml), not in {notebook!r}")
    return ledger[claim_id]


def load(path: Path | None = None) -> dict[str, Claim]:
    """Read and check the ledger (default ``<root>/claims.yaml``): claims by id, in file order; ConfigError names claim and field."""
    import yaml

    path = path or root() / "claims.yaml"
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        entries = loader.construct_document(node) if node else None
    except FileNotFoundError:
        raise ConfigError(f"no claims ledger at {path}; work inside the repository or set CPTLAB_ROOT to it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: expected a list of claims, each starting with '- id: ...'")
    claims: dict[str, Claim] = {}
    for index, (entry, at) in enumerate(zip(entries, node.value, strict=True), 1):
        claim = _claim(path, index, entry, at.start_mark.line + 1)
        if claim.id in claims:
            raise ConfigError(f"{path}, line {claim.line}: two claims have the id {claim.id!r}")
        claims[claim.id] = claim
    return claims


def _claim(path: Path, index: int, entry: Any, line: int) -> Claim:
    where = f"{path}, line {line}: claim {entry['id'] if isinstance(entry, dict) and 'id' in entry else f'number {index}'}"
    _check_keys(where, entry, tuple(_CLAIM_FIELDS), tuple(_OPTIONAL_FIELDS))
    for field, kind in (_CLAIM_FIELDS | _OPTIONAL_FIELDS).items():
        if field in entry and (not isinstance(entry[field], kind) or (field in _CLAIM_FIELDS and not entry[field])):
            expected = {list: "a list that is not empty", str: "a text that is not empty", bool: "true or false"}[kind]
            raise ConfigError(f"{where}, field {field!r}: expected {expected}, got {entry[field]!r}")
    tests = []
    for number, item in enumerate(entry["tests"], 1):
        place = f"{where}, test {number}"
        _check_keys(place, item, _TEST_FIELDS)
        rules = {}
        for field in _TEST_FIELDS:
            if not isinstance(item[field], str) or not item[field].strip():
                raise ConfigError(f"{place}, field {field!r}: expected a text, got {item[field]!r}")
            if field in ("reproduced", "contradicted"):
                try:
                    rules[field] = Condition.parse(item[field])
                except ValueError as error:
                    raise ConfigError(f"{place}, field {field!r}: {error}") from None
        if item["quantity"] in {test.quantity for test in tests}:
            raise ConfigError(f"{place}, field 'quantity': {item['quantity']!r} has a test already")
        tests.append(Test(item["quantity"], item["meaning"].strip(), **rules))
    texts = {field: entry[field].strip() for field in ("id", "source", "statement", "notebook")}
    more = {field: value.strip() if isinstance(value, str) else value for field, value in entry.items() if field in _OPTIONAL_FIELDS}
    return Claim(**texts, tests=tuple(tests), **more, line=line)


def _check_keys(where: str, entry: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected a mapping with the fields {', '.join(required)}, got {entry!r}")
    unknown = [str(key) for key in entry if key not in required + optional]
    if unknown:
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; valid ones are {', '.join(required + optional)}")
    missing = [key for key in required if key not in entry]
    if missing:
        raise ConfigError(f"{where}: field {missing[0]!r} is missing")


def decide(
    claim_id: str,
    estimates: Mapping[str, Estimate],
    profile: str,
    notebook: str,
    runs: Iterable[str] = (),
    dials: Mapping[str, Any] | None = None,
) -> Verdict:
    """Apply a claim's rules to ``estimates`` (quantity -> Estimate).

    Reproduced when every test is, contradicted when any is, else inconclusive. Raises ConfigError for an unknown claim, another
    notebook than the ledger's, a quantity that is missing or unknown, or an estimate that meets both rules of a test.
    """
    claim = _of(load(), claim_id, notebook)
    wanted = [test.quantity for test in claim.tests]
    for quantity in (*wanted, *estimates):
        if quantity not in estimates or quantity not in wanted:
            problem = "is missing" if quantity in wanted else "is not in the ledger"
            raise ConfigError(f"claim {claim_id}: quantity {quantity!r} {problem}; its tests need {', '.join(wanted)}")
    outcomes = {}
    for test in claim.tests:
        estimate = estimates[test.quantity]
        if not isinstance(estimate, Estimate):
            raise ConfigError(f"claim {claim_id}: quantity {test.quantity!r} must be an Estimate, got {type(estimate).__name__}")
        reproduced, contradicted = test.reproduced.holds(estimate), test.contradicted.holds(estimate)
        if reproduced and contradicted:
            raise ConfigError(f"claim {claim_id}: {test.quantity} = {estimate} meets both of its rules; mend claims.yaml")
        outcomes[test.quantity] = REPRODUCED if reproduced else CONTRADICTED if contradicted else INCONCLUSIVE
    found = set(outcomes.values())
    outcome = CONTRADICTED if CONTRADICTED in found else REPRODUCED if found == {REPRODUCED} else INCONCLUSIVE
    shown = {quantity: estimates[quantity] for quantity in wanted}
    return Verdict(claim, outcome, outcomes, shown, profile, notebook, tuple(sorted(set(runs))), dict(dials or {}))
