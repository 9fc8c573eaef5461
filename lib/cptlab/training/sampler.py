"""Which sequences a step trains on: a pure function of the run's seed and the step.

Sequence number ``i`` of a run is drawn from a source by the mixture's weights and takes that source's next window of ``context + 1``
tokens in an order shuffled anew each epoch. Nothing depends on how many processes train, on where a run was interrupted or on its
total length: a longer run begins with the same sequences.
"""

import numpy as np

BLOCK = 4096  # sequences whose sources are drawn by one generator


class Sampler:
    """Order of the training windows of one run.

    Args:
        tokens: one array of tokens a source, shape [n].
        weights: probability of each source, summing to 1.
        context: tokens from one window to the next.
        batch: sequences a step.
        seed: of the run.
        length: tokens of a window; None: ``context + 1``, one token more, the last label.
    """

    def __init__(
        self, tokens: dict[str, np.ndarray], weights: dict[str, float], context: int, batch: int, seed: int, length: int | None = None
    ):
        self.names = sorted(weights)
        self.tokens = tokens
        self.context, self.batch, self.seed = context, batch, seed
        self.length = context + 1 if length is None else length
        self.windows = {name: max(0, len(tokens[name]) - self.length + context) // context for name in self.names}
        short = [name for name in self.names if self.windows[name] < 1]
        if short:
            raise ValueError(f"sources {short} have fewer than {self.length} training tokens: use a shorter context or more text")
        self._edges = np.cumsum([weights[name] for name in self.names])
        self._edges[-1] = 1.0
        self._sources = np.empty(0, np.uint8)
        self._ranks = np.empty(0, np.int64)
        self._counts = np.zeros(len(self.names), np.int64)
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def _extend(self, length: int) -> None:
        """Draw sources, and each sequence's rank within its source, until ``length`` sequences are known."""
        while len(self._sources) < length:
            block = len(self._sources) // BLOCK
            draws = np.random.Generator(np.random.Philox(key=[self.seed, block])).random(BLOCK)
            sources = np.searchsorted(self._edges, draws, side="right").astype(np.uint8)
            ranks = np.empty(BLOCK, np.int64)
            for index in range(len(self.names)):
                mine = sources == index
                ranks[mine] = self._counts[index] + np.arange(mine.sum())
                self._counts[index] += mine.sum()
            self._sources = np.concatenate([self._sources, sources])
            self._ranks = np.concatenate([self._ranks, ranks])

    def _order(self, source: int, epoch: int) -> np.ndarray:
        if (source, epoch) not in self._orders:
            self._orders = {key: value for key, value in self._orders.items() if key[0] != source}
            generator = np.random.Generator(np.random.Philox(key=[self.seed, (source + 1) * 2**32 + epoch]))
            self._orders[source, epoch] = generator.permutation(self.windows[self.names[source]])
        return self._orders[source, epoch]

    def windows_of(self, step: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Windows ``first`` to ``first + count`` of the batch of ``step``: int64, shape [count, length]."""
        count = self.batch - first if count is None else count
        start = step * self.batch + first
        self._extend(start + count)
        out = np.empty((count, self.length), np.int64)
        for row in range(count):
            source = int(self._sources[start + row])
            name = self.names[source]
            epoch, place = divmod(int(self._ranks[start + row]), self.windows[name])
            begin = int(self._order(source, epoch)[place]) * self.context
            out[row] = self.tokens[name][begin : begin + self.length]
        return out

    def epochs(self, steps: int) -> dict[str, float]:
        """Passes over each source after ``steps`` steps; more than 1 means repeated data."""
        self._extend(steps * self.batch)
        seen = np.bincount(self._sources[: steps * self.batch], minlength=len(self.names))
        return {name: round(float(seen[i]) / self.windows[name], 4) for i, name in enumerate(self.names)}
