"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no scheduler state."""

import math

from cptlab.runs.spec import RunSpec


def learning_rate(spec: RunSpec, step: int) -> float:
    """Learning rate of update ``step`` (0-based: the update that makes ``step + 1`` steps done).

    Warm-up rises linearly from ``start_ratio * max_lr`` and reaches ``max_lr`` with its last update. ``cosine`` and ``linear`` then reach
    ``min_ratio * max_lr`` at the last update of the horizon; ``wsd`` (MiniCPM, arXiv 2404.06395) holds ``max_lr`` and falls linearly over
    the last ``decay`` fraction. With ``start_tokens`` all of this is of the schedule that began then, not of the run.
    """
    schedule, total = spec.schedule, spec.steps
    whole = (schedule.horizon_tokens or 0) // spec.batch_tokens
    if schedule.start_tokens is not None:
        start = schedule.start_tokens // spec.batch_tokens
        step, total = start + step, max(start + total, whole)
    horizon = max(total, whole) if schedule.kind in ("linear", "cosine") else total
    warmup = round(schedule.warmup * total) if schedule.warmup_tokens is None else schedule.warmup_tokens // spec.batch_tokens
    if step < warmup:
        return schedule.max_lr * (schedule.start_ratio + (1 - schedule.start_ratio) * (step + 1) / warmup)
    low = schedule.min_ratio
    if schedule.kind == "constant":
        factor = 1.0
    elif schedule.kind == "wsd":
        length = max(1, round(schedule.decay * total))
        done = max(0, step - (total - length) + 1) / length
        factor = 1 - (1 - low) * done
    else:
        done = min(1.0, (step - warmup) / max(1, horizon - 1 - warmup))
        factor = low + (1 - low) * (1 - done if schedule.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
    return schedule.max_lr * factor
