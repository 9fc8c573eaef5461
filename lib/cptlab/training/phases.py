"""The data phases of a run: when each begins, and the windows that its steps train on."""

from bisect import bisect_right
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from cptlab.runs import reading
from cptlab.runs.spec import RunSpec
from cptlab.training.sampler import Sampler


class PhasedSampler:
    """The training windows of a run: one :class:`Sampler` a phase, which reads each source on where the phase before stopped.

    A run without phases has one. Each phase mixes its sources anew, as a run of its own would that reads on behind the one before.

    Args:
        spec: the run.
        tokens: one array of tokens a source, shape [n].
    """

    def __init__(self, spec: RunSpec, tokens: Mapping[str, np.ndarray]):
        self.spec, order = spec, spec.data_order
        stretches = reading.stretches(spec)
        #: First step of each phase.
        self.first_steps = [stretch.first for stretch in stretches]
        self._samplers = [
            Sampler(
                tokens,
                part.mixture,
                spec.window,
                spec.batch,
                spec.seed,
                order.block_tokens,
                order.unique_tokens,
                part.begun,
                spec.window_length,
            )
            for part in stretches
        ]

    @cached_property
    def _counts(self) -> dict[str, int]:
        return reading.counts(self.spec)  # at the end of the run: it takes a while for one of 10^8 sequences

    def phase_of(self, step: int) -> int:
        """Number of the phase, from 0, that update ``step`` (0-based) belongs to."""
        return bisect_right(self.first_steps, step) - 1

    def windows_of(self, step: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """As :meth:`Sampler.windows_of`, by the steps of the run."""
        phase = self.phase_of(step)
        return self._samplers[phase].windows_of(step - self.first_steps[phase], first, count)

    def shares(self) -> dict[str, float]:
        """Share of each source in the run's sequences, as it comes out."""
        return {name: round(count / sum(self._counts.values()), 6) for name, count in self._counts.items()}

    def epochs(self) -> dict[str, float]:
        """Passes over each source, or over its unique part, in this run alone; more than 1 means repeated data."""
        windows = {name: number for sampler in self._samplers for name, number in sampler.windows.items()}
        return {name: round(count / windows[name], 4) for name, count in self._counts.items()}
