"""The parts of the benchmark, on a model that trains in a moment; the benchmark itself is `cptlab bench`."""

import os
from concurrent.futures import ThreadPoolExecutor

import tiny

from cptlab import bench
from cptlab.corpora.recipe import local_recipe
from cptlab.runs.request import Request


def _baseline(folder, text, compiled):
    """The library's own trainer, in a process of its own."""
    import torch

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # of this session's own engine, if it had one
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    run = tiny.spec(local_recipe({"en": text}, vocab=tiny.VOCAB), 3, mixture={"en": 1})
    seconds = bench._trainer(run, [0, 1], compiled)
    (folder / "seconds").write_text(str(seconds))


def test_the_baseline_trains(in_process, tmp_path, tiny_home):
    assert in_process(_baseline, tmp_path, tiny_home / "one.txt", False) == 0
    assert 0 < float((tmp_path / "seconds").read_text()) < 60


def test_the_baseline_runs_without_our_memory_settings(monkeypatch):
    name = next(iter(bench.KEEP_MEMORY))
    monkeypatch.setenv(name, "7")
    with bench._stock_environment():
        assert name not in os.environ
    assert os.environ[name] == "7"


def test_serving_and_fixed_cost(recipe, store, torch_once, monkeypatch):
    run = tiny.spec(recipe, 4)
    tiny.trained(store, run)
    milliseconds = bench._served(Request(run, steps=(4,)), store, tiny.EXECUTION)
    assert 0 < milliseconds < 500  # 50 on an idle machine
    monkeypatch.setattr(bench, "_specs", lambda steps, seeds: [tiny.spec(recipe, steps, seed=seed) for seed in seeds])
    with ThreadPoolExecutor(1) as pool:
        assert 0 < bench._fixed_cost(type(store)(store.root.parent / "fixed"), tiny.EXECUTION, pool, 0.0) < 10
