"""The committed records, weights, figures and verdicts hang together. These tests read files only."""

import json
import math
import os
import re

import pandas as pd
import pytest

from cptlab import claims, notebooks, paths, verdicts
from cptlab.files import sha256_file
from cptlab.runs.lacking import lacking
from cptlab.runs.store import Store
from cptlab.study import load_profile

ROOT = paths.root()
STORE = Store(ROOT / "runs")


@pytest.fixture(scope="module", params=["00_first_run", "01_corpora", "02_cpt_loss_curves", "11_published_numbers"])
def grid(request):
    before = os.environ.get("CPTLAB_RUNS")
    os.environ["CPTLAB_RUNS"] = str(ROOT / "runs")
    try:
        yield notebooks.plan(notebooks.find([request.param])[0], {"profile": "laptop"}).grid
    finally:
        os.environ.pop("CPTLAB_RUNS") if before is None else os.environ.__setitem__("CPTLAB_RUNS", before)


def test_every_run_of_the_laptop_profile_is_recorded(grid):
    absent = [request.labels for request in grid.requests if lacking(STORE, request)]
    assert not absent, f"{len(absent)} runs are not in runs/: {absent[:3]}"


def test_records_say_what_made_them(grid):
    for request in grid.requests:
        record = STORE.record(request.id)
        assert record["spec"] == request.spec.canonical()
        assert record["provenance"]["commit"] and record["provenance"]["lock_sha256"] and record["provenance"]["corpus_shards"]
        summary, tokens = record["summary"], request.spec.steps * request.spec.batch_tokens
        assert (summary["steps"], summary["tokens"]) == (request.spec.steps, tokens)
        assert tokens / summary["seconds"] <= summary["tokens_per_s"] * 1.001  # the seconds hold the evaluations, too


def losses(run_id: str, step: int) -> pd.Series:
    """Measured losses by set."""
    table = STORE.measurements(run_id)
    return table[table["step"] == step].set_index("set")["loss_nats"]


def test_losses_begin_where_they_must_and_end_where_training_does(grid):
    for request in grid.requests:
        spec, upstream = request.spec, STORE.record(request.id)["identity"]["upstreams"].get("init")
        first, last = losses(request.id, 0), losses(request.id, spec.steps)
        if upstream is None:  # untrained weights know nothing: all tokens are as likely
            assert ((first - math.log(spec.model.vocab)).abs() < 0.05).all(), request.labels
        else:  # the weights of the upstream, measured again
            before = losses(upstream["run"], upstream["step"])
            shared = first.index.intersection(before.index)
            assert first[shared].to_dict() == pytest.approx(before[shared].to_dict(), abs=0.01), request.labels
        if set(spec.mixture) <= set(last.index):  # in nats a token, on text that was never trained on
            expected = sum(weight * last[name] for name, weight in spec.mixture.items()) / sum(spec.mixture.values())
            trained = STORE.curve(request.id)["loss_nats"].tail(3).mean()
            assert abs(expected - trained) < 0.3 and expected < math.log(spec.model.vocab) - 2, request.labels


def test_bases_of_the_arms_can_be_started_from_without_training():
    files = json.loads((ROOT / "runs" / "base-weights" / "manifest.json").read_text())["files"]
    for name, entry in files.items():
        path = ROOT / "runs" / "base-weights" / name
        assert path.stat().st_size == entry["bytes"]
        assert sha256_file(path) == entry["sha256"] == STORE.record(entry["run"])["checkpoints"][str(entry["step"])]["sha256"]
    assert sum(entry["bytes"] for entry in files.values()) <= 40 * 2**20
    plans = [notebooks.plan(book, {"profile": "laptop"}).grid for book in notebooks.find(["02", "03"])]
    profile = load_profile("laptop")
    sizes = profile["notebooks"]["02_cpt_loss_curves"]["sizes"]
    slow = {size: row["seeds"] for size, row in sizes.items() if size not in ("0.03M", "0.09M")}  # more than two minutes of training
    found = [r for r in plans[0].requests if r.labels["part"] == "base" and r.labels["seed"] in slow.get(r.labels["size"], ())]
    found += [r for r in plans[1].requests if r.labels["part"] == "base"]
    bases = {r.id for r in found if r.spec.corpus.name == profile["frame"]["corpus"]}  # of one corpus, which the other studies use, too
    assert bases and bases == {entry["run"] for entry in files.values()}


def test_rates_and_warm_ups_are_the_choice_of_the_recorded_tuning(monkeypatch):
    """By the rule in the profile: the lowest mean, over budgets, of the loss minus the best loss at that budget; no choice at an edge."""
    monkeypatch.setenv("CPTLAB_RUNS", str(ROOT / "runs"))
    grid = notebooks.plan(notebooks.find(["02"])[0], {"profile": "laptop"}).grid
    profile = load_profile("laptop")
    settings = profile["notebooks"]["02_cpt_loss_curves"]
    tuning, sizes = settings["tuning"], settings["sizes"]
    tried = [r for r in grid.requests if r.labels["part"] == "tuning"]
    rows = [r.labels | {"loss": STORE.measurements(r.id).query("set == @r.labels['language']")["loss_nats"].iloc[-1]} for r in tried]
    table = pd.DataFrame(rows)
    assert len(table) and set(table["budget"]) == set(tuning["budgets"])
    groups = table.groupby(["arm", "role", "size"])
    assert len(groups) == sum(len(tuning[arm][role]) for arm in ("scratch", "continual") for role in ("near", "far"))
    for (arm, role, size), trials in groups:
        named, used = f"{arm}, {role}, {size}", {what: values[arm][role] for what, values in profile["tuned"][size].items()}
        rate = _choice(trials[trials["warmup"] == tuning["first_warmup"]], "rate", named)
        assert rate == tuning[arm][role][size]["best"] == used["lr"], f"{named}: the best rate is {rate}"
        warmup = _choice(trials[trials["rate"] == rate], "warmup", named)
        assert warmup == used["warmup_tokens"], f"{named}: the best warm-up is {warmup}"
        assert tuning["seed"] not in sizes[size]["seeds"], f"{size}: seed {tuning['seed']} chose the rates and decides no claim"


def _choice(trials, what, named):
    losses = trials.pivot(index=what, columns="budget", values="loss")
    best = (losses - losses.min()).mean(axis=1).idxmin()
    assert losses.index.min() < best < losses.index.max(), f"{named}: {what} {best} lies at the edge of what was tried"
    return best


def test_figures_of_the_readme_exist_with_data_and_provenance():
    named = re.findall(r"\(figures/([\w.-]+)\.png\)", (ROOT / "README.md").read_text())
    assert sorted(named) == sorted(path.stem for path in (ROOT / "figures").glob("*.png"))
    for name in named:
        for ending in ("png", "svg", "csv", "json"):
            assert (ROOT / "figures" / f"{name}.{ending}").is_file(), f"figures/{name}.{ending}: run `make figures`"
        provenance = json.loads((ROOT / "figures" / f"{name}.json").read_text())
        computed = {run for run in provenance["runs"] if run.startswith(("corpora/", "laws/"))}
        audit = provenance["notebook"] == "11_published_numbers"  # its figures of published tables come from no run
        assert provenance["profile"] == "laptop" and (provenance["runs"] or audit)
        assert set(provenance["runs"]) - computed <= set(STORE.ids())
        assert all(json.loads((ROOT / "runs" / f"{run}.json").read_text())["record"] == run for run in computed)


def claims_json() -> dict:
    return json.loads((ROOT / "figures" / "claims.json").read_text())


def test_every_claim_that_a_notebook_decides_has_a_verdict_from_the_laptop_profile():
    """The others, whose rules stand before their runs, are `not_run`."""
    found, ledger = claims_json(), claims.load(ROOT / "claims.yaml")
    texts = {path.stem: path.read_text().replace('\\"', "'") for path in (ROOT / "notebooks").glob("*.ipynb")}
    forms = {claim.id: {claim.id, re.sub("-(near|far)$", "-{role}", claim.id)} for claim in ledger.values()}
    decided = {claim.id for claim in ledger.values() if any(f"'{form}'" in texts.get(claim.notebook, "") for form in forms[claim.id])}
    assert set(found) == decided and decided, "run `make figures`"
    assert {entry["profile"] for entry in found.values()} == {"laptop"}


def test_the_tables_of_claims_show_the_recorded_verdicts_and_name_recorded_runs(monkeypatch):
    monkeypatch.setenv("CPTLAB_FIGURES", str(ROOT / "figures"))
    rows = verdicts.rows()
    assert any(row["runs"] for row in rows)
    assert verdicts.markdown(rows) in (ROOT / "README.md").read_text(), "run `cptlab claims`"
    assert verdicts.markdown(rows, whole=True) in (ROOT / "figures" / "claims.md").read_text(), "run `cptlab claims`"
    for row in rows:
        runs = {run for run in row["runs"] if "/" not in run}
        assert runs <= set(STORE.ids()), f"{row['id']}: runs that are not committed"


def test_the_corpora_of_the_laptop_profile_are_recorded_without_text():
    from cptlab import corpora
    from cptlab.corpora.reports import flow

    settings = load_profile("laptop")["notebooks"]["01_corpora"]
    for name in (settings["corpus"], settings["compared"], settings["arms"]["cleaned"]):
        wanted = corpora.recipe(name)
        path = ROOT / "runs" / "corpora" / f"{wanted.fingerprint[:16]}.json"
        assert path.is_file(), f"{path}: run `cptlab figures 01`"
        found = json.loads(path.read_text())
        assert found["fingerprint"] == wanted.fingerprint and found["provenance"]["commit"]
        if wanted.clean:
            assert [row["step"] for row in flow(found)][: len(wanted.clean.steps) + 1] == [
                "read",
                *(step.name for step in wanted.clean.steps),
            ]
            for row in found["cleaning"]["examples"]:  # evidence is names and numbers
                assert all(len(value) < 100 for value in row["evidence"].values() if isinstance(value, str))
    assert len(list((ROOT / "runs" / "corpora").glob("detection-*.json"))) == 1
    assert len(list((ROOT / "runs" / "corpora").glob("quality-*.json"))) == 1
