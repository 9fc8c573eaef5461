"""How runs are executed: the part of a profile that says where and how fast, never what."""

import os
from dataclasses import dataclass, fields

from cptlab.errors import ConfigError

COMPUTES = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class Execution:
    """Execution settings, none of which is part of a run's identity.

    Args:
        workers: runs trained at once, each in a process of its own.
        threads: CPU threads of one worker.
        ranks: processes of one run (data parallel); more than one goes through DeepSpeed's launcher.
        micro_batch: most sequences a rank processes at once; the rest of the global batch is accumulated.
        zero_stage: DeepSpeed ZeRO stage, 0 to 3.
        compute: what the machine multiplies in where a run asks for bf16: ``bf16``, ``fp32``, or ``auto``: bf16 unless fp32 is measured
            to be faster here. Runs of other precisions compute in their own. Fixed for the life of a run and noted in its provenance.
        compile: compile the model's forward and backward pass with ``torch.compile``.
        attention: attention implementation of ``transformers`` (``eager``, ``sdpa``, ``flash_attention_2``).
        activation_checkpointing: recompute activations in the backward pass, layer by layer, to save memory.
        state_every: steps between two saves of the state that a killed run resumes from.
        state_seconds: seconds after which it is saved though fewer steps were made.
        launcher: words put between ``deepspeed`` and the program, such as ``--hostfile hosts --launcher slurm``.
        flops_per_second: expected rate of one worker, for the minutes that ``plan`` shows and nothing else.
    """

    workers: int = 1
    threads: int = 1
    ranks: int = 1
    micro_batch: int = 16
    zero_stage: int = 1
    compute: str = "auto"
    compile: bool = False
    attention: str = "eager"
    activation_checkpointing: bool = False
    state_every: int = 200
    state_seconds: float = 30.0
    launcher: str = ""
    flops_per_second: float = 1.5e11

    def __post_init__(self):
        for name in ("workers", "threads", "ranks", "micro_batch", "state_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"execution.{name} is {value!r}: give a whole number of at least 1")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"execution.zero_stage is {self.zero_stage!r}: give 0, 1, 2 or 3")
        if self.compute not in COMPUTES:
            raise ConfigError(f"execution.compute is {self.compute!r}: give one of {', '.join(COMPUTES)}")

    @classmethod
    def from_mapping(cls, values: dict) -> "Execution":
        """Settings from a profile's ``execution`` section; ``CPTLAB_WORKERS`` and ``CPTLAB_COMPUTE`` override two."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"execution names {unknown}, which do not exist: the settings are {', '.join(sorted(known))}")
        values = dict(values)
        if workers := os.environ.get("CPTLAB_WORKERS"):
            if not workers.isdigit():
                raise ConfigError(f"CPTLAB_WORKERS is {workers!r}: give a whole number of at least 1")
            values["workers"] = int(workers)
        if compute := os.environ.get("CPTLAB_COMPUTE"):
            values["compute"] = compute
        return cls(**values)
