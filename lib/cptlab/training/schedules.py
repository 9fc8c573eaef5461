"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no scheduler state."""

import math

from cptlab.runs.spec import RunSpec


def learning_rate(spec: RunSpec, step: int) -> float:
    """Learning rate of update ``step`` (0-based: the update that makes ``step + 1`` steps done).

    Warm-up rises linearly from ``warmup_start_ratio * max_lr`` and reaches ``max_lr`` with its last update. ``cosine`` and ``linear`` then
    reach ``min_lr_ratio * max_lr`` at the last update of the schedule; ``wsd`` (MiniCPM, arXiv 2404.06395) holds ``max_lr`` and falls
    there linearly over the last ``decay_fraction``. The schedule began ``elapsed_tokens`` before the run.
    """
    schedule = spec.schedule
    elapsed, horizon, warmup = (
        tokens // spec.batch_tokens for tokens in (schedule.elapsed_tokens, schedule.horizon_tokens, schedule.warmup_tokens)
    )
    step, total = elapsed + step, max(elapsed + spec.steps, horizon)
    if step < warmup:
        return schedule.max_lr * (schedule.warmup_start_ratio + (1 - schedule.warmup_start_ratio) * (step + 1) / warmup)
    low = schedule.min_lr_ratio
    if schedule.kind == "constant":
        factor = 1.0
    elif schedule.kind == "wsd":
        length = max(1, round(schedule.decay_fraction * total))
        done = max(0, step - (total - length) + 1) / length
        factor = 1 - (1 - low) * done
    else:
        done = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
        factor = low + (1 - low) * (1 - done if schedule.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
    return schedule.max_lr * factor
