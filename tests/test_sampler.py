"""The data order: a pure function of seed and step."""

import numpy as np
import pytest

from cptlab.runs.reading import BLOCK, Place, Turns
from cptlab.training.sampler import Sampler

CONTEXT, BATCH = 4, 8


def sampler(sizes=(101, 57), weights=(0.7, 0.3), seed=0, batch=BATCH, **order):
    """Sources of ``sizes`` windows; a window's first token says which source and place it is from."""
    # The last token of each source is a remainder.
    tokens = {f"s{i}": np.arange(n * CONTEXT + 2, dtype=np.uint32) + 10**6 * i for i, n in enumerate(sizes)}
    return Sampler(tokens, {f"s{i}": w for i, w in enumerate(weights)}, CONTEXT, batch, seed, **order)


def places(windows: np.ndarray, source: int) -> np.ndarray:
    """Window numbers within ``source``, in the order drawn."""
    mine = windows[windows[:, 0] // 10**6 == source]
    return (mine[:, 0] - 10**6 * source) // CONTEXT


def drawn(one: Sampler, steps: int) -> np.ndarray:
    return np.concatenate([one.windows_of(step) for step in range(steps)])


def test_the_order_of_a_single_source_never_changes():
    """Records were made in this order."""
    assert places(drawn(sampler((10,), (1,), seed=3), 3), 0).tolist() == [
        *(7, 5, 2, 8, 0, 6, 4, 3, 1, 9),
        *(5, 0, 2, 8, 1, 9, 3, 7, 4, 6),
        *(5, 9, 6, 0),
    ]


def test_windows_are_pieces_of_the_text():
    windows = sampler().windows_of(3)
    assert windows.shape == (BATCH, CONTEXT + 1) and windows.dtype == np.int64
    assert np.array_equal(windows, windows[:, :1] + np.arange(CONTEXT + 1))
    assert np.all(windows[:, 0] % 10**6 % CONTEXT == 0)


def test_same_windows_whatever_was_asked_before():
    steps = [0, 1, 2, 60, 700, BLOCK // BATCH, BLOCK // BATCH + 1]
    forwards, backwards = sampler(), sampler()
    first = {step: forwards.windows_of(step) for step in steps}
    second = {step: backwards.windows_of(step) for step in reversed(steps)}
    for step in steps:
        assert np.array_equal(first[step], second[step])
        assert np.array_equal(first[step], sampler().windows_of(step))
        assert np.array_equal(first[step], forwards.windows_of(step))


def test_global_sequence_does_not_depend_on_the_batch_size():
    small, large = sampler(batch=4), sampler(batch=16)
    assert np.array_equal(np.concatenate([small.windows_of(step) for step in range(4)]), large.windows_of(0))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_batch(ranks):
    whole, share = sampler().windows_of(9), BATCH // ranks
    parts = [sampler().windows_of(9, rank * share, share) for rank in range(ranks)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(sampler().windows_of(9, share), whole[share:])


def test_seeds_and_epochs_have_orders_of_their_own():
    one = sampler((40,), (1,))
    epochs = places(drawn(one, 15), 0).reshape(3, 40)
    assert all(np.array_equal(np.sort(epoch), np.arange(40)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(sampler(seed=1).windows_of(0), sampler(seed=0).windows_of(0))


def test_every_epoch_of_every_source_visits_each_window_once():
    mixed = sampler((101, 57), (0.7, 0.3))
    windows = drawn(mixed, 500)
    for source, size in enumerate((101, 57)):
        read = places(windows, source)
        whole = len(read) // size
        assert whole > 5
        for epoch in read[: whole * size].reshape(whole, size):
            assert np.array_equal(np.sort(epoch), np.arange(size))


def test_a_source_keeps_its_order_whatever_it_is_mixed_with():
    alone = places(drawn(sampler((101,), (1,)), 30), 0)
    for weights in ((0.5, 0.5), (0.9, 0.1), (0.01, 0.99)):
        mixed = places(drawn(sampler(weights=weights), 30), 0)
        assert len(mixed) > 1 and np.array_equal(mixed, alone[: len(mixed)])
    # Nor by where its name stands among the others.
    text = np.arange(101 * CONTEXT + 2, dtype=np.uint32)
    other = Sampler({"a": text + 10**6, "s0": text}, {"a": 0.4, "s0": 0.6}, CONTEXT, BATCH, 0)
    mixed = places(drawn(other, 30), 0)
    assert np.array_equal(mixed, alone[: len(mixed)])


# --- shares ------------------------------------------------------------------------------------------------------------------


MIXTURES = [
    *((0.5, 0.5), (0.99, 0.01), (0.999, 0.001), (0.7, 0.2, 0.1), (1 / 3, 1 / 3, 1 / 3), (0.6, 0.3, 0.09, 0.01)),
    *((1 / 300,) * 300, (0.91, *(0.001,) * 90), tuple(np.random.default_rng(0).dirichlet(np.full(40, 0.2)))),
]


@pytest.mark.parametrize("weights", MIXTURES, ids=len)
def test_shares_are_exact_after_every_block(weights):
    turns, counts = Turns({f"s{i:03}": weight for i, weight in enumerate(weights)}, 0), np.zeros(len(weights))
    for block in range(400):
        sources, ranks = turns.of_block(block)
        assert len(sources) == BLOCK
        for source, rank in zip(sources, ranks, strict=True):
            assert rank == counts[source]
            counts[source] += 1
        assert np.abs(counts - counts.sum() * np.array(weights)).max() < 1
        assert list(turns.counts((block + 1) * BLOCK).values()) == counts.tolist()


def test_shares_stay_exact_in_a_long_run():
    turns = Turns({"en": 0.01, "zh": 0.99}, 0)
    assert turns.counts(10**6) == {"en": 10**4, "zh": 99 * 10**4}
    assert turns.counts(2400) == {"en": 24, "zh": 2376}  # 150 steps of the laptop's batch
    assert turns.counts(0) == {"en": 0, "zh": 0}


def test_counts_within_a_block_are_of_what_was_drawn():
    turns = Turns({"en": 0.4, "zh": 0.6}, 5)
    sources = np.concatenate([turns.of_block(block)[0] for block in range(4)])
    for sequences in range(4 * BLOCK):
        assert turns.counts(sequences) == {"en": int((sources[:sequences] == 0).sum()), "zh": int((sources[:sequences] == 1).sum())}


def test_sources_are_shuffled_within_blocks_by_the_seed():
    def sources(seed):
        return np.stack([Turns({"en": 0.5, "zh": 0.5}, seed).of_block(block)[0] for block in range(40)])

    one = sources(0)
    assert np.array_equal(one, sources(0)) and not np.array_equal(one, sources(1))
    assert len({tuple(block) for block in one}) == 40
    assert np.all(np.abs(one.mean(0) - 0.5) < 0.35)  # no place in a block is one source's


def test_zero_weight_is_never_drawn():
    for weights in ((0.0, 1.0), (1.0, 0.0), (0.5, 0.0, 0.5)):
        mixed = sampler((20,) * len(weights), weights)
        windows = np.concatenate([mixed.windows_of(step) for step in range(200)])
        assert set(windows[:, 0] // 10**6) == {i for i, weight in enumerate(weights) if weight}


def test_short_source_is_an_error():
    with pytest.raises(ValueError, match=r"'short'.*fewer than 5"):
        Sampler({"short": np.arange(CONTEXT), "long": np.arange(99)}, {"short": 0.5, "long": 0.5}, CONTEXT, BATCH, 0)
    assert Sampler({"just": np.arange(CONTEXT + 1)}, {"just": 1.0}, CONTEXT, BATCH, 0).windows_of(0).shape == (BATCH, CONTEXT + 1)


def test_more_sources_than_a_byte_counts():
    sizes = (7,) * 300
    windows = drawn(sampler(sizes, (1 / 300,) * 300), 300)
    assert np.array_equal(np.bincount(windows[:, 0] // 10**6), np.full(300, 8))


# --- blocks, caps, reading on ------------------------------------------------------------------------------------------------


def test_blocks_are_read_whole_and_in_one_order_at_every_context():
    text = {"en": np.arange(40 * 12 + 7)}

    def stream(context):
        windows = drawn(Sampler(text, {"en": 1.0}, context, BATCH, 2, block=12), 120 // context * 2)
        assert windows.shape[1] == context + 1
        return windows[:, :-1].ravel()

    reference = stream(12)
    assert np.array_equal(np.sort(reference[:480]), np.arange(480)) and not np.array_equal(reference[:480], np.arange(480))
    for context in (2, 3, 4, 6):
        assert np.array_equal(stream(context)[:480], reference[:480])  # the first pass
        shared = min(len(stream(context)), len(reference))
        assert shared > 480 and np.array_equal(stream(context)[:shared], reference[:shared])  # and on
    assert np.array_equal(reference, drawn(Sampler(text, {"en": 1.0}, 12, BATCH, 2), 20)[:, :-1].ravel())  # a block a window: as ever


def test_a_cap_keeps_the_beginning_of_the_order():
    whole = drawn(sampler((40,), (1,)), 15)
    capped = drawn(sampler((40,), (1,), unique=11 * CONTEXT + 3), 15)
    first = places(whole, 0)[:11]
    read = places(capped, 0)
    assert np.array_equal(read[:11], first)
    passes = read[: len(read) // 11 * 11].reshape(-1, 11)
    assert len(passes) == 10 and all(set(one) == set(first) for one in passes)
    assert len({tuple(one) for one in passes}) == 10
    for much in (40 * CONTEXT, 10**6):
        assert np.array_equal(drawn(sampler((40,), (1,), unique=much), 15), whole)


def test_a_cap_holds_whole_blocks():
    one = sampler((40,), (1,), block=4 * CONTEXT, unique=9 * CONTEXT)
    read = places(drawn(one, 10), 0)
    assert one.windows == {"s0": 8} and len(set(read)) == 8
    assert all(np.array_equal(block, block[0] // 4 * 4 + np.arange(4)) for block in read.reshape(-1, 4))


@pytest.mark.parametrize("order", [{}, {"block": 4 * CONTEXT}, {"unique": 12 * CONTEXT}, {"block": 2 * CONTEXT, "unique": 9 * CONTEXT}])
def test_reading_on_is_reading_without_a_stop(order):
    whole = drawn(sampler((40,), (1,), **order), 20)
    for stop in (1, 5, 12):  # 96 windows: more than two passes
        begun = {"s0": Place(0, stop * BATCH * CONTEXT)}
        rest = drawn(sampler((40,), (1,), seed=9, begun=begun, **order), 20 - stop)
        assert np.array_equal(rest, whole[stop * BATCH :])
