"""How often and how far a run reads each source: the arithmetic of its data order, from the specification alone, without text or torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cptlab.runs.spec import RunSpec

# Sequences within which the sources are shuffled. A batch of the small profiles is one block, so that their shares are exact at every step.
BLOCK = 16
PRECISION = 2**40  # shares are whole multiples of 1 / PRECISION, so that their arithmetic is exact


class Turns:
    """Which source each sequence is from.

    After every :data:`BLOCK` sequences the count of each source is within one sequence of its exact share; within a block the sources are
    shuffled. Nothing depends on how many sequences there will be: a longer run begins with the same ones.

    Args:
        weights: share of each source, summing to 1.
        seed: of the shuffling.
    """

    def __init__(self, weights: Mapping[str, float], seed: int):
        self.names = sorted(weights)
        self._weights = [round(weights[name] * PRECISION) for name in self.names]
        self._seed = seed
        self._block, self._before = 0, [0] * len(self.names)

    def _quota(self) -> list[int]:
        """Sequences of each source in the block at hand.

        Each source is due its share so far, rounded down; what is left of the block goes to those whose next sequence is due first, none
        getting more than its share rounded up. Earliest deadline first always keeps to these bounds (Balinski and Young's quota method).
        """
        total, end = sum(self._weights), (self._block + 1) * BLOCK
        quota = [max(0, end * weight // total - before) for weight, before in zip(self._weights, self._before, strict=True)]
        taken = [before + more for before, more in zip(self._before, quota, strict=True)]
        open_to_more = [i for i, weight in enumerate(self._weights) if taken[i] * total < end * weight]
        for i in sorted(open_to_more, key=lambda i: (taken[i] + 1) / self._weights[i])[: BLOCK - sum(quota)]:
            quota[i] += 1
        return quota

    def _seek(self, block: int) -> None:
        """Count up to ``block``; only forwards, a step further in the usual case."""
        if block < self._block:
            self._block, self._before = 0, [0] * len(self.names)
        while self._block < block:
            self._before = [before + more for before, more in zip(self._before, self._quota(), strict=True)]
            self._block += 1

    def of_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source (index into ``names``) of each sequence of a block, and its rank among all sequences of that source."""
        self._seek(block)
        sources = np.repeat(np.arange(len(self.names)), self._quota())
        sources = np.random.Generator(np.random.Philox(key=[self._seed, block])).permutation(sources)
        ranks = np.empty(BLOCK, np.int64)
        for index, before in enumerate(self._before):
            mine = sources == index
            ranks[mine] = before + np.arange(mine.sum())
        return sources, ranks

    def counts(self, sequences: int) -> dict[str, int]:
        """How many of the first ``sequences`` are from each source."""
        block, rest = divmod(sequences, BLOCK)
        sources, _ = self.of_block(block)
        of_rest = np.bincount(sources[:rest], minlength=len(self.names))
        return {name: before + int(more) for name, before, more in zip(self.names, self._before, of_rest, strict=True)}


@dataclass(frozen=True)
class Place:
    """How far a source has been read: ``tokens`` along the order of its text that ``seed`` gives."""

    seed: int
    tokens: int


@dataclass(frozen=True)
class Stretch:
    """Steps of a run that share a mixture: a phase, or the whole run. ``begun``: where each source of the mixture is read from."""

    run: "RunSpec"
    first: int
    steps: int
    mixture: Mapping[str, float]
    begun: dict[str, Place]

    def counts(self, steps: int) -> dict[str, int]:
        """Sequences of each source in its first ``steps`` steps."""
        return Turns(self.mixture, self.run.seed).counts(steps * self.run.batch)

    def stopped(self, steps: int) -> dict[str, Place]:
        """Where its sources stand after so many of its steps."""
        counts = self.counts(steps)
        return {name: Place(at.seed, at.tokens + counts[name] * self.run.window) for name, at in self.begun.items()}


def stretches(run: "RunSpec", places: dict[str, Place] | None = None) -> list[Stretch]:
    """The phases of a run, each reading on where the one before stopped; a run without phases is one stretch.

    ``places``: where sources stand at its start, by default as :func:`begun` says. A source that nobody read begins in the run's own order.
    """
    places = begun(run) if places is None else places
    result: list[Stretch] = []
    for steps, mixture in [(phase.tokens // run.batch_tokens, phase.mixture) for phase in run.phases] or [(run.steps, run.mixture)]:
        if result:
            places = places | result[-1].stopped(result[-1].steps)
        here = {name: places.get(name, Place(run.seed, 0)) for name in mixture}
        # A run of shorter windows may stop within a window of this one, which then begins with the next: nothing is read twice.
        here = {name: Place(at.seed, -(-at.tokens // run.window) * run.window) for name, at in here.items()}
        result.append(Stretch(run, result[-1].first + result[-1].steps if result else 0, steps, mixture, here))
    return result


def begun(run: "RunSpec") -> dict[str, Place]:
    """Where the sources stand when a run starts that reads on behind ``init``; {} for one that does not.

    Each source stands where the last run of the chain that read it stopped, which itself read on or began anew.
    """
    places: dict[str, Place] = {}
    if not run.data_order.read_on:
        return places
    for earlier, step in reversed(run.chain()):
        if earlier.corpus.fingerprint == run.corpus.fingerprint:
            for stretch in stretches(earlier, places if earlier.data_order.read_on else {}):
                if stretch.first < step:
                    places = places | stretch.stopped(min(stretch.steps, step - stretch.first))
    return places


def counts(run: "RunSpec") -> dict[str, int]:
    """Sequences that a run reads of each source."""
    total = dict.fromkeys(run.mixture, 0)
    for stretch in stretches(run):
        for name, count in stretch.counts(stretch.steps).items():
            total[name] += count
    return total
