"""The full training state as named tensors, whatever the ZeRO stage and the number of ranks.

DeepSpeed's own checkpoints are pickles bound to a world size; the state here is one safetensors file of fp32 master weights and Adam
moments a parameter, so that it can be hashed, read without unpickling, resumed on another machine and handed to another run
(``optimiser.state`` ``carry`` and ``continue``). Adam's step count, one for all parameters, stands in the file's metadata.
"""

from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state, safe_set_full_fp32_param, safe_set_full_optimizer_state
from safetensors import safe_open
from safetensors.torch import load_file

from cptlab.errors import StoreError, TrainingError

MOMENTS = ("exp_avg", "exp_avg_sq")


def named_trainable(engine) -> dict[str, torch.nn.Parameter]:
    """Trainable parameters of the wrapped model by their ``transformers`` names."""
    return {name: parameter for name, parameter in engine.module.model.named_parameters() if parameter.requires_grad}


def _base_optimizer(engine) -> torch.optim.Optimizer:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _masters(engine) -> dict[int, torch.Tensor] | None:
    """ZeRO stage 0: the fp32 tensor that the optimiser steps, by ``id`` of the model's parameter; None for the other stages."""
    if engine.zero_optimization_stage() > 0:
        return None
    if hasattr(engine.optimizer, "fp32_groups"):  # half precision: separate masters
        groups = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
        return {id(low): master for lows, masters in groups for low, master in zip(lows, masters, strict=True)}
    return {id(parameter): parameter for group in engine.optimizer.param_groups for parameter in group["params"]}


def reset_moments(engine, steps: int = 0) -> None:
    """Empty Adam moments for every parameter and set its step count.

    Called before the first step, too: it undoes the dummy step of ZeRO stage 0, and stages 1 and 2 link their parameters to the moments
    once, after the first group's first step, when those of a second group would not exist yet.
    """
    base = _base_optimizer(engine)
    if hasattr(engine.optimizer, "fp32_partitioned_groups_flat"):  # stage 3 lends its flat groups to Adam one at a time
        stepped = engine.optimizer.fp32_partitioned_groups_flat
    else:
        stepped = [tensor for group in base.param_groups for tensor in group["params"]]
    for tensor in stepped:
        base.state[tensor] = {
            "step": torch.tensor(float(steps), dtype=torch.float32, device=tensor.device),
            **{key: torch.zeros_like(tensor, dtype=torch.float32) for key in MOMENTS},
        }
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):  # stages 1 and 2 keep links into the moments
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def read_state(engine) -> dict[str, torch.Tensor]:
    """Masters and moments: ``master/NAME``, ``exp_avg/NAME``, ``exp_avg_sq/NAME``, fp32 on the CPU. A collective call on several ranks."""
    masters, base, out = _masters(engine), _base_optimizer(engine), {}
    for name, parameter in named_trainable(engine).items():
        if masters is None:
            values = {"master": safe_get_full_fp32_param(parameter)}
            values |= {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        else:
            tensor = masters[id(parameter)]
            values = {"master": tensor.detach()} | {key: base.state[tensor][key] for key in MOMENTS}
        for key, value in values.items():
            out[f"{key}/{name}"] = value.detach().to("cpu", torch.float32, copy=True).reshape(parameter_shape(parameter)).contiguous()
    return out


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], int]:
    """A state and Adam's step count.

    Raises:
        StoreError: the file does not say the step count.
    """
    with safe_open(path, "pt") as file:
        steps = (file.metadata() or {}).get("optimizer_steps")
    if steps is None:
        raise StoreError(f"{path} does not say Adam's step count: delete the folder of its run, which is then trained again")
    return load_file(path), int(steps)


def parameter_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Full shape, also of a parameter that ZeRO stage 3 has partitioned."""
    return getattr(parameter, "ds_shape", parameter.shape)


def write_moments(engine, tensors: dict[str, torch.Tensor], steps: int) -> None:
    """Give Adam the moments in ``tensors`` and its step count; parameters that ``tensors`` lacks have empty moments.

    Raises:
        TrainingError: ``tensors`` has none of the parameters.
    """
    if not any(f"exp_avg/{name}" in tensors for name in named_trainable(engine)):
        raise TrainingError(
            "the upstream trained other parameters alone, so that there is nothing to take over: use optimiser.state = 'reset'"
        )
    reset_moments(engine, steps)
    _write(engine, tensors, MOMENTS)


def write_state(engine, tensors: dict[str, torch.Tensor], steps: int) -> None:
    """Give the engine the masters and moments in ``tensors``. The model must already hold the masters, rounded to its precision.

    Parameters that ``tensors`` lacks keep the weights that they have.
    """
    write_moments(engine, tensors, steps)
    _write(engine, tensors, ("master",))


def _write(engine, tensors: dict[str, torch.Tensor], keys: tuple[str, ...]) -> None:
    masters, base = _masters(engine), _base_optimizer(engine)
    with torch.no_grad():
        for name, parameter in named_trainable(engine).items():
            for key in keys if f"exp_avg/{name}" in tensors else ():
                value = tensors[f"{key}/{name}"].to(engine.device)
                if masters is not None:
                    tensor = masters[id(parameter)]
                    (tensor if key == "master" else base.state[tensor][key]).copy_(value)
                elif key == "master":
                    safe_set_full_fp32_param(parameter, value)
                else:
                    safe_set_full_optimizer_state(parameter, value, key)


def optimizer_steps(engine) -> int:
    """Updates that Adam has counted."""
    return int(next(iter(_base_optimizer(engine).state.values()))["step"])
