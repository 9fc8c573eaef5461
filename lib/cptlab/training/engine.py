"""One DeepSpeed engine for every run, from one CPU thread to a cluster of GPUs."""

import contextlib
import hashlib
import logging
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from cptlab.errors import ConfigError, TrainingError
from cptlab.files import atomic_json, atomic_write_with
from cptlab.machine import bf16_is_faster
from cptlab.runs.execution import Execution
from cptlab.runs.spec import RunSpec
from cptlab.runs.tables import CURVE_COLUMNS
from cptlab.training import optimiser_state
from cptlab.training.objectives.objective import Batch, Objective
from cptlab.training.parameter_groups import parameter_groups

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
_last_shape = None


def start_process_group() -> tuple[int, int]:
    """Join the process group, making one of a single member where no launcher did; returns (rank, world size)."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not dist.is_initialized():
        # DeepSpeed would build a shared-memory operator in C++ (a minute, and an error where ninja is missing) for inference alone.
        deepspeed.ops.__compatible_ops__ = {}
        if "MASTER_ADDR" not in os.environ:  # no launcher started us: meet ourselves in memory, so that no port can be taken
            os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
            backend = get_accelerator().communication_backend_name() if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed(verbose=False)
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return dist.get_rank(), dist.get_world_size()


@cache
def _can_compile() -> bool:
    """Whether ``torch.compile`` has what it needs; says once what is missing."""
    if torch.cuda.is_available() or shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++"):
        return True
    warnings.warn("no C++ compiler was found (g++ or clang++): training runs uncompiled, and slower", stacklevel=2)
    return False


def here() -> torch.device:
    """The device that this process trains on."""
    return torch.device(get_accelerator().current_device_name())


def compute_type(precision: str, execution: Execution, began: str | None = None) -> str:
    """What a run of ``precision`` multiplies in here: ``bf16``, ``fp32`` or ``fp16``; the same on all ranks.

    Args:
        began: what the run, or the one that is measured, has been computed in so far; None: it begins now.
    """
    if precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise ConfigError("precision fp16 is not supported on this device: use bf16 or fp32, or a GPU")
    if precision != "bf16":
        return precision
    if began is not None:
        if execution.compute not in ("auto", began):
            warnings.warn(
                f"a run that was begun in {began} stays in it: execution.compute = {execution.compute!r} is for new runs", stacklevel=2
            )
        return began
    if execution.compute != "auto":
        return execution.compute
    _, world = start_process_group()
    choice = torch.tensor(float(bf16_is_faster(str(here()))), device=here())
    if world > 1:
        dist.broadcast(choice, 0)  # nodes may differ
    return "bf16" if choice else "fp32"


def largest_divisor(number: int, limit: int) -> int:
    """Largest divisor of ``number`` that is at most ``limit``."""
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)


def draw_seed(seed: int, step: int, first: int) -> int:
    """Seed of what dropout draws at one step of a run, for the micro-batch that begins with sequence ``first`` of the global batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{first}".encode()).digest()[:8], "little")


class Engine:
    """A model under DeepSpeed with the optimiser of ``spec``.

    Args:
        spec: the run.
        execution: ZeRO stage, micro-batch, compilation.
        objective: around the model, in fp32, holding the starting weights (or the masters of the state given to :meth:`restore`).
        compute: what to multiply in, of :func:`compute_type`. Checkpoints and states are of the run's precision either way.
    """

    def __init__(self, spec: RunSpec, execution: Execution, objective: Objective, compute: str):
        self.spec, self.execution, self.compute = spec, execution, compute
        self.rank, self.world = start_process_group()
        if spec.batch % self.world:
            raise ConfigError(f"a batch of {spec.batch} sequences does not split over {self.world} ranks: use a divisor of {spec.batch}")
        self.share = spec.batch // self.world
        self.micro = largest_divisor(self.share, execution.micro_batch)
        self.context = spec.model.context
        self.device = here()
        opt = spec.optimiser
        # lr 0: ZeRO stage 0 takes a dummy step while it is built, and the real rate is set at every step anyway.
        optimizer = torch.optim.AdamW(parameter_groups(objective.model, opt), lr=0.0, betas=opt.betas, eps=opt.eps, fused=True)
        config = {
            "train_batch_size": spec.batch,
            "train_micro_batch_size_per_gpu": self.micro,
            "gradient_accumulation_steps": self.share // self.micro,
            "gradient_clipping": opt.clip_norm,
            "zero_optimization": {"stage": execution.zero_stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": compute == "bf16"},
            "fp16": {"enabled": compute == "fp16"},
            "steps_per_print": 10**9,
        }
        self.deepspeed, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=config)
        self.compiled = execution.compile and execution.zero_stage < 3 and _can_compile()
        if self.compiled:
            self._compile()
        self.plain = execution.zero_stage == 0 and compute == "fp32"
        optimiser_state.reset_moments(self.deepspeed)

    def _compile(self) -> None:
        """Compile the forward and backward pass; a worker's earlier runs must not leave a trace in this one's bits."""
        global _last_shape
        spec = self.spec
        shape = (spec.model, self.micro, self.compute, spec.trainable, repr(spec.objectives), self.execution)
        if shape != _last_shape:
            torch._dynamo.reset()
            _last_shape = shape
        # Beyond the limit dynamo would go on uncompiled, slowly and with other roundings: better to fail.
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        # The two biases of GPT-NeoX's parallel residual have one gradient. Inductor puts both sums into one loop, and in bf16 its C++ then
        # declares the rounded sum twice: keep sums apart that do not need each other. Llama shapes have none such, and keep their code.
        apart = {} if self.spec.model.family == "llama" else {"options": {"cpp.max_horizontal_fusion_size": 1}}
        self.deepspeed.compile(backend="inductor", compile_kwargs={"dynamic": False} | apart)

    @property
    def module(self) -> torch.nn.Module:
        """The objective around the model, as DeepSpeed holds it."""
        return self.deepspeed.module

    def batch_of(self, windows: np.ndarray, stride: int) -> Batch:
        """Windows [n, length] on the device: inputs are the first ``stride`` tokens of each, labels the last."""
        tokens = torch.from_numpy(windows).to(self.device)
        return {"inputs": tokens[:, :stride].contiguous(), "labels": tokens[:, -stride:].contiguous()}

    def train_step(self, windows_of, lr: float, *, step: int) -> tuple[dict[str, torch.Tensor], float]:
        """One update; returns this rank's means (tensors, not synchronised) and the gradient norm before clipping.

        The means are ``loss_nats`` and what else the objective tells.

        Args:
            windows_of: function (first, count) -> int64 windows [count, length] of this step's global batch.
            lr: learning rate of this update, before the factors of ``optimiser.lr_factors``.
            step: number of this update in the run, from 0. What dropout draws depends on the run's seed, on this and on the micro-batch's
                place in the global batch alone, so that a resumed run draws it again.
        """
        step = optimiser_state.optimizer_steps(self.deepspeed) if step is None else step
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        self.deepspeed.train()
        totals, norm = defaultdict(lambda: torch.zeros((), device=self.device)), None
        for part in range(self.share // self.micro):
            first = self.rank * self.share + part * self.micro
            torch.manual_seed(draw_seed(self.spec.seed, step, first))
            losses, told = self.deepspeed(self.batch_of(windows_of(first, self.micro), self.spec.window))
            if taken := told.keys() & CURVE_COLUMNS.keys():
                raise TrainingError(f"the objective tells {sorted(taken)}, which are columns already: use other names")
            loss = losses.mean()
            self.deepspeed.backward(loss)
            if self.plain:  # DeepSpeed gives no norm where it wraps no optimiser
                norm = torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
            self.deepspeed.step()
            totals["loss_nats"] += loss.detach()
            for name, value in told.items():
                totals[name] += value.float().mean()
        norm = norm if self.plain else self.deepspeed.get_global_grad_norm()
        means = {name: total / (self.share // self.micro) for name, total in totals.items()}
        return means, float(norm) if norm is not None else float("nan")

    def mean_over_ranks(self, value: torch.Tensor) -> float:
        """Average of a scalar over the ranks."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world
        return float(value)

    @contextlib.contextmanager
    def weights_as_saved(self) -> Iterator[None]:
        """Hold the weights as a checkpoint has them, rounded to the run's precision, so that measuring it later gives the same."""
        parameters = list(self.module.model.parameters()) if self.compute != self.spec.precision else []
        # ZeRO stage 3 keeps a shard of each beside the parameter, whole while it is in use.
        tensors = [tensor for p in parameters for tensor in (p.data, getattr(p, "ds_tensor", None)) if tensor is not None]
        kept = [tensor.clone() for tensor in tensors]
        for tensor in tensors:
            tensor.copy_(tensor.to(DTYPES[self.spec.precision]))
        try:
            yield
        finally:
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)

    @torch.no_grad()
    def evaluate(self, windows: np.ndarray, counted: np.ndarray | None = None, allowed: np.ndarray | None = None) -> np.ndarray:
        """Loss (nats), hits and number of the labels that count, summed over each window: float64 of shape [n, 3], on every rank.

        The last batch is padded, so that one shape serves all.

        Args:
            windows: tokens of shape [n, context + 1].
            counted: which labels count, bool of shape [n, context]; None: all.
            allowed: tokens that take part in the softmax, bool of shape [vocab]; None: all. No other may be a label that counts.
        """
        self.deepspeed.eval()
        counted = np.ones((len(windows), self.context), bool) if counted is None else counted
        options = {}
        if allowed is not None:  # a model from the Hub may have more rows in its embedding than the corpus has tokens
            options["allowed"] = torch.zeros(self.module.model.config.vocab_size, dtype=torch.bool, device=self.device)
            options["allowed"][: len(allowed)] = torch.from_numpy(allowed)
        sums = torch.zeros(len(windows), 3, dtype=torch.float64, device=self.device)
        for turn in range(-(-len(windows) // (self.micro * self.world))):
            begin = (turn * self.world + self.rank) * self.micro
            # Every rank makes the same number of calls (ZeRO 3); the last window fills what is left of the last ones.
            rows = np.minimum(np.arange(begin, begin + self.micro), len(windows) - 1)
            real = min(max(len(windows) - begin, 0), self.micro)
            losses, hits = self.deepspeed(self.batch_of(windows[rows].astype(np.int64), self.context) | options)
            mask = torch.from_numpy(counted[rows]).to(self.device)
            values = torch.stack([losses.double(), hits.double(), mask.double()], -1).masked_fill(~mask.unsqueeze(-1), 0).sum(1)
            sums[begin : begin + real] = values[:real]
        if self.world > 1:
            dist.all_reduce(sums)
        return sums.cpu().numpy()

    @torch.no_grad()
    def generate(self, prompt: list[int], length: int, temperature: float, seed: int, stop: int) -> list[int]:
        """Sample up to ``length`` tokens after ``prompt``, with a CPU generator of its own; training is not disturbed.

        ``temperature`` 0 takes the most likely token each time; an empty prompt begins a document.
        """
        self.deepspeed.eval()
        generator = torch.Generator().manual_seed(seed)
        tokens = list(prompt) or [stop]
        for _ in range(length):
            window = torch.tensor([tokens[-self.context :]], device=self.device)
            logits = self.module.model(input_ids=window, use_cache=False).logits[0, -1].float().cpu()
            if temperature > 0:
                token = int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator))
            else:
                token = int(logits.argmax())
            if token == stop:
                break
            tokens.append(token)
        return tokens[len(prompt) or 1 :]

    def save_weights(self, folder: Path) -> None:
        """Write the weights, in the run's precision, as a folder that ``from_pretrained`` reads. A collective call on several ranks."""
        stage3 = self.execution.zero_stage == 3
        tensors, seen = {}, {}
        for name, parameter in self.module.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=stage3):
                value = parameter.detach().to("cpu", DTYPES[self.spec.precision], copy=True).contiguous()
            if id(parameter) not in seen:
                tensors[name] = value
            seen[id(parameter)] = name
        if self.rank == 0:
            config = self.module.model.config.to_dict() | {"dtype": str(DTYPES[self.spec.precision]).removeprefix("torch.")}
            atomic_json(folder / "config.json", config)
            atomic_write_with(folder / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))

    def save_state(self, path: Path) -> None:
        """Write masters, moments and Adam's step count. A collective call on several ranks."""
        tensors = optimiser_state.read_state(self.deepspeed)
        if self.rank == 0:
            note = {"optimizer_steps": str(optimiser_state.optimizer_steps(self.deepspeed))}
            atomic_write_with(path, lambda temporary: save_file(tensors, temporary, metadata=note))

    def restore(self, path: Path) -> None:
        """Take masters, moments and step count from a file of :meth:`save_state`."""
        optimiser_state.write_state(self.deepspeed, *optimiser_state.read_file(path))

    def carry_moments(self, path: Path) -> None:
        """Take only moments and step count."""
        optimiser_state.write_moments(self.deepspeed, *optimiser_state.read_file(path))

    def close(self) -> None:
        """Free the engine; the next run of this process builds its own."""
        self.deepspeed.destroy()
        self.deepspeed = None


def round_weights(model: PreTrainedModel, precision: str) -> None:
    """Round a model in fp32 to what ``precision`` holds: where DeepSpeed does not do so itself, a run starts from the same weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(DTYPES[precision]))


def masters_into(model: PreTrainedModel, path: Path) -> None:
    """Copy saved fp32 masters into a model about to be given to the engine, so that its rounded weights agree with them.

    Frozen parameters keep their checkpoint's weights: a state saved later lacks them, and a resumed run must find the same ones.
    """
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and f"master/{name}" in tensors:
                parameter.copy_(tensors[f"master/{name}"])
