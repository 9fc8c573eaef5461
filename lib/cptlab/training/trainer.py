"""Train one run from its specification to its record: the loop, its measurements, its checkpoints and its resume."""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from cptlab.corpora import open_corpus
from cptlab.errors import ConfigError, TrainingError
from cptlab.files import atomic_json, sha256_file
from cptlab.machine import matmul_rate
from cptlab.runs import notes
from cptlab.runs.execution import Execution
from cptlab.runs.lacking import Lacking
from cptlab.runs.provenance import collect
from cptlab.runs.record import base_record, compute_of
from cptlab.runs.request import Request
from cptlab.runs.store import Store, same_number
from cptlab.runs.tables import CURVE_COLUMNS, table_text
from cptlab.runs.view import STATE, WEIGHTS, View
from cptlab.training import stopping
from cptlab.training.engine import DTYPES, Engine, compute_type, here, masters_into, round_weights, start_process_group
from cptlab.training.evaluation import measurement
from cptlab.training.guards import check_text, kept_state, upstream_weights
from cptlab.training.models import build_model, flops_per_token_of, parameters_of
from cptlab.training.objectives import build_objective
from cptlab.training.phases import PhasedSampler
from cptlab.training.schedules import learning_rate
from cptlab.training.upstreams import open_upstreams

PROGRESS_SECONDS = 1.0
CURVE_ROWS = 100
CLOCK_STEPS = 10  # between two questions of several ranks whether it is time to save


def as_recorded(row: dict) -> str:
    """A row of the curve with the digits that its table keeps."""
    told = {name: value for name, value in row.items() if name in CURVE_COLUMNS or math.isfinite(value)}  # a phase may lack a column
    return table_text([told], CURVE_COLUMNS, Path("curve.csv"), more=True)


class NonFiniteLoss(TrainingError):
    """The loss or the gradient is not a finite number: the run has diverged. Training it again ends the same way."""


class OtherTrajectory(Exception):
    """A finished run that is trained again does not come to the recorded numbers: from ``step`` on they differ."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


class Training:
    """One run in training: the engine, what has been measured so far, and how to save and resume both."""

    def __init__(self, request: Request, store: Store, execution: Execution, wanted: Lacking, lock=None):
        self.request, self.spec, self.store, self.execution = request, request.spec, store, execution
        self.wanted, self.lock = wanted, lock
        self.rank, self.world = start_process_group()
        self.lead = self.rank == 0
        self.corpus = open_corpus(self.spec.corpus)
        if self.lead:
            notes.opening(store, request)
        check_text(self.corpus, request, store, wanted.view)
        self.sets = self._measurements()
        training = {name: self.corpus.tokens(name, "train") for name in self.spec.mixture}
        self.sampler = PhasedSampler(self.spec, training)
        self.every = max(1, self.spec.steps // CURVE_ROWS)
        self.known = {} if wanted.record else {row["step"]: row for row in wanted.view.curve_rows()}  # of a finished run, replayed
        rows = [] if wanted.record else wanted.view.measurement_rows()
        self.recorded = {(row["step"], row["set"]): row for row in rows}
        self.curve, self.measured, self.samples = [], [], []
        self.since = {}  # since the last row of the curve: sum of the loss, and of what else the objective tells, and number of steps
        self.step, self.seconds, self.train_seconds, self.timed_steps = 0, 0.0, 0.0, 0
        self._start_engine()

    def _measurements(self) -> dict:
        """How to measure each set; one that is only taken along, of a source with too little validation text, is left out."""
        found = {}
        for name in self.request.measured_sets:
            try:
                found[name] = measurement(self.corpus, name, self.spec.model.context)
            except ConfigError:
                if name in self.request.sets:
                    raise
        return found

    # --- start and resume --------------------------------------------------------------------------------------------------

    def _start_engine(self) -> None:
        init = self.spec.upstreams.get("init")
        self.starts = self._upstream_hashes()
        weights = None
        if init is not None and init.run is not None:
            weights = upstream_weights(self.store, init, state=self.spec.optimiser.state != "reset").path
        model = build_model(self.spec, self.execution, weights)
        self.parameters = parameters_of(model) | {"trainable": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        saved, state, began = self._saved(), self.spec.optimiser.state, None
        if saved:
            began = saved[0]["compute"]
        elif not self.wanted.record:  # a finished run, trained again for what its record lacks
            began = compute_of(self.wanted.view.record)
        compute = compute_type(self.spec.precision, self.execution, began)
        if compute != self.spec.precision:
            round_weights(model, self.spec.precision)
        if not saved and self.lead:  # of an earlier attempt, which may have had other bits
            (self.store.clear_checkpoints if self.wanted.record else self.store.clear_replay)(self.spec.id)
        if saved:
            meta, path = saved
        elif state != "reset":
            path = kept_state(self.store, init)
        if saved or state == "continue":
            masters_into(model, path)
        upstreams = open_upstreams(self.spec, self.execution, self.store, DTYPES[compute], here())
        self.hub_flops = {name: flops_per_token_of(other, self.spec.model.context) for name, other in (upstreams | {"init": model}).items()}
        self.engine = Engine(self.spec, self.execution, build_objective(model, self.spec, upstreams), compute)
        if saved:
            self.engine.restore(path)
            self.step, self.seconds = meta["step"], meta["seconds"]
            self.train_seconds, self.timed_steps = meta["train_seconds"], meta["timed_steps"]
            self.curve, self.measured, self.samples = meta["curve"], meta["measurements"], meta["samples"]
            device = self.engine.device
            self.since = {name: (torch.tensor(total, device=device), count) for name, (total, count) in meta["since_row"].items()}
        elif state == "continue":
            self.engine.restore(path)
        elif state == "carry":
            self.engine.carry_moments(path)

    def _saved(self) -> tuple[dict, Path] | None:
        """The state to resume from, verified by its hash; a torn or foreign one is left aside and training starts anew."""
        note = self.store.state_dir(self.spec.id) / "resume.json"
        try:
            meta = json.loads(note.read_text())
            path = note.parent / meta["file"]
            same = meta["asked"] == self._asked() and meta["upstreams"] == self.starts
            return (meta, path) if same and sha256_file(path) == meta["sha256"] else None
        except (FileNotFoundError, ValueError, KeyError, AttributeError):
            return None

    def _asked(self) -> list:
        """What the measurements so far answer; a resumed run that is asked for more starts anew, or early steps would lack them."""
        prompts = [[p.text, p.length, p.temperature, p.seed] for p in self.request.prompts]
        asked = self.request
        return [sorted(asked.measured_sets), list(asked.measured_steps), prompts, sorted(asked.keep), sorted(asked.keep_state)]

    def _save(self) -> None:
        self.last_save = time.perf_counter()
        folder = self.store.state_dir(self.spec.id)
        path = folder / f"state-{self.step:08d}.safetensors"
        self.engine.save_state(path)
        if self.lead:
            meta = {
                "step": self.step, "seconds": self._elapsed(),
                "train_seconds": self.train_seconds, "timed_steps": self.timed_steps, "curve": self.curve,
                "measurements": self.measured, "samples": self.samples, "file": path.name,
                "sha256": sha256_file(path), "asked": self._asked(), "compute": self.engine.compute,
                "upstreams": self.starts,
                "since_row": {name: [float(total), count] for name, (total, count) in self.since.items()},
            }  # fmt: skip
            atomic_json(folder / "resume.json", meta)
            for old in folder.glob("state-*.safetensors"):
                if old != path:
                    old.unlink()

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.began

    # --- the loop ----------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train from where the run stands to its last step."""
        self.began = self.last_note = self.last_save = time.perf_counter()
        spec, last = self.spec, self._last_step()
        for row in self.curve:  # of a state that a replay resumes from
            self._compare(row)
        if self.step == 0:
            self._measure_and_keep()
        self._note(f"resumed at step {self.step}" if self.step else "compiling" if self.engine.compiled else "making the first step")
        while self.step < last:
            lr = learning_rate(spec, self.step)
            started = time.perf_counter()
            self.engine.module.turn_to(self.sampler.phase_of(self.step))
            means, norm = self.engine.train_step(lambda first, count: self.sampler.windows_of(self.step, first, count), lr, step=self.step)
            for name, mean in means.items():
                total, count = self.since.get(name, (0.0, 0))
                self.since[name] = total + mean, count + 1
            self.step += 1
            if self.step % self.every == 0 or self.step == spec.steps:
                means = {name: self.engine.mean_over_ranks(total / count) for name, (total, count) in self.since.items()}
                mean = means["loss_nats"]
                if not np.isfinite(mean) or not np.isfinite(norm):
                    raise NonFiniteLoss(
                        f"run {spec.id}: the training loss is {mean}, the gradient norm {norm} at step {self.step} of {spec.steps} "
                        f"(learning rate {lr:.3g}): lower schedule.max_lr or lengthen the warm-up"
                    )
                row = {"step": self.step, "tokens": self.step * spec.batch_tokens, "lr": lr, "grad_norm": norm} | means
                self.curve.append(row)
                self._compare(row)
                self.since = {}
            if self.step > 2:  # the first steps compile
                self.train_seconds += time.perf_counter() - started
                self.timed_steps += 1
            self._measure_and_keep()
            stop = stopping.asked() and self.world == 1  # several ranks would have to agree
            if self.step < last and (stop or self._save_is_due()):
                self._save()
                if stop:
                    self._note("stopped")
                    raise stopping.Stopped(f"run {spec.id}: stopped at step {self.step} of {spec.steps}")
            self._note()

    def _save_is_due(self) -> bool:
        """By steps, or by the clock of the first rank, which several ranks ask now and then only."""
        if self.step % self.execution.state_every == 0:
            return True
        late = time.perf_counter() - self.last_save > self.execution.state_seconds
        if self.world == 1:
            return late
        if self.step % CLOCK_STEPS:
            return False
        answer = [late]
        dist.broadcast_object_list(answer, src=0)
        return answer[0]

    def _compare(self, row: dict) -> None:
        """A replay whose curve leaves the recorded one is another trajectory: nothing of it may be added to the record."""
        known = self.known.get(row["step"])
        if known is not None and as_recorded(row) != as_recorded(known):
            raise OtherTrajectory(row["step"])

    def _compare_weights(self, step: int, path: Path) -> None:
        recorded = None if self.wanted.record else self.wanted.view.record["checkpoints"].get(str(step))
        if recorded:
            answer = [self.lead and recorded["sha256"] != sha256_file(path)]  # the first rank has written it
            if self.world > 1:
                dist.broadcast_object_list(answer, src=0)
            if answer[0]:
                raise OtherTrajectory(step)

    def _compare_measured(self, row: dict) -> None:
        known = self.recorded.get((row["step"], row["set"]))
        if known and not all(same_number(known[name], row[name]) for name in ("loss_nats", "accuracy")):
            raise OtherTrajectory(row["step"])

    def _last_step(self) -> int:
        """The step to reach: the last one, or an earlier one when a finished run is only replayed for what its record lacks."""
        wanted = self.wanted
        if wanted.record or wanted.samples:
            return self.spec.steps
        last = max([0, *wanted.checkpoints, *wanted.states, *(step for step, _ in wanted.measurements)])
        return min(self.spec.steps, -(-last // self.every) * self.every)  # to a row of the curve: it tells whether this is the recorded run

    def _measure_and_keep(self) -> None:
        """Measure and keep what is asked for at this step."""
        step = self.step
        if step in self.request.measured_steps:
            self._note("evaluating")
            with self.engine.weights_as_saved():
                for name, measure in self.sets.items():
                    row = {"step": step, "tokens": step * self.spec.batch_tokens, "set": name}
                    self.measured.append(row | measure(self.engine))
                    self._compare_measured(self.measured[-1])
                if step in self.request.steps:
                    self.samples += [self._sample(prompt) for prompt in self.request.prompts]
        if step in self.request.keep or step == self.spec.steps or step in self.request.keep_state:
            place = self.store.checkpoint_dir if self.wanted.record else self.store.replay_dir
            folder = place(self.spec.id, step)
            self.engine.save_weights(folder)
            if step in self.request.keep_state:
                self.engine.save_state(folder / STATE)
            if self.lead and self.wanted.record:
                self.store.note_checkpoint(self.spec.id, step)
            self._compare_weights(step, folder / WEIGHTS)

    def _sample(self, prompt) -> dict:
        tokenizer = self.corpus.tokenizer
        tokens = self.engine.generate(tokenizer.encode(prompt.text).ids, prompt.length, prompt.temperature, prompt.seed, self.corpus.eot)
        asked = {"prompt": prompt.text, "seed": prompt.seed, "temperature": prompt.temperature, "length": prompt.length}
        return {"step": self.step, "text": tokenizer.decode(tokens)} | asked

    def _note(self, phase: str = "") -> None:
        """Note how far the run is: when a phase begins, and in training about once a second."""
        now = time.perf_counter()
        if self.lead and (phase or now - self.last_note > PROGRESS_SECONDS or self.step == self.spec.steps):
            self.last_note = now
            rate = self.timed_steps * self.spec.batch_tokens / self.train_seconds if self.train_seconds else 0.0
            loss = self.curve[-1]["loss_nats"] if self.curve else None
            far = {"step": self.step, "tokens": self.step * self.spec.batch_tokens, "measured": self.measured}
            notes.write(self.store, self.request, phase or "training", loss_nats=loss, tokens_per_s=rate, **far)
            if self.lock is not None:
                self.lock.check()

    # --- the end -----------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Write what was measured and, the first time, the record; the record comes last, for it says that the rest is there."""
        if not self.lead:
            return
        store, run_id = self.store, self.spec.id
        if not self.wanted.record:
            store.prove(run_id)
            store.take_replay(run_id)
        store.add_measurements(run_id, self.measured, replace=self.wanted.record)
        store.add_samples(run_id, self.samples, replace=self.wanted.record)
        if self.wanted.record:
            store.write_curve(run_id, self.curve)
            ended = {"status": "done", "error": None, "summary": self._summary(), "checkpoints": self._checkpoints()}
            store.write_record(run_id, base_record(self.request) | ended | {"provenance": self._provenance()})
        store.clear_state(run_id)

    def _summary(self) -> dict:
        spec = self.spec
        flops = spec.flops_with(self.hub_flops)
        rate = self.timed_steps * spec.batch_tokens / self.train_seconds if self.train_seconds else 0.0
        peak = matmul_rate(self.engine.compute, str(self.engine.device)) * self.world
        return {
            "steps": spec.steps, "tokens": spec.tokens_trained, "epochs": self.sampler.epochs(), "shares": self.sampler.shares(),
            "parameters": self.parameters, "flops": flops,
            "seconds": round(self._elapsed(), 2), "tokens_per_s": round(rate, 1),
            "utilisation": round(rate * flops / spec.tokens_trained / peak, 4), "matmul_flops_per_s": round(peak),
        }  # fmt: skip

    def _checkpoints(self) -> dict:
        view = View(self.spec.id, (self.store.path(self.spec.id),), "local")
        kept = {step: view.checkpoint(step) for step in view.checkpoint_steps()}
        return {str(step): {"sha256": found.sha256, "bytes": found.path.stat().st_size} for step, found in kept.items()}

    def _provenance(self) -> dict:
        names = ("threads", "ranks", "zero_stage", "attention", "activation_checkpointing")
        execution = {name: getattr(self.execution, name) for name in names} | {"compute": self.engine.compute, "bf16": "cast"}
        execution |= {"compile": self.engine.compiled, "micro_batch": self.engine.micro, "device": str(self.engine.device)}
        return collect() | {"execution": execution, "corpus_shards": self.corpus.shard_hashes, "upstream_weights": self.starts}

    def _upstream_hashes(self) -> dict:
        """What the run starts from and reads: of its own upstreams the weights' hashes, of others name and revision."""
        found = {}
        for name, up in self.spec.upstreams.items():
            if up.run is None:
                found[name] = {"hub": up.hub, "revision": up.revision}  # of a folder, the identity has the revision alone
            else:
                weights = upstream_weights(self.store, up, name == "init" and self.spec.optimiser.state != "reset")
                found[name] = {"run": up.run.id, "step": up.step, "sha256": weights.sha256}
        return found
