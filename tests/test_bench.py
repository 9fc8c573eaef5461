"""The parts of the benchmark, on a model that trains in a moment; the benchmark itself is `cptlab bench`."""

import os
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import tiny

from cptlab import bench
from cptlab.corpora.recipe import local_recipe
from cptlab.runs.request import Request
from cptlab.study import open_study


def _baseline(folder, text, variant):
    """The library's own trainer, in a process of its own."""
    import torch

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # of this session's own engine, if it had one
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    run = tiny.spec(local_recipe({"en": text}, vocab=tiny.VOCAB), 3, mixture={"en": 1})
    seconds = bench._trainer(run, [0, 1], variant)
    (folder / "seconds").write_text(str(seconds))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_baseline_trains(in_process, tmp_path, tiny_home, precision):
    assert in_process(_baseline, tmp_path, tiny_home / "one.txt", bench.Variant(precision, False, "eager")) == 0
    assert float((tmp_path / "seconds").read_text()) > 0


def test_the_baseline_has_every_variant():
    assert len(set(map(str, bench.VARIANTS))) == 8


def test_the_baseline_runs_without_our_memory_settings(monkeypatch):
    name = next(iter(bench.KEEP_MEMORY))
    monkeypatch.setenv(name, "7")
    with bench._stock_environment():
        assert name not in os.environ
    assert os.environ[name] == "7"


def test_serving_and_fixed_cost(recipe, store, torch_once, monkeypatch):
    run = tiny.spec(recipe, 4)
    tiny.trained(store, run)
    assert bench._served(Request(run, steps=(4,)), store, tiny.EXECUTION) > 0
    monkeypatch.setattr(bench, "_specs", lambda steps, seeds: [tiny.spec(recipe, steps, seed=seed) for seed in seeds])
    with ThreadPoolExecutor(1) as pool:
        assert bench._fixed_cost(type(store)(store.root.parent / "fixed"), tiny.EXECUTION, pool, 0.0) > 0


def test_both_types_of_product_are_compared(recipe, tmp_path, torch_once, monkeypatch):
    """The comparison's table, on a study of the tiny corpus whose sweep runs in this process."""
    from types import SimpleNamespace

    names = {"en": "one", "fr": "two"}

    def run(size, source, tokens, lr, seed, schedule, init=None):
        assert lr > 0 and schedule["warmup_tokens"] > 0
        spec = tiny.spec(recipe, tokens, mixture={names[source]: 1}, seed=seed, precision="bf16")
        return tiny.target(init, tokens, seed=seed) if init else spec

    class Here(bench.Grid):
        def train(self):
            for request in self.requests:
                tiny.trained(self.store, request.spec, self.execution, sets=request.sets, steps=request.steps)
            return self.results()

    monkeypatch.setattr(bench, "Grid", lambda store, execution, sets: Here(store, execution, sets=("one:8", "two:8")))
    study = SimpleNamespace(execution=tiny.EXECUTION, tuned=open_study("02_cpt_loss_curves").tuned, run=run)
    monkeypatch.setattr(bench, "open_study", lambda name: study)
    found = bench.compute(("0.17M",), 2, base_tokens=6, tokens=4)
    assert len(found["rows"]) == 8 and len(found["summary"]) == 4
    assert all(row["difference"] == pytest.approx(row["fp32"] - row["bf16"], abs=2e-6) for row in found["rows"])
    assert any(row["difference"] for row in found["rows"])  # the two were computed in two types
    one = pd.DataFrame(found["rows"]).query("arm == 'base' and set == 'one:8'")
    assert found["summary"][0]["difference"] == pytest.approx(one["difference"].mean(), abs=1e-5)
