"""Side-by-side measurements of training and serving, printed or kept as JSON; nothing here is a pass or a fail."""

import contextlib
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from cptlab.errors import StoreError, TrainingError
from cptlab.runs.execution import Execution
from cptlab.runs.provenance import collect
from cptlab.runs.request import Request
from cptlab.runs.spec import RunSpec
from cptlab.runs.store import Store
from cptlab.study import Study, load_profile, open_study
from cptlab.sweep.grid import Grid
from cptlab.sweep.pools import KEEP_MEMORY, local_pool
from cptlab.sweep.process import initialise, quiet
from cptlab.sweep.scheduler import train as sweep
from cptlab.sweep.worker import work

RUNS = 4
SIZE = "0.71M"
BATCH = 4096  # tokens a step, whatever the profile's: measurements over the versions of this code stay comparable


def _study() -> Study:
    return Study("bench", "laptop", load_profile("laptop"))


def _specs(steps: int, seeds: range) -> list[RunSpec]:
    study, schedule = _study(), {"kind": "cosine", "warmup_tokens": round(0.05 * steps) * BATCH}
    return [study.run(SIZE, "en", steps * BATCH, 3e-3, seed, schedule=schedule, batch_tokens=BATCH) for seed in seeds]


def _request(spec: RunSpec) -> Request:
    return Request(spec, {"notebook": "bench"}, steps=(spec.steps,))


@dataclass(frozen=True)
class Variant:
    """One way to run ``transformers.Trainer`` on a CPU."""

    precision: str
    compiled: bool
    attention: str

    def __str__(self):
        return f"trainer {self.precision} {self.attention}" + (" compiled" if self.compiled else "")


VARIANTS = tuple(Variant(*one) for one in itertools.product(("bf16", "fp32"), (False, True), ("sdpa", "eager")))


def _trainer(spec: RunSpec, seeds: list[int], variant: Variant) -> float:
    """Seconds that ``transformers.Trainer`` takes for the run once a seed, one after another, in this process."""
    import logging

    import torch
    from transformers import Trainer, TrainingArguments

    from cptlab.corpora import open_corpus
    from cptlab.training.models import build_model
    from cptlab.training.phases import PhasedSampler

    logging.getLogger("transformers").setLevel(logging.ERROR)
    corpus = open_corpus(spec.corpus)
    seconds = 0.0
    for seed in seeds:
        spec = replace(spec, seed=seed)
        model = build_model(spec, Execution(attention=variant.attention))
        sampler = PhasedSampler(spec, {name: corpus.tokens(name) for name in spec.mixture})
        windows = [torch.from_numpy(window[:-1]) for step in range(spec.steps) for window in sampler.windows_of(step)]
        rows = [{"input_ids": window, "labels": window} for window in windows]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, per_device_train_batch_size=spec.batch, max_steps=spec.steps, learning_rate=spec.schedule.max_lr,
                lr_scheduler_type="cosine", warmup_steps=spec.schedule.warmup_tokens // BATCH,
                weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0,
                bf16=variant.precision == "bf16", use_cpu=True, torch_compile=variant.compiled, optim="adamw_torch_fused",
                save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, seed=seed,
            )  # fmt: skip
            trainer = Trainer(model=model, args=arguments, train_dataset=rows)
            with quiet():  # it prints a line at its end, and what we print may be JSON
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


@contextlib.contextmanager
def _baseline(variant: Variant, threads: int):
    """A process that runs ``transformers.Trainer`` in one way, imports and first compilation behind it."""
    context = multiprocessing.get_context("spawn")
    with _stock_environment():
        executor = ProcessPoolExecutor(1, mp_context=context, initializer=initialise, initargs=(threads,))
        try:
            executor.submit(_trainer, _specs(4, range(1))[0], [100], variant).result()
            yield lambda steps, seeds: executor.submit(_trainer, _specs(steps, range(1))[0], list(seeds), variant).result()
        finally:
            executor.shutdown(cancel_futures=True)


def train(steps: int = 60, rounds: int = 1, probe: int = 16) -> dict:
    """Time a sweep of four small laptop runs through DeepSpeed against ``transformers.Trainer``, the same four runs one after another on
    all cores; interleaved, both warm, imports and first compilation left out of both.

    The baseline is the best of the Trainer in bf16 and fp32, compiled and not, with sdpa and eager attention: each is tried on ``probe``
    steps, and the two fastest are then timed beside ours.

    Returns a dictionary with ``speedup`` (best baseline seconds over our seconds, medians over the rounds), ``compute`` (what our workers
    multiplied in), ``utilisation`` (of the matrix-product rate of that type measured in the worker's own process), ``tokens_per_s`` of
    ours and the two baselines, ``probed`` (tokens/s of all variants), ``served_ms`` of a cached run and ``fixed_cost_s`` of a run in a
    warm worker.
    """
    study = _study()
    execution, batch = study.execution, BATCH
    probed = {}
    for variant in VARIANTS:
        with _baseline(variant, execution.workers * execution.threads) as timed:
            probed[variant] = probe * batch / timed(probe, range(1))
    best = sorted(probed, key=probed.get)[-2:]
    times: dict[str, list[float]] = {name: [] for name in ("cptlab", *map(str, best))}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        baselines = {str(variant): stack.enter_context(_baseline(variant, execution.workers * execution.threads)) for variant in best}
        pool = stack.enter_context(local_pool(execution))
        warm = Store(Path(folder) / "warm")
        sweep([_request(s) for s in _specs(4, range(100, 100 + 2 * execution.workers))], warm, execution, pool)
        for turn in range(rounds):
            store = Store(Path(folder) / f"round-{turn}")
            requests = [_request(s) for s in _specs(steps, range(RUNS))]
            started = time.perf_counter()
            sweep(requests, store, execution, pool)
            times["cptlab"].append(time.perf_counter() - started)
            for name, timed in baselines.items():
                times[name].append(timed(steps, range(RUNS)))
        records = [store.record(r.id) for r in requests]
        step_seconds = statistics.median(times["cptlab"]) / RUNS * execution.workers / steps
        fixed = _fixed_cost(Store(Path(folder) / "fixed"), execution, pool, step_seconds)
        served = _served(requests[0], store, execution)
    median = {name: statistics.median(values) for name, values in times.items()}
    baseline = min(map(str, best), key=median.get)
    return {
        "speedup": round(median[baseline] / median["cptlab"], 3),
        "compute": records[0]["provenance"]["execution"]["compute"],
        "utilisation": round(statistics.median(record["summary"]["utilisation"] for record in records), 3),
        "tokens_per_s": {name: round(RUNS * steps * batch / seconds) for name, seconds in median.items()},
        "seconds": {name: [round(v, 2) for v in values] for name, values in times.items()},
        "baseline": baseline,
        "probed": {str(variant): round(rate) for variant, rate in probed.items()},
        "served_ms": served,
        "fixed_cost_s": fixed,
        "runs": RUNS,
        "steps": steps,
        "model": SIZE,
        "provenance": collect(),
    }


def compute(sizes: Sequence[str] = ("0.17M", "0.35M"), seeds: int = 3, base_tokens: int = 2_000_000, tokens: int = 1_500_000) -> dict:
    """The same runs multiplied in bf16 and in fp32: an English base and French continued from it, of each size and seed.

    Returns ``rows`` (size, arm, set, seed, bf16 and fp32: final loss in nats, difference: fp32 minus bf16), ``summary`` (a row for each
    size, arm and set: mean difference with its 95 % t interval, the standard deviation between seeds of either type).
    """
    from scipy.stats import t

    study = open_study("02_cpt_loss_curves")
    found: dict[tuple, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("bf16", "fp32"):
            grid = Grid(Store(Path(folder) / kind), replace(study.execution, compute=kind), sets=("en", "fr"))
            for size in sizes:
                of_base, of_arm = (study.tuned(size, arm) for arm in ("base", "continual"))
                for seed in range(seeds):
                    base = study.run(size, "en", base_tokens, seed=seed, **of_base)
                    arm = study.run(size, "fr", tokens, seed=seed, init=base, **of_arm)
                    for name, run in (("base", base), ("continual", arm)):
                        grid.add(run, steps=(run.steps,), arm=name, size=size, seed=seed)
            results = grid.train()
            if not results.failures.empty:
                raise TrainingError(f"runs failed: {results.failures.to_string()}")
            for row in results.measurements.itertuples():
                found.setdefault((row.size, row.arm, row.set, int(row.seed)), {})[kind] = row.loss_nats
    names = ("size", "arm", "set", "seed")
    rows = [dict(zip(names, key, strict=True)) | pair | {"difference": pair["fp32"] - pair["bf16"]} for key, pair in found.items()]
    summary = []
    for key, part in pd.DataFrame(rows).groupby(["size", "arm", "set"], sort=False):
        mean, half = part["difference"].mean(), t.ppf(0.975, len(part) - 1) * part["difference"].sem()
        spread = {f"sd_seeds_{kind}": part[kind].std() for kind in ("bf16", "fp32")}
        values = {"difference": mean, "low": mean - half, "high": mean + half} | spread
        summary.append(dict(zip(names, key, strict=False)) | {name: round(float(value), 5) for name, value in values.items()})
    return {
        "summary": summary,
        "rows": [{name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()} for row in rows],
        "base_tokens": base_tokens,
        "tokens": tokens,
        "provenance": collect(),
    }


def _fixed_cost(store: Store, execution, pool, step_seconds: float) -> float:
    """Seconds of a short run in a warm worker beyond those of its steps: median of five."""
    seconds = []
    for spec in _specs(4, range(200, 205)):
        started = time.perf_counter()
        pool.submit(work, _request(spec), store, execution).result()
        seconds.append(time.perf_counter() - started - 4 * step_seconds)
    return round(statistics.median(seconds), 3)


def _served(request: Request, store: Store, execution) -> float:
    """Milliseconds to serve a finished run from the store as tables: median of twenty."""

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
