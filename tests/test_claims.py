"""The claims ledger: rules are parsed, not evaluated, and verdicts follow them."""

import math
import re
from pathlib import Path

import pytest
import yaml

from cptlab import claims
from cptlab.cards import Card
from cptlab.errors import ConfigError
from cptlab.statistics import Estimate

LEDGER = """
- id: C1.4
  source: arXiv 2407.02118
  statement: Continual pre-training saves 25-50 % of FLOPs.
  notebook: 02_cpt_loss_curves
  tests:
    - quantity: savings
      meaning: share of the FLOPs saved
      reproduced: "low >= 0.25"
      contradicted: "high < 0.25"
    - quantity: crossing
      meaning: size at which the sign turns
      reproduced: "value > 1e5 and high < 1e6 or value < -1"
      contradicted: "low > 2e6"
  note: Sizes here are <1000 times smaller.
  caveat: The baseline was <badly> tuned.
- id: C1.1
  source: arXiv 2407.02118
  statement: Loss follows a power law.
  notebook: 02_cpt_loss_curves
  tests:
    - {quantity: exponent, meaning: exponent, reproduced: low > 0, contradicted: high < 0}
"""
SAVED, CROSSED = Estimate(0.4, 0.3, 0.5, 9, 12), Estimate(3e5, 2e5, 5e5, 5, 12)


def write_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_ROOT", str(tmp_path))
    monkeypatch.setenv("CPTLAB_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "claims.yaml").write_text(LEDGER)
    return tmp_path / "claims.yaml"


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch):
    return write_ledger(tmp_path, monkeypatch)


def decide(savings=SAVED, crossing=CROSSED, profile="laptop", runs=("b", "a")):
    return claims.decide("C1.4", {"savings": savings, "crossing": crossing}, profile, "02_cpt_loss_curves", runs)


def test_load_keeps_order_and_parses_rules():
    loaded = claims.load()
    assert list(loaded) == ["C1.4", "C1.1"]
    assert loaded["C1.4"].tests[1].reproduced.alternatives == ((("value", ">", 1e5), ("high", "<", 1e6)), (("value", "<", -1.0),))
    assert (loaded["C1.1"].note, loaded["C1.1"].caveat) == ("", "") and loaded["C1.4"].caveat == "The baseline was <badly> tuned."
    assert "Caveat" not in repr(Card(claims.decide("C1.1", {"exponent": SAVED}, "laptop", "02_cpt_loss_curves")))


@pytest.mark.parametrize(
    ("rule", "low", "value", "high", "expected"),
    [
        ("low >= 0.25", 0.25, 1, 1, True),
        ("low > .25", 0.25, 1, 1, False),
        ("low > 0 and high < 1", 0.1, 0.5, 1.0, False),
        ("value < 0 or low > 0 and high <= 1", 0.1, 0.5, 1.0, True),
        ("value < 0 or low > 0 and high <= 1", -2, -1, 9, True),
        ("high < 1e6", 0, 0, math.inf, False),
        ("value > -1", 0, None, 0, False),
        ("low < 1", math.nan, 0, math.nan, False),
    ],
)
def test_conditions(rule, low, value, high, expected):
    assert claims.Condition.parse(rule).holds(Estimate(value, low, high, 3)) is expected


@pytest.mark.parametrize(
    "rule", ["", "low", "low = 1", "mean > 1", "low >= 1 and", "1 < low", "low > 1 or or high < 2", "low > f(1)", "low > 1; 2", "low > nan"]
)
def test_bad_conditions_are_refused(rule):
    with pytest.raises(ValueError, match="is not a comparison"):
        claims.Condition.parse(rule)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("source"), r"claim C1\.4: field 'source' is missing"),
        (lambda c: c.update(sauce="x"), r"claim C1\.4: unknown field 'sauce'; valid ones are id, source"),
        (lambda c: c.update(id=1.4), r"claim 1\.4, field 'id'"),
        (lambda c: c.update(tests=[]), r"claim C1\.4, field 'tests'"),
        (lambda c: c.update(statement=""), r"field 'statement'"),
        (lambda c: c.update(caveat=["x"]), r"claim C1\.4, field 'caveat': expected a text"),
        (lambda c: c["tests"][0].pop("meaning"), r"claim C1\.4, test 1: field 'meaning' is missing"),
        (lambda c: c["tests"][1].update(reproduced="low => 1"), r"claim C1\.4, test 2, field 'reproduced': 'low => 1'"),
        (lambda c: c["tests"][1].update(contradicted=3), r"test 2, field 'contradicted'"),
        (lambda c: c["tests"][1].update(quantity="savings"), r"test 2, field 'quantity': 'savings' has a test already"),
        (lambda c: c.update(id="C1.1"), r"line \d+: two claims have the id 'C1\.1'"),
        (lambda c: c.update(audit="yes"), r"claims\.yaml, line 1: claim C1\.4, field 'audit': expected true or false, got 'yes'"),
    ],
)
def test_a_bad_ledger_names_claim_and_field(ledger, change, message):
    entries = yaml.safe_load(LEDGER)
    change(entries[0])
    ledger.write_text(yaml.safe_dump(entries))
    with pytest.raises(ConfigError, match=message):
        claims.load()


def test_missing_and_broken_files(ledger):
    ledger.write_text("- id: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        claims.load()
    ledger.write_text("C1: x")
    with pytest.raises(ConfigError, match="list of claims"):
        claims.load()
    ledger.unlink()
    with pytest.raises(ConfigError, match="CPTLAB_ROOT"):
        claims.load()


def test_verdicts():
    assert decide().outcome == "reproduced"
    wide = decide(savings=Estimate(0.3, 0.1, 0.5, 3, 2, "pairs"))
    assert wide.outcome == "inconclusive" and wide.outcomes == {"savings": "inconclusive", "crossing": "reproduced"}
    assert decide(savings=Estimate(0.1, 0.0, 0.2, 3, 2)).outcome == "contradicted"
    assert decide(crossing=Estimate(None, math.nan, math.nan, 5)).outcome == "inconclusive"
    assert decide(savings=Estimate(0.3, 0.1, 0.5, 3), crossing=Estimate(9e6, 3e6, math.inf, 3)).outcome == "contradicted"
    assert decide().runs == ("a", "b")


def test_decide_refuses_what_does_not_fit():
    with pytest.raises(ConfigError, match=r"no claim 'C9'.*C1\.4, C1\.1"):
        claims.decide("C9", {}, "laptop", "02_cpt_loss_curves")
    with pytest.raises(ConfigError, match="decided in notebook '02_cpt_loss_curves'"):
        claims.decide("C1.1", {"exponent": SAVED}, "laptop", "03")
    with pytest.raises(ConfigError, match="'crossing' is missing.*need savings, crossing"):
        claims.decide("C1.4", {"savings": SAVED}, "laptop", "02_cpt_loss_curves")
    with pytest.raises(ConfigError, match="'x' is not in the ledger"):
        claims.decide("C1.1", {"exponent": SAVED, "x": SAVED}, "laptop", "02_cpt_loss_curves")
    with pytest.raises(ConfigError, match="Estimate, got float"):
        claims.decide("C1.1", {"exponent": 0.3}, "laptop", "02_cpt_loss_curves")
    with pytest.raises(ConfigError, match="meets both of its rules"):
        claims.decide("C1.1", {"exponent": Estimate(0, 1, -1, 2)}, "laptop", "02_cpt_loss_curves")


def test_card_shows_everything_and_escapes():
    shown = Card(decide(savings=Estimate(0.3, 0.1, 0.5, 3, 2, "pairs")))
    parts = [
        "C1.4",
        "inconclusive",
        "saves 25-50 %",
        "0.300 [0.100, 0.500]",
        "3 pairs",
        "2 runs",
        "cptlab figures 02",
        "profile laptop",
        "1000 times",
        "Caveat:",
    ]
    for text in (shown._repr_html_(), shown._repr_markdown_(), repr(shown)):
        assert [part for part in parts if part not in text] == []
    assert (
        "</b> The baseline was &lt;badly&gt; tuned." in shown._repr_html_()
        and "\n\n**Caveat:** The baseline was <badly> tuned.\n\n" in repr(shown)
    )
    assert "&lt;1000" in shown._repr_html_() and "low &gt;= 0.25" in shown._repr_html_()
    assert "low >= 0.25" in shown._repr_markdown_()
    assert decide(profile="smoke").command == "cptlab figures 02 --profile smoke"


def test_card_links_works_and_keeps_intervals_whole():
    shown = Card(decide(savings=Estimate(0.3, 0.1, 0.5, 3, 2, "pairs", (3.14, 2.84))))._repr_html_()
    assert '<a href="https://arxiv.org/abs/2407.02118">arXiv 2407.02118</a>' in shown
    assert re.search(r'white-space:nowrap">0.300 \[0.100, 0.500\] = 3.140 − 2.840</td>', shown)
    turned = claims.decide("C1.1", {"exponent": SAVED}, "smoke", "02_cpt_loss_curves", (), {"near": "de", "seeds": [0, 1]})
    assert turned.command == "cptlab figures 02 --profile smoke -p near=de -p 'seeds=[0, 1]'"
    assert "profile smoke, near = de, seeds = [0, 1]" in repr(Card(turned))


def test_an_audit_of_printed_numbers_is_worded_as_one(ledger):
    entries = yaml.safe_load(LEDGER)
    ledger.write_text(yaml.safe_dump([entries[1] | {"audit": True, "published": "table 3"}]))
    missed = claims.decide("C1.1", {"exponent": Estimate(-1, -2, -0.5, 3)}, "laptop", "02_cpt_loss_curves")
    for shown in (Card(missed)._repr_html_(), repr(Card(missed))):
        assert "not borne out" in shown and "at this scale" not in shown and "table 3" in shown
    assert (claims.wording("contradicted"), claims.wording("not_run")) == ("contradicted at this scale", "not_run")


def test_promises_are_held_against_the_rules_before_the_runs():
    name = "02_cpt_loss_curves"
    claims.check_promises({"C1.4": ["savings", "crossing"], "C1.1": "exponent"}, name)
    with pytest.raises(ConfigError, match="no claim 'C9' in claims.yaml.*write its rule there before the runs"):
        claims.check_promises({"C9": ["x"]}, name)
    with pytest.raises(
        ConfigError, match=r"C1.4: its rule \(claims.yaml, line 2\) needs crossing, which 02_cpt_loss_curves does not promise"
    ):
        claims.check_promises({"C1.4": ["savings"]}, name)
    with pytest.raises(ConfigError, match="C1.1: 02_cpt_loss_curves promises gain, on which no rule"):
        claims.check_promises({"C1.1": ["exponent", "gain"]}, name)
    with pytest.raises(ConfigError, match="decided in notebook '02_cpt_loss_curves'"):
        claims.check_promises({"C1.1": ["exponent"]}, "03_other")


ROOT = Path(__file__).parents[1]
STUDIES = ROOT.parent / "shared" / "STUDIES.md"


def inventory():
    return yaml.safe_load((ROOT / "lib" / "cptlab" / "published" / "inventory.yaml").read_text())


def published_ids():
    """C1.1 to C4.10, as the inventory counts them."""
    found = []
    for text in inventory()["claims"].values():
        work, last = re.fullmatch(r"(C\d)\.1 to C\d\.(\d+)", text).groups()
        found += [f"{work}.{number}" for number in range(1, int(last) + 1)]
    return found


def test_every_claim_of_the_works_has_a_rule():
    ledger = claims.load(ROOT / "claims.yaml")
    assert len(published_ids()) == 36
    assert {name.split("-")[0] for name in ledger if name.startswith("C")} == set(published_ids())
    assert all(claim.tests for claim in ledger.values())


@pytest.mark.skipif(not STUDIES.is_file(), reason="the studies' own list is not beside this clone")
def test_the_inventory_is_that_of_the_studies():
    assert sorted(set(re.findall(r"\[(C\d\.\d+)\]", STUDIES.read_text()))) == sorted(published_ids())


def test_claims_and_published_figures_belong_to_notebooks_and_those_that_stand_have_theirs():
    """A notebook that is still to come is named by the ledger and the inventory alike, and has no figure yet."""
    rows = inventory()["figures"]
    named = {claim.notebook for claim in claims.load(ROOT / "claims.yaml").values()}
    for row in rows:
        stands = (ROOT / "notebooks" / f"{row['notebook']}.ipynb").is_file()
        missing = [figure for figure in row["ours"] if not (ROOT / "figures" / f"{figure}.png").is_file()]
        assert bool(row["ours"]) == stands and not missing and row["notebook"] in named, row
    absent = {name for name in named if not (ROOT / "notebooks" / f"{name}.ipynb").is_file()}
    assert absent <= {row["notebook"] for row in rows}
