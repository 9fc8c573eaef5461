"""Verdicts: kept beside the figures, listed with the number that decides, written into the README."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from test_claims import LEDGER, SAVED, decide, write_ledger

from cptlab import claims, cli, outputs, verdicts
from cptlab.errors import ConfigError, StoreError
from cptlab.statistics import Estimate

README = f"Before.\n\n{verdicts.MARKS[0]}\n\nold\n\n{verdicts.MARKS[1]}\n\nAfter.\n"


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch):
    return write_ledger(tmp_path, monkeypatch)


def test_save_merges_and_repeats_to_the_byte(tmp_path):
    path = tmp_path / "figures" / "claims.json"
    assert verdicts.saved() == {}
    verdicts.save([decide(crossing=Estimate(None, math.nan, math.inf, 5))])
    entry = json.loads(path.read_text())["C1.4"]
    assert entry["quantities"]["crossing"] == {
        "value": None,
        "low": None,
        "high": "inf",
        "n": 5,
        "counts": "values",
        "dof": None,
        "verdict": "inconclusive",
    }
    assert entry["quantities"]["savings"]["low"] == 0.3 and entry["runs"] == ["a", "b"]
    assert set(entry) == {"verdict", "quantities", "profile", "notebook", "runs"}  # neither note nor caveat: they may change alone
    assert (entry["verdict"], entry["profile"], entry["notebook"]) == ("inconclusive", "laptop", "02_cpt_loss_curves")
    other = claims.decide("C1.1", {"exponent": SAVED}, "laptop", "02_cpt_loss_curves")
    verdicts.save([other])
    first = path.read_bytes()
    assert list(json.loads(first)) == ["C1.1", "C1.4"]
    verdicts.save([other])
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["claims.json"]


def test_notebooks_that_save_at_once_lose_nothing(ledger):
    entries = yaml.safe_load(LEDGER)
    ledger.write_text(yaml.safe_dump([entries[1] | {"id": f"X{number}"} for number in range(12)]))
    several = [claims.decide(f"X{number}", {"exponent": SAVED}, "laptop", "02_cpt_loss_curves") for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda verdict: verdicts.save([verdict]), several))
    assert len(verdicts.saved()) == 12


def test_a_claim_that_left_the_ledger_leaves_the_verdicts(ledger):
    verdicts.save([decide()])
    ledger.write_text(yaml.safe_dump(yaml.safe_load(LEDGER)[1:]))
    verdicts.save([])
    assert verdicts.saved() == {}


def test_torn_verdicts_are_named(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "claims.json").write_text('{"C1')
    with pytest.raises(StoreError, match=r"claims\.json cannot be read.*cptlab figures"):
        verdicts.saved()


def test_rows_show_the_number_that_decides(ledger):
    verdicts.save([decide(savings=Estimate(0.3, 0.1, 0.5, 3, 2, "pairs", (3.14, 2.84)))])
    first, second = verdicts.rows()
    assert (first["id"], first["verdict"], first["quantity"]) == ("C1.4", "inconclusive", "savings")
    assert (first["effect"], first["low"], first["high"], first["runs"]) == (0.3, 0.1, 0.5, ["a", "b"])
    assert (second["id"], second["verdict"], second["effect"], second["runs"]) == ("C1.1", "not_run", None, [])
    verdicts.save([decide(crossing=Estimate(9e6, 3e6, math.inf, 3))])
    contradicted = verdicts.rows()[0]
    assert (contradicted["verdict"], contradicted["quantity"], contradicted["high"]) == ("contradicted", "crossing", "inf")
    assert "9,000,000 [3,000,000, inf] (crossing) | **contradicted at this scale** |" in verdicts.markdown(verdicts.rows())


def test_a_verdict_without_a_quantity_of_its_rule_is_named():
    verdicts.save([decide()])
    path = outputs.paths.figures_dir() / "claims.json"
    entries = json.loads(path.read_text())
    entries["C1.4"]["quantities"].pop("crossing")
    path.write_text(json.dumps(entries))
    with pytest.raises(StoreError, match="has no crossing for C1.4, which its rule needs: run `cptlab figures 02`"):
        verdicts.rows()


def test_other_profiles_have_the_verdicts_of_their_last_unturned_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_LOCAL", str(tmp_path))
    monkeypatch.delenv("CPTLAB_EXECUTED", raising=False)
    verdicts.save([decide(profile="smoke")], outputs.executed_dir("smoke") / "02_cpt_loss_curves")
    turned = claims.decide("C1.1", {"exponent": SAVED}, "smoke", "02_cpt_loss_curves", (), {"near": "de"})
    verdicts.save([turned], outputs.executed_dir("smoke") / "03_other")
    assert [row["verdict"] for row in verdicts.rows("smoke")] == ["reproduced", "not_run"]
    assert {row["verdict"] for row in verdicts.rows()} == {"not_run"}


def test_the_command_lists_claims_and_writes_the_tables(tmp_path, capsys):
    readme, whole = tmp_path / "README.md", tmp_path / "figures" / "claims.md"
    readme.write_text(README)
    verdicts.save([decide()])
    assert cli.main(["claims", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [set(row) >= {"id", "verdict", "effect", "low", "high", "runs"} for row in shown] == [True, True]
    text = readme.read_text()
    assert text.startswith("Before.") and text.endswith("After.\n") and "old" not in text
    assert "| C1.4 | Continual pre-training saves 25-50 % of FLOPs. | 0.400 [0.300, 0.500] (savings) | **reproduced** |" in text
    assert "| C1.1 | Loss follows a power law. |  | **not_run** |" in text
    assert "share of the FLOPs saved (savings): 0.400 [0.300, 0.500]<br>size at which" in whole.read_text()
    assert cli.main(["claims"]) == 0
    said = capsys.readouterr()
    assert "written" not in said.err and "C1.4" in said.out  # nothing has changed
    assert cli.main(["claims", "--profile", "smoke"]) == 0 and readme.read_text() == text


def test_a_readme_without_marks_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("Mine.")
    with pytest.raises(ConfigError, match="has no lines <!-- claims.*put them where the table of claims belongs"):
        verdicts.write(verdicts.rows())
    assert (tmp_path / "README.md").read_text() == "Mine."
