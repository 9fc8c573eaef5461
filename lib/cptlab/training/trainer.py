"""Train one run from its specification to its record: the loop, its measurements, its checkpoints and its resume."""

import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch.distributed as dist

from cptlab.corpora import open_corpus
from cptlab.errors import StoreError, TrainingError
from cptlab.files import atomic_json, sha256_file
from cptlab.machine import matmul_rate
from cptlab.runs.execution import Execution
from cptlab.runs.lacking import Lacking, lacking
from cptlab.runs.record import base_record, compute_of, failed_record
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.training.engine import DTYPES, Engine, compute_type, here, masters_into, round_weights, start_process_group
from cptlab.training.evaluation import evaluation_windows, measure_checkpoints
from cptlab.training.models import build_model
from cptlab.training.objectives import build_objective
from cptlab.training.sampler import Sampler
from cptlab.training.schedules import learning_rate
from cptlab.training.upstreams import open_upstreams

PROGRESS_SECONDS = 1.0
CURVE_ROWS = 100


class NonFiniteLoss(TrainingError):
    """The loss or the gradient is not a finite number: the run has diverged. Training it again ends the same way."""


def sizes(model) -> dict[str, int]:
    """Numbers of parameters of a loaded model: total, trainable, and without embeddings."""
    total = sum(p.numel() for p in model.parameters())
    embeddings = {id(p): p.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings()) for p in m.parameters()}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"total": total, "trainable": trainable, "non_embedding": total - sum(embeddings.values())}


class Training:
    """One run in training: the engine, what has been measured so far, and how to save and resume both."""

    def __init__(self, request: Request, store: Store, execution: Execution, wanted: Lacking, lock=None):
        self.request, self.spec, self.store, self.execution = request, request.spec, store, execution
        self.wanted, self.lock = wanted, lock
        self.rank, self.world = start_process_group()
        self.lead = self.rank == 0
        self.corpus = open_corpus(self.spec.corpus)
        self.sets = {name: evaluation_windows(self.corpus, name, self.spec.model.context) for name in request.sets}
        training = {name: self.corpus.tokens(name, "train") for name in self.spec.mixture}
        length, stride = self.spec.window
        self.sampler = Sampler(training, dict(self.spec.mixture), stride, self.spec.batch, self.spec.seed, length)
        self.every = max(1, self.spec.steps // CURVE_ROWS)
        self.curve, self.measured, self.samples = [], [], []
        self.step, self.seconds, self.train_seconds, self.timed_steps = 0, 0.0, 0.0, 0
        self._start_engine()

    # --- start and resume --------------------------------------------------------------------------------------------------

    def _start_engine(self) -> None:
        init = self.spec.upstreams.get("init")
        weights = None
        if init is not None and init.run is not None:
            weights = self.store.checkpoint(init.run.id, init.step)
        model = build_model(self.spec, self.execution, weights)
        self.parameters = sizes(model)
        saved = self._saved()
        began = None
        if saved:
            began = saved[0].get("compute", self.spec.precision)
        elif not self.wanted.record:  # a finished run, trained again for an early checkpoint
            began = compute_of(self.store.record(self.spec.id))
        compute = compute_type(self.spec.precision, self.execution, began)
        if compute != self.spec.precision:
            round_weights(model, self.spec.precision)
        if saved:
            masters_into(model, saved[1])
        upstreams = open_upstreams(self.spec, self.execution, self.store, DTYPES[compute], here())
        self.hub_sizes = {name: sizes(other)["non_embedding"] for name, other in (upstreams | {"init": model}).items()}
        self.engine = Engine(self.spec, self.execution, build_objective(model, self.spec, upstreams), compute)
        if saved:
            meta, path = saved
            self.engine.restore(path, meta["optimizer_steps"])
            self.step, self.seconds = meta["step"], meta["seconds"]
            self.train_seconds, self.timed_steps = meta["train_seconds"], meta["timed_steps"]
            self.curve, self.measured, self.samples = meta["curve"], meta["measurements"], meta["samples"]
        elif self.spec.optimiser.state == "carry":
            path = self.store.optimiser_state(init.run.id, init.step)
            if not path.is_file():
                raise StoreError(f"{path} is not here: train run {init.run.id} again with its optimiser state kept at step {init.step}")
            self.engine.carry_moments(path, init.step)

    def _saved(self) -> tuple[dict, Path] | None:
        """The state to resume from, verified by its hash; a torn or foreign one is left aside and training starts anew."""
        note = self.store.state_dir(self.spec.id) / "resume.json"
        try:
            meta = json.loads(note.read_text())
            path = note.parent / meta["file"]
            return (meta, path) if sha256_file(path) == meta["sha256"] and meta["asked"] == self._asked() else None
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _asked(self) -> list:
        """What the measurements so far answer; a resumed run that is asked for more starts anew, or early steps would lack them."""
        prompts = [[p.text, p.length, p.temperature, p.seed] for p in self.request.prompts]
        return [sorted(self.request.sets), sorted(self.request.steps), prompts, sorted(self.request.keep), sorted(self.request.keep_state)]

    def _save(self) -> None:
        folder = self.store.state_dir(self.spec.id)
        path = folder / f"state-{self.step:08d}.safetensors"
        self.engine.save_state(path)
        if self.lead:
            meta = {
                "step": self.step, "optimizer_steps": self._optimizer_steps(), "seconds": self._elapsed(),
                "train_seconds": self.train_seconds, "timed_steps": self.timed_steps, "curve": self.curve,
                "measurements": self.measured, "samples": self.samples, "file": path.name,
                "sha256": sha256_file(path), "asked": self._asked(), "compute": self.engine.compute,
            }  # fmt: skip
            atomic_json(folder / "resume.json", meta)
            for old in folder.glob("state-*.safetensors"):
                if old != path:
                    old.unlink()

    def _optimizer_steps(self) -> int:
        from cptlab.training.optimiser_state import optimizer_steps

        return optimizer_steps(self.engine.deepspeed)

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.began

    # --- the loop ----------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train from where the run stands to its last step."""
        self.began = self.last_note = time.perf_counter()
        spec, last = self.spec, max(self._needed_steps())
        totals, count, norm = None, 0, float("nan")
        if self.step == 0:
            self._measure_and_keep()
        while self.step < last:
            lr = learning_rate(spec, self.step)
            started = time.perf_counter()
            means, norm = self.engine.train_step(lambda first, count: self.sampler.windows_of(self.step, first, count), lr)
            totals = means if totals is None else {name: totals[name] + mean for name, mean in means.items()}
            count += 1
            self.step += 1
            if self.step % self.every == 0 or self.step == spec.steps:
                means = {name: self.engine.mean_over_ranks(total / count) for name, total in totals.items()}
                mean = means["loss_nats"]
                if not np.isfinite(mean) or not np.isfinite(norm):
                    raise NonFiniteLoss(
                        f"run {spec.id}: the training loss is {mean}, the gradient norm {norm} at step {self.step} of {spec.steps} "
                        f"(learning rate {lr:.3g}): lower schedule.max_lr or lengthen the warm-up"
                    )
                self.curve.append({"step": self.step, "tokens": self.step * spec.batch_tokens, "lr": lr, "grad_norm": norm} | means)
                totals, count = None, 0
            if self.step > 2:  # the first steps compile
                self.train_seconds += time.perf_counter() - started
                self.timed_steps += 1
            self._measure_and_keep()
            if self.step % (-(-self.execution.state_every // self.every) * self.every) == 0 and self.step < last:
                self._save()
            self._note()

    def _needed_steps(self) -> set[int]:
        """The steps to reach: all of them, or fewer when a finished run is only replayed for an early checkpoint."""
        if self.wanted.record:
            return {self.spec.steps}
        wanted = self.wanted
        measured = (step for step, _ in wanted.measurements)
        return {self.spec.steps if wanted.samples else 0, *wanted.checkpoints, *wanted.states, *measured}

    def _measure_and_keep(self) -> None:
        """Measure and keep what is asked for at this step."""
        step = self.step
        if step in self.request.steps:
            with self.engine.weights_as_saved():
                for name, windows in self.sets.items():
                    row = {"step": step, "tokens": step * self.spec.batch_tokens, "set": name}
                    self.measured.append(row | self.engine.evaluate(windows))
                self.samples += [self._sample(prompt) for prompt in self.request.prompts]
        if step in self.request.keep or step == self.spec.steps or step in self.request.keep_state:
            folder = self.store.checkpoint_dir(self.spec.id, step)
            self.engine.save_weights(folder)
            if step in self.request.keep_state:
                self.engine.save_state(folder / "optimizer.safetensors")

    def _sample(self, prompt) -> dict:
        tokenizer = self.corpus.tokenizer
        tokens = self.engine.generate(tokenizer.encode(prompt.text).ids, prompt.length, prompt.temperature, prompt.seed, self.corpus.eot)
        asked = {"prompt": prompt.text, "seed": prompt.seed, "temperature": prompt.temperature}
        return {"step": self.step, "text": tokenizer.decode(tokens)} | asked

    def _note(self) -> None:
        now = time.perf_counter()
        if self.lead and (now - self.last_note > PROGRESS_SECONDS or self.step == self.spec.steps):
            self.last_note = now
            rate = self.timed_steps * self.spec.batch_tokens / self.train_seconds if self.train_seconds else 0.0
            loss = self.curve[-1]["loss_nats"] if self.curve else None
            note = {
                "step": self.step, "steps": self.spec.steps, "tokens": self.step * self.spec.batch_tokens, "loss_nats": loss,
                "tokens_per_s": rate, "time": time.time(), "measured": self.measured[-8:],
            }  # fmt: skip
            self.store.write_progress(self.spec.id, note)
            if self.lock is not None:
                self.lock.heartbeat()

    # --- the end -----------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Write what was measured and, the first time, the record; the record comes last, for it says that the rest is there."""
        if not self.lead:
            return
        store, run_id = self.store, self.spec.id
        store.add_measurements(run_id, self.measured, replace=self.wanted.record)
        if self.samples:
            store.add_samples(run_id, self.samples)
        if self.wanted.record:
            store.write_curve(run_id, self.curve)
            ended = {"status": "done", "error": None, "summary": self._summary(), "checkpoints": self._checkpoints()}
            store.write_record(run_id, base_record(self.request) | ended | {"provenance": self._provenance()})
        else:
            self._compare_checkpoints()
        store.clear_state(run_id)

    def _summary(self) -> dict:
        spec = self.spec
        flops = spec.flops_with(self.hub_sizes)
        rate = self.timed_steps * spec.batch_tokens / self.train_seconds if self.train_seconds else 0.0
        peak = matmul_rate(self.engine.compute, str(self.engine.device)) * self.world
        return {
            "steps": spec.steps, "tokens": spec.tokens_trained, "epochs": self.sampler.epochs(spec.steps),
            "parameters": self.parameters, "flops": flops,
            "seconds": round(self._elapsed(), 2), "tokens_per_s": round(rate, 1),
            "utilisation": round(rate * flops / spec.tokens_trained / peak, 4), "matmul_flops_per_s": round(peak),
        }  # fmt: skip

    def _checkpoints(self) -> dict:
        out = {}
        for step in self.store.checkpoint_steps(self.spec.id):
            path = self.store.checkpoint(self.spec.id, step)
            out[str(step)] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        return out

    def _compare_checkpoints(self) -> None:
        """A finished run was replayed for its weights: report when they are not the recorded ones, and note new steps."""
        record = self.store.record(self.spec.id)
        for step, entry in self._checkpoints().items():
            known = record["checkpoints"].setdefault(step, entry)
            if known["sha256"] != entry["sha256"]:
                warnings.warn(
                    f"run {self.spec.id}: the weights of step {step}, trained again here, differ from the recorded ones "
                    f"(sha256 {entry['sha256'][:12]}, recorded {known['sha256'][:12]}): another processor or library version rounds "
                    "differently; runs that start from them may differ a little",
                    stacklevel=2,
                )
        self.store.write_record(self.spec.id, record)

    def _provenance(self) -> dict:
        from cptlab.runs.provenance import collect

        names = ("threads", "ranks", "zero_stage", "attention", "activation_checkpointing")
        execution = {name: getattr(self.execution, name) for name in names} | {"compute": self.engine.compute, "bf16": "cast"}
        execution |= {"compile": self.engine.compiled, "micro_batch": self.engine.micro, "device": str(self.engine.device)}
        upstreams = {}
        for name, up in self.spec.upstreams.items():
            if up.run is not None:
                upstreams[name] = {"run": up.run.id, "step": up.step, "sha256": sha256_file(self.store.checkpoint(up.run.id, up.step))}
        return collect() | {"execution": execution, "corpus_shards": self.corpus.shard_hashes, "upstream_weights": upstreams}


def train_or_evaluate(request: Request, store: Store, execution: Execution, lock=None) -> str:
    """Do what the store lacks of ``request``, in this process (all ranks call it); returns the run's status.

    A failure becomes a record with status ``failed``. Interrupts pass through and leave the state to resume from.
    """
    wanted = lacking(store, request)
    if not wanted:
        return store.status(request.id)
    if wanted.train:
        run = None
        try:
            run = Training(request, store, execution, wanted, lock)
            run.train()
            run.finish()
        except Exception as error:  # a run that fails is a record; the sweep goes on
            others = lock is not None and not lock.is_ours()  # another owner took the run over: the record is its to write
            if others or not wanted.record or (dist.is_initialized() and dist.get_rank() != 0):
                raise
            store.write_record(request.id, failed_record(request, type(error).__name__, str(error)[:2000], run.step if run else None))
            return "failed"
        finally:
            if run is not None:
                run.engine.close()
    else:
        measure_checkpoints(request, store, execution, wanted)
    return store.status(request.id)
