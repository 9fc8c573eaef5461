"""The data order: a pure function of seed and step."""

import numpy as np
import pytest

from cptlab.training.sampler import BLOCK, Sampler

CONTEXT, BATCH = 4, 8


def sampler(sizes=(101, 57), weights=(0.7, 0.3), seed=0, batch=BATCH):
    """Sources of ``sizes`` windows; a window's first token says which source and place it is from."""
    # The last token of each source is a remainder.
    tokens = {f"s{i}": np.arange(n * CONTEXT + 2, dtype=np.uint32) + 10**6 * i for i, n in enumerate(sizes)}
    return Sampler(tokens, {f"s{i}": w for i, w in enumerate(weights)}, CONTEXT, batch, seed)


def places(windows: np.ndarray, source: int) -> np.ndarray:
    """Window numbers within ``source``, in the order drawn."""
    mine = windows[windows[:, 0] // 10**6 == source]
    return (mine[:, 0] - 10**6 * source) // CONTEXT


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
    drawn = places(np.concatenate([one.windows_of(step) for step in range(15)]), 0)
    epochs = drawn.reshape(3, 40)
    assert all(np.array_equal(np.sort(epoch), np.arange(40)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(sampler(seed=1).windows_of(0), sampler(seed=0).windows_of(0))


def test_every_epoch_of_every_source_visits_each_window_once():
    mixed = sampler((101, 57), (0.7, 0.3))
    windows = np.concatenate([mixed.windows_of(step) for step in range(2 * BLOCK // BATCH)])  # over a block boundary
    for source, size in enumerate((101, 57)):
        drawn = places(windows, source)
        whole = len(drawn) // size
        assert whole > 5
        for epoch in drawn[: whole * size].reshape(whole, size):
            assert np.array_equal(np.sort(epoch), np.arange(size))


def test_a_source_keeps_its_order_when_the_weights_change():
    some = np.concatenate([sampler(weights=(0.5, 0.5)).windows_of(step) for step in range(10)])
    others = np.concatenate([sampler(weights=(0.9, 0.1)).windows_of(step) for step in range(10)])
    for source in (0, 1):
        one, other = places(some, source), places(others, source)
        shared = min(len(one), len(other))
        assert shared and np.array_equal(one[:shared], other[:shared])


def test_weights_are_respected():
    weights = np.array([0.6, 0.3, 0.09, 0.01])
    mixed = sampler((50, 50, 50, 50), tuple(weights), seed=3)
    sequences = 5 * BLOCK
    windows = np.concatenate([mixed.windows_of(step) for step in range(sequences // BATCH)])
    counts = np.bincount(windows[:, 0] // 10**6, minlength=4)
    chi_square = float(np.sum((counts - sequences * weights) ** 2 / (sequences * weights)))
    assert chi_square < 16.3  # three degrees of freedom, p = 0.001; the seed is fixed
    first = sampler((50, 50, 50, 50), tuple(weights), seed=3).windows_of(0)
    assert len(set(first[:, 0] // 10**6)) > 1  # mixed within a batch


def test_zero_weight_is_never_drawn():
    for weights in ((0.0, 1.0), (1.0, 0.0), (0.5, 0.0, 0.5)):
        mixed = sampler((20,) * len(weights), weights)
        windows = np.concatenate([mixed.windows_of(step) for step in range(200)])
        assert set(windows[:, 0] // 10**6) == {i for i, weight in enumerate(weights) if weight}


def test_short_source_is_an_error():
    with pytest.raises(ValueError, match=r"'short'.*fewer than 5"):
        Sampler({"short": np.arange(CONTEXT), "long": np.arange(99)}, {"short": 0.5, "long": 0.5}, CONTEXT, BATCH, 0)
    assert Sampler({"just": np.arange(CONTEXT + 1)}, {"just": 1.0}, CONTEXT, BATCH, 0).windows_of(0).shape == (BATCH, CONTEXT + 1)


def test_epochs():
    mixed = sampler((101, 57), (0.7, 0.3))
    assert mixed.epochs(0) == {"s0": 0.0, "s1": 0.0}
    windows = np.concatenate([mixed.windows_of(step) for step in range(100)])
    assert mixed.epochs(100) == {f"s{i}": round(len(places(windows, i)) / n, 4) for i, n in enumerate((101, 57))}
    assert sampler((100,), (1,)).epochs(50) == {"s0": 4.0}
