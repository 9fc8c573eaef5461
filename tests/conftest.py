"""Shared fixtures. No test writes in the repository: runs and figures go to temporary folders."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _stores_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPTLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CPTLAB_FIGURES", str(tmp_path / "figures"))


@pytest.fixture
def repository() -> Path:
    """The real repository, to read."""
    return REPOSITORY


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository of its own, with the default places below it."""
    root = tmp_path / "lab"
    (root / "notebooks").mkdir(parents=True)
    (root / "claims.yaml").write_text("[]\n")
    for name in ("CPTLAB_RUNS", "CPTLAB_FIGURES", "CPTLAB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CPTLAB_ROOT", str(root))
    return root


@pytest.fixture
def write_notebook() -> Callable[..., Path]:
    """``write(path, (tags, source), ...)`` makes a notebook of code cells."""

    def write(path: Path, *cells: tuple[str, str]) -> Path:
        code = [
            {
                "cell_type": "code",
                "id": f"cell-{number}",
                "metadata": {"tags": tags.split()} if tags else {},
                "execution_count": None,
                "outputs": [],
                "source": source.splitlines(keepends=True),
            }
            for number, (tags, source) in enumerate(cells)
        ]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        path.write_text(json.dumps({"cells": code, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
        return path

    return write


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text and cache of the tiny corpus, shared by the tests that train."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def recipe(tiny_home: Path, monkeypatch: pytest.MonkeyPatch):
    """The tiny corpus, built once a session."""
    from tiny import make_recipe

    monkeypatch.setenv("CPTLAB_CACHE", str(tiny_home / "cache"))
    return make_recipe(tiny_home)


@pytest.fixture
def store(tmp_path: Path):
    """An empty store."""
    from cptlab.runs.store import Store

    return Store(tmp_path / "runs")


@pytest.fixture
def torch_once():
    """torch on one thread, for tests that train in this process."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


@pytest.fixture
def interrupted(monkeypatch):
    """``interrupted(step, call, ...)`` calls, and stops the training that this starts when ``step`` is about to be made."""

    def run(step, call, *arguments):
        from cptlab.training import trainer

        rate = trainer.learning_rate

        def stop(spec, at):
            if at == step:
                raise KeyboardInterrupt
            return rate(spec, at)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(trainer, "learning_rate", stop)
            call(*arguments)

    return run


@pytest.fixture(scope="session")
def processes():
    """Fresh processes that have the imports behind them: each starts where a worker's first run does."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    late = ("deepspeed.runtime.zero.muon.muon_optimizer", "transformers.models.llama.modeling_llama")  # imported when a model is made
    context.set_forkserver_preload(["cptlab.training.trainer", *late])
    return context


@pytest.fixture
def in_process(recipe, processes):
    """``in_process(function, ...)`` runs it in a process of its own and returns the exit code (negative: the signal that killed it)."""

    def call(function, *arguments) -> int:
        process = processes.Process(target=function, args=arguments)
        process.start()
        process.join(120)
        assert not process.is_alive()
        return process.exitcode

    return call
