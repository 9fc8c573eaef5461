"""Side-by-side measurements of training and serving, printed or kept as JSON; nothing here is a pass or a fail."""

import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cptlab.errors import StoreError
from cptlab.runs.provenance import collect
from cptlab.runs.request import Request
from cptlab.runs.spec import RunSpec
from cptlab.runs.store import Store
from cptlab.study import Study, load_profile
from cptlab.sweep.pools import KEEP_MEMORY, local_pool
from cptlab.sweep.process import initialise
from cptlab.sweep.scheduler import train as sweep
from cptlab.sweep.worker import work

RUNS = 4
SIZE = "0.71M"


def _study() -> Study:
    return Study("bench", "laptop", load_profile("laptop"))


def _specs(steps: int, seeds: range) -> list[RunSpec]:
    study = _study()
    return [study.run(SIZE, "en", steps * study.frame["batch_tokens"], 3e-3, seed=seed) for seed in seeds]


def _request(spec: RunSpec) -> Request:
    return Request(spec, {"notebook": "bench"}, steps=(spec.steps,))


def _trainer(spec: RunSpec, seeds: list[int], compiled: bool) -> float:
    """Seconds that ``transformers.Trainer`` takes for the run once a seed, one after another, in this process."""
    import logging
    from dataclasses import replace

    import torch
    from transformers import Trainer, TrainingArguments

    from cptlab.corpora import open_corpus
    from cptlab.runs.execution import Execution
    from cptlab.training.models import build_model
    from cptlab.training.sampler import Sampler

    logging.getLogger("transformers").setLevel(logging.ERROR)
    corpus = open_corpus(spec.corpus)
    seconds = 0.0
    for seed in seeds:
        spec = replace(spec, seed=seed, mixture=dict(spec.mixture), upstreams={})
        # Uncompiled as its users get it (sdpa, the library's default); compiled with the attention that our engine compiles.
        model = build_model(spec, Execution(attention="eager" if compiled else "sdpa"))
        sampler = Sampler({"en": corpus.tokens("en")}, dict(spec.mixture), spec.model.context, spec.batch, seed)
        windows = [torch.from_numpy(window[:-1]) for step in range(spec.steps) for window in sampler.windows_of(step)]
        rows = [{"input_ids": window, "labels": window} for window in windows]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, per_device_train_batch_size=spec.batch, max_steps=spec.steps, learning_rate=spec.schedule.max_lr,
                lr_scheduler_type="cosine", warmup_steps=round(0.05 * spec.steps), weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0,
                bf16=True, use_cpu=True, torch_compile=compiled, optim="adamw_torch_fused", save_strategy="no", logging_strategy="no",
                report_to=[], disable_tqdm=True, seed=seed,
            )  # fmt: skip
            trainer = Trainer(model=model, args=arguments, train_dataset=rows)
            started = time.perf_counter()
            trainer.train()
            seconds += time.perf_counter() - started
    return seconds


@contextlib.contextmanager
def _stock_environment():
    """The baseline's processes start without the memory settings of our workers: as the library's users run it."""
    held = {name: os.environ.pop(name) for name in KEEP_MEMORY if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


def train(steps: int = 60, rounds: int = 1) -> dict:
    """Time a sweep of four small laptop runs through DeepSpeed against ``transformers.Trainer`` (bf16, both cores, ``torch_compile`` off
    and on), the same four runs one after another; interleaved, both warm, imports and first compilation left out of both.

    Returns a dictionary with ``speedup`` (best baseline seconds over our seconds, medians over the rounds), ``utilisation`` (of the
    matrix-product rate measured in the worker's own process, in the type that it computes in), ``tokens_per_s`` of both, ``served_ms``
    of a cached run and ``fixed_cost_s`` of a run in a warm worker.
    """
    study = _study()
    execution = study.execution
    times: dict[str, list[float]] = {"cptlab": [], "trainer": [], "trainer_compiled": []}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pool = local_pool(execution)
        baselines = {
            name: ProcessPoolExecutor(1, mp_context=context, initializer=initialise, initargs=(execution.workers,))
            for name in ("trainer", "trainer_compiled")
        }
        try:
            warm = Store(Path(folder) / "warm")
            sweep([_request(s) for s in _specs(4, range(100, 100 + 2 * execution.workers))], warm, execution, pool)
            spec = _specs(steps, range(1))[0]
            with _stock_environment():
                for name, executor in baselines.items():
                    executor.submit(_trainer, _specs(4, range(1))[0], [100], name == "trainer_compiled").result()
            for turn in range(rounds):
                store = Store(Path(folder) / f"round-{turn}")
                requests = [_request(s) for s in _specs(steps, range(RUNS))]
                started = time.perf_counter()
                sweep(requests, store, execution, pool)
                times["cptlab"].append(time.perf_counter() - started)
                for name, executor in baselines.items():
                    times[name].append(executor.submit(_trainer, spec, list(range(RUNS)), name == "trainer_compiled").result())
            utilisation = [store.record(r.id)["summary"]["utilisation"] for r in requests]
            step_seconds = statistics.median(times["cptlab"]) / RUNS * execution.workers / steps
            fixed = _fixed_cost(Store(Path(folder) / "fixed"), execution, pool, step_seconds)
            served = _served(requests[0], store, execution)
        finally:
            for executor in (pool, *baselines.values()):
                executor.shutdown(cancel_futures=True)
    tokens = RUNS * steps * study.frame["batch_tokens"]
    median = {name: statistics.median(values) for name, values in times.items()}
    best = min(("trainer", "trainer_compiled"), key=median.get)
    return {
        "speedup": round(median[best] / median["cptlab"], 3),
        "utilisation": round(statistics.median(utilisation), 3),
        "tokens_per_s": {name: round(tokens / seconds) for name, seconds in median.items()},
        "seconds": {name: [round(v, 2) for v in values] for name, values in times.items()},
        "baseline": best,
        "served_ms": served,
        "fixed_cost_s": fixed,
        "runs": RUNS,
        "steps": steps,
        "model": SIZE,
        "provenance": collect(),
    }


def _fixed_cost(store: Store, execution, pool, step_seconds: float) -> float:
    """Seconds of a short run in a warm worker beyond those of its steps: median of five."""
    seconds = []
    for spec in _specs(4, range(200, 205)):
        started = time.perf_counter()
        pool.submit(work, _request(spec), store.root, execution).result()
        seconds.append(time.perf_counter() - started - 4 * step_seconds)
    return round(statistics.median(seconds), 3)


def _served(request: Request, store: Store, execution) -> float:
    """Milliseconds to serve a finished run from the store as tables: median of twenty."""
    from cptlab.sweep.grid import Grid

    def once() -> float:
        started = time.perf_counter()
        grid = Grid(store, execution)
        grid.add(request.spec, sets=request.sets, steps=request.steps)
        grid.train()
        return 1000 * (time.perf_counter() - started)

    once()
    return round(statistics.median(once() for _ in range(20)), 2)


def serve(notebook: str = "02_cpt_loss_curves") -> dict:
    """Time to serve the finished runs behind a notebook, all together and a run: ``{"runs", "served_ms", "total_ms", "provenance"}``."""
    from cptlab import notebooks
    from cptlab.sweep.grid import Grid

    grid = notebooks.plan(notebooks.find([notebook])[0], {"profile": "laptop"}).grid
    cells = [(request, labels) for request, labels in grid._cells if grid.store.status(request.id) == "done"]
    if not cells:
        raise StoreError(f"{grid.store.root} has no finished run of {notebook}: train it first (cptlab figures {notebook})")

    def once(chosen: list) -> float:
        started = time.perf_counter()
        served = Grid(grid.store, grid.execution)
        served._cells = chosen
        served.results()
        return 1000 * (time.perf_counter() - started)

    once(cells)
    single = statistics.median(once([cell]) for cell in cells)
    total = statistics.median(once(cells) for _ in range(3))
    return {"runs": len(cells), "served_ms": round(single, 2), "total_ms": round(total, 1), "provenance": collect()}
