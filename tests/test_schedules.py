"""Learning rates against closed forms, at the edges of each phase."""

import math
from dataclasses import dataclass

import pytest

from cptlab.errors import ConfigError
from cptlab.runs.shapes import ModelSpec
from cptlab.runs.spec import SCHEDULES, RunSpec, Schedule
from cptlab.training.schedules import learning_rate

TOTAL, BATCH, PEAK = 100, 64, 2e-3


@dataclass(frozen=True)
class StubCorpus:
    name: str = "stub"
    names: tuple = ("en",)
    vocab: int = 300
    fingerprint: str = "ab" * 32


def rates(steps: int = TOTAL, **schedule) -> list[float]:
    model = ModelSpec(layers=1, width=16, heads=1, ffn_width=16, vocab=300, context=32)
    spec = RunSpec(model, StubCorpus(), {"en": 1}, steps * BATCH, BATCH, schedule=Schedule(max_lr=PEAK, **schedule))
    return [learning_rate(spec, step) / PEAK for step in range(steps)]


def close(value: float):
    return pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warm_up(kind):
    factors = rates(kind=kind, warmup_tokens=10 * BATCH)
    assert factors[:10] == [close((step + 1) / 10) for step in range(10)]
    assert factors[10] == close(1.0)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warm_up_from_a_part_of_the_peak(kind):
    factors = rates(kind=kind, warmup_tokens=10 * BATCH, warmup_start_ratio=0.5)
    assert factors[0] == close(0.55) and factors[9] == close(1.0)
    assert all(a < b for a, b in zip(factors[:9], factors[1:10], strict=True))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_no_warm_up(kind):
    assert rates(kind=kind)[0] == close(1.0)


SHORT = {  # the last step has the lowest rate
    "constant": ([1], [1, 1], [1, 1, 1]),
    "linear": ([1], [1, 0.1], [1, 0.55, 0.1]),
    "cosine": ([1], [1, 0.1], [1, 0.55, 0.1]),
    "wsd": ([0.1], [1, 0.1], [1, 1, 0.1]),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_very_short_runs(kind):
    for expected in SHORT[kind]:
        assert rates(len(expected), kind=kind, min_lr_ratio=0.1) == [close(factor) for factor in expected]


def test_constant():
    assert set(rates(kind="constant", warmup_tokens=5 * BATCH)[4:]) == {1.0}


@pytest.mark.parametrize("low", [0.0, 0.1, 1.0])
def test_linear(low):
    factors = rates(kind="linear", warmup_tokens=10 * BATCH, min_lr_ratio=low)
    assert factors[10:] == [close(1 - (1 - low) * (step - 10) / 89) for step in range(10, 100)]
    assert factors[-1] == pytest.approx(low, abs=1e-15)


@pytest.mark.parametrize("low", [0.0, 0.1])
def test_cosine(low):
    factors = rates(kind="cosine", warmup_tokens=10 * BATCH, min_lr_ratio=low)
    assert factors[10] == close(1.0)
    assert factors[99] == pytest.approx(low, abs=1e-15)
    for step in (10, 33, 50, 98):
        assert factors[step] == close(low + (1 - low) * (1 + math.cos(math.pi * (step - 10) / 89)) / 2)
    assert all(a > b for a, b in zip(factors[10:], factors[11:], strict=False))


def test_warmup_stable_decay():
    factors = rates(kind="wsd", warmup_tokens=10 * BATCH, decay_fraction=0.2, min_lr_ratio=0.1)
    assert set(factors[9:80]) == {1.0}
    assert factors[80:] == [close(1 - 0.9 * (step - 79) / 20) for step in range(80, 100)]
    assert factors[80] == close(1 - 0.9 / 20) and factors[99] == close(0.1)


def test_warmup_stable_decay_without_decay_falls_at_the_last_step_only():
    factors = rates(kind="wsd", decay_fraction=0.0, min_lr_ratio=0.25)
    assert set(factors[:-1]) == {1.0} and factors[-1] == close(0.25)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_longer_horizon(kind):
    """A run cut at 100 of 200 steps has the rates that the longer run has there."""
    whole = rates(200, kind=kind, warmup_tokens=10 * BATCH, min_lr_ratio=0.1)
    part = rates(100, kind=kind, warmup_tokens=10 * BATCH, min_lr_ratio=0.1, horizon_tokens=200 * BATCH)
    assert part == [close(factor) for factor in whole[:100]]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_horizon_shorter_than_the_run_is_the_run(kind):
    assert rates(kind=kind, horizon_tokens=10 * BATCH) == rates(kind=kind)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_kind_has_a_horizon(kind):
    assert rates(kind=kind, decay_fraction=0.2, horizon_tokens=200 * BATCH) == rates(200, kind=kind, decay_fraction=0.2)[:100]


# --- a run within a longer schedule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("cut", [1, 7, 10, 50, 80, 93])
def test_parts_of_a_schedule_are_the_schedule(kind, cut):
    """To the bit, wherever it is cut: in the warm-up, on the plateau, in the decay."""
    shape = {"kind": kind, "warmup_tokens": 10 * BATCH, "warmup_start_ratio": 0.2, "decay_fraction": 0.15, "min_lr_ratio": 0.05}
    whole = rates(**shape)
    first = rates(cut, **shape, elapsed_tokens=0, horizon_tokens=TOTAL * BATCH)
    rest = rates(TOTAL - cut, **shape, elapsed_tokens=cut * BATCH)
    assert first + rest == whole
    assert rest == rates(TOTAL - cut, **shape, elapsed_tokens=cut * BATCH, horizon_tokens=TOTAL * BATCH)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_that_starts_with_the_run_is_the_runs_own(kind):
    assert rates(kind=kind, elapsed_tokens=0) == rates(kind=kind)
    assert rates(kind=kind, elapsed_tokens=BATCH - 1) == rates(kind=kind)  # less than a step


def test_a_branch_decays_at_once():
    """The decay of a trunk: wsd from the branch on, its decay a fraction of trunk and branch."""
    branch = rates(20, kind="wsd", warmup_tokens=10 * BATCH, decay_fraction=0.2, min_lr_ratio=0.0, elapsed_tokens=80 * BATCH)
    assert branch == [close(1 - (step + 1) / 20) for step in range(19)] + [pytest.approx(0, abs=1e-15)]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_does_not_end_before_its_run(kind):
    assert rates(20, kind=kind, elapsed_tokens=80 * BATCH, horizon_tokens=10 * BATCH) == rates(20, kind=kind, elapsed_tokens=80 * BATCH)


def test_a_warmup_in_tokens_is_the_same_at_every_budget():
    short, long = (rates(steps, kind="wsd", warmup_tokens=8 * BATCH + 1, decay_fraction=0.2) for steps in (20, 80))
    assert short[:16] == long[:16] and short[7] == close(1.0) and short[6] < 1 and long[63] == close(1.0) and long[64] < 1
    for wrong in (-1, None, 0.05):
        with pytest.raises(ConfigError, match="schedule.warmup_tokens"):
            Schedule(warmup_tokens=wrong)
    trunk = rates(100, kind="wsd", warmup_tokens=8 * BATCH, decay_fraction=0.2, min_lr_ratio=0.0)
    branch = rates(20, kind="wsd", warmup_tokens=8 * BATCH, decay_fraction=0.2, min_lr_ratio=0.0, elapsed_tokens=80 * BATCH)
    assert branch == trunk[80:]
