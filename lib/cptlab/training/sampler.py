"""Which windows of text a step trains on: a pure function of the data order, the seed and the step.

Sequence number ``i`` is from the source that :class:`~cptlab.runs.reading.Turns` names and takes that source's next window of
``context + 1`` tokens, in an order shuffled anew each pass. A source's order depends on nothing but the seed and its text: not on what it
is mixed with, nor on how many processes train, where a run was interrupted or its total length: a longer run begins with the same windows.
"""

from collections.abc import Mapping

import numpy as np

from cptlab.runs.reading import BLOCK, Place, Turns


class Sampler:
    """Order of the training windows of one run, or of one phase.

    Args:
        tokens: one array of tokens a source, shape [n].
        weights: share of each source, summing to 1.
        context: tokens from one window to the next.
        batch: sequences a step.
        seed: of the run.
        block: the text is permuted in blocks of so many tokens (a multiple of ``context``, the default), each read window after window.
        unique: cap of unique tokens a source: the first blocks of the first pass; None: all of the text.
        begun: where sources are read from; those left out from the start, in the order of ``seed``.
        length: tokens of a window; None: ``context + 1``, one token more, the last label.
    """

    def __init__(
        self,
        tokens: Mapping[str, np.ndarray],
        weights: Mapping[str, float],
        context: int,
        batch: int,
        seed: int,
        block: int | None = None,
        unique: int | None = None,
        begun: Mapping[str, Place] | None = None,
        length: int | None = None,
    ):
        self.turns = Turns(weights, seed)
        self.names = self.turns.names
        self.tokens, self.context, self.batch = tokens, context, batch
        self.length = context + 1 if length is None else length
        self.block = block or context
        self.begun = {name: (begun or {}).get(name, Place(seed, 0)) for name in self.names}
        self._blocks = {name: (len(tokens[name]) - 1) // self.block for name in self.names}
        short = [name for name in self.names if self._blocks[name] < 1]
        if short:
            raise ValueError(
                f"sources {short} have fewer than {self.block + 1} training tokens: "
                "use a shorter context (or data_order.block_tokens) or more text"
            )
        self._unique = {name: min(number, (unique or len(tokens[name])) // self.block) for name, number in self._blocks.items()}
        #: Windows of one pass over each source.
        self.windows = {name: number * (self.block // context) for name, number in self._unique.items()}
        self._orders: dict[str, tuple[int, np.ndarray]] = {}
        self._turn: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None

    def _order(self, name: str, epoch: int) -> np.ndarray:
        """Blocks of a source in the order of one pass."""
        if name not in self._orders or self._orders[name][0] != epoch:
            unique, blocks = self._unique[name], self._blocks[name]

            def permutation(epoch: int, count: int) -> np.ndarray:
                # One key for all sources, beyond those of the turns: mixing a source in changes no other's order.
                return np.random.Generator(np.random.Philox(key=[self.begun[name].seed, 2**32 + epoch])).permutation(count)

            if unique == blocks:
                order = permutation(epoch, blocks)
            else:
                order = permutation(0, blocks)[:unique]
                order = order[permutation(epoch, unique)] if epoch else order
            self._orders[name] = epoch, order
        return self._orders[name][1]

    def windows_of(self, step: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Windows ``first`` to ``first + count`` of the batch of ``step``: int64, shape [count, length]."""
        count = self.batch - first if count is None else count
        out = np.empty((count, self.length), np.int64)
        for row in range(count):
            number, turn = divmod(step * self.batch + first + row, BLOCK)
            if self._turn is None or self._turn[0] != number:
                self._turn = number, self.turns.of_block(number)
            source, rank = (int(values[turn]) for values in self._turn[1])
            name = self.names[source]
            epoch, place = divmod(self.begun[name].tokens // self.context + rank, self.windows[name])
            block, place = divmod(place, self.block // self.context)
            begin = int(self._order(name, epoch)[block]) * self.block + place * self.context
            window = self.tokens[name][begin : begin + self.length]
            # Longer windows must not change the number of blocks, and so their order: one that reaches beyond the text begins it anew.
            out[row] = window if len(window) == self.length else np.resize(np.concatenate([window, self.tokens[name]]), self.length)
        return out
