"""Reading on: along a chain of runs, and from phase to phase of one run. These tests need no torch."""

from dataclasses import dataclass

import numpy as np
import pytest

from cptlab.runs import reading
from cptlab.runs.reading import BLOCK, Place
from cptlab.runs.shapes import ModelSpec
from cptlab.runs.spec import DataOrder, Phase, RunSpec, Upstream
from cptlab.training.phases import PhasedSampler

CONTEXT, BATCH = 8, 8
STEP = BATCH * CONTEXT
# Windows of 8 tokens: 12 steps of 8 are more than one pass over "en", 20 more than two.
SIZES = {"en": 70, "fr": 45, "zh": 30}
TEXT = {name: np.arange(size * CONTEXT + 2) + 10**6 * place for place, (name, size) in enumerate(SIZES.items())}


@dataclass(frozen=True)
class StubCorpus:
    name: str = "stub"
    names: tuple = tuple(SIZES)
    vocab: int = 300
    fingerprint: str = "ab" * 32


def spec(steps=None, mixture=None, init=None, step=None, read_on=False, block=None, unique=None, context=CONTEXT, **fields) -> RunSpec:
    """A run of ``steps`` steps, from ``step`` of ``init`` on."""
    fields |= {"upstreams": {"init": Upstream(run=init, step=step)}} if init else {}
    model = ModelSpec(layers=1, width=16, heads=1, ffn_width=16, vocab=300, context=context)
    order = DataOrder(block, read_on, unique)
    return RunSpec(model, fields.pop("corpus", StubCorpus()), mixture, steps and steps * STEP, STEP, data_order=order, **fields)


def windows(run: RunSpec) -> np.ndarray:
    sampler = PhasedSampler(run, TEXT)
    return np.concatenate([sampler.windows_of(step) for step in range(run.steps)])


def of(source: str, drawn: np.ndarray) -> np.ndarray:
    """The tokens read of one source, in their order."""
    return drawn[drawn[:, 0] // 10**6 == list(SIZES).index(source)][:, :-1].ravel()


ORDERS = [{}, {"block": 4 * CONTEXT}, {"unique": 20 * CONTEXT}, {"block": 2 * CONTEXT, "unique": 21 * CONTEXT}]
EN, MIXED = {"en": 1}, {"en": 0.6, "fr": 0.3, "zh": 0.1}


# --- along a chain -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cuts", [(12,), (1, 2, 11), (5, 19)])
def test_a_chain_that_reads_on_reads_as_one_run(order, cuts):
    whole, parts, run, done = windows(spec(20, EN, **order)), [], None, 0
    for number, cut in enumerate((*cuts, 20)):  # each with a seed of its own, which does not count
        run = spec(cut - done, EN, run, read_on=run is not None, seed=number, **order)
        parts.append(windows(run))
        done = cut
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("order", ORDERS)
def test_each_source_of_a_mixture_is_read_on(order):
    whole = windows(spec(60, MIXED, **order))
    first = spec(26, MIXED, **order)
    second = spec(34, {"en": 0.2, "fr": 0.4, "zh": 0.4}, first, read_on=True, **order)
    for name in SIZES:
        parts = np.concatenate([of(name, windows(first)), of(name, windows(second))])
        shared = min(len(parts), len(of(name, whole)))
        assert shared > 1.4 * len(of(name, windows(first))) and np.array_equal(parts[:shared], of(name, whole)[:shared])
    assert len(of("en", whole)) > 2 * SIZES["en"]


def test_whole_blocks_of_a_mixture_keep_their_counts():
    whole, first = spec(40, MIXED), spec(20, MIXED)
    assert 20 * BATCH % BLOCK == 0
    second = spec(20, MIXED, first, read_on=True)
    together = {name: reading.counts(first)[name] + reading.counts(second)[name] for name in SIZES}
    assert all(abs(together[name] - reading.counts(whole)[name]) <= 1 for name in SIZES)


def test_a_run_that_does_not_read_on_begins_anew():
    base = spec(12, EN)
    assert np.array_equal(windows(spec(5, EN, base)), windows(spec(5, EN)))
    assert reading.begun(spec(5, EN, base)) == {}
    assert not np.array_equal(windows(spec(5, EN, base, read_on=True)), windows(spec(5, EN)))


def test_it_goes_on_from_the_step_that_it_starts_from():
    base, whole = spec(20, EN), windows(spec(20, EN))
    early = spec(13, EN, base, 7, read_on=True)
    assert np.array_equal(windows(early), whole[7 * BATCH :])
    later = spec(9, EN, early, 4, read_on=True)
    assert np.array_equal(windows(later), whole[11 * BATCH :])


def test_each_source_stands_where_its_last_reader_left_it():
    """English, then French alone, then both: English goes on from the base, French from the arm, Chinese begins."""
    base = spec(10, EN, seed=1)
    arm = spec(4, {"fr": 1}, base, seed=2)
    last = spec(3, MIXED, arm, read_on=True, seed=3)
    assert reading.begun(last) == {"en": Place(1, 10 * STEP), "fr": Place(2, 4 * STEP)}
    drawn = windows(last)
    for name, before, seed in (("en", 10, 1), ("fr", 4, 2), ("zh", 0, 3)):
        read = of(name, drawn)
        assert len(read) and np.array_equal(read, windows(spec(20, {name: 1}, seed=seed))[:, :-1].ravel()[before * STEP :][: len(read)])
    # A run on the way that began English anew is the last to have read it.
    again = spec(2, EN, arm, seed=4)
    assert reading.begun(spec(3, MIXED, again, read_on=True)) == {"en": Place(4, 2 * STEP), "fr": Place(2, 4 * STEP)}


def test_the_new_language_comes_in_the_same_order_whatever_is_replayed():
    base = spec(10, EN, seed=7)
    arms = [spec(20, mixture, base, seed=1) for mixture in ({"fr": 1}, {"fr": 0.99, "en": 0.01}, {"fr": 0.5, "en": 0.5})]
    arms.append(spec(20, {"fr": 0.9, "en": 0.1}, base, read_on=True, seed=1))
    reference = of("fr", windows(arms[0]))
    for arm in arms[1:]:
        read = of("fr", windows(arm))
        assert np.array_equal(read, reference[: len(read)])


def test_other_corpora_do_not_count():
    base = spec(10, EN, seed=1)
    other = spec(6, EN, base, corpus=StubCorpus(fingerprint="cd" * 32), seed=2)
    assert reading.begun(spec(3, EN, other, read_on=True)) == {"en": Place(1, 10 * STEP)}


def test_contexts_share_an_order_of_blocks():
    whole = windows(spec(20, EN, block=4 * CONTEXT))[:, :-1].ravel()
    short = spec(7, EN, block=4 * CONTEXT, context=CONTEXT // 2)
    long = spec(13, EN, short, read_on=True, block=4 * CONTEXT, context=4 * CONTEXT)
    read = np.concatenate([windows(short)[:, :-1].ravel(), windows(long)[:, :-1].ravel()])
    assert np.array_equal(read, whole)


def test_a_longer_context_begins_with_a_whole_window():
    """Where the shorter one stopped within such a window, its rest is left out: nothing is read twice."""
    mixture = {"en": 0.5, "fr": 0.5}
    short = spec(3, mixture, block=4 * CONTEXT)
    long = spec(2, mixture, short, read_on=True, block=4 * CONTEXT, context=4 * CONTEXT)
    (stretch,) = reading.stretches(long)
    assert reading.begun(long)["en"].tokens % (4 * CONTEXT) > 0
    assert stretch.begun["en"].tokens == -(-reading.begun(long)["en"].tokens // (4 * CONTEXT)) * 4 * CONTEXT
    whole = of("en", windows(spec(20, mixture, block=4 * CONTEXT)))
    assert np.array_equal(of("en", windows(long)), whole[stretch.begun["en"].tokens :][: len(of("en", windows(long)))])


def test_long_chains_are_quick():
    run = spec(2, EN)
    for number in range(60):
        run = spec(2, {"en": 0.5, "fr": 0.5} if number % 2 else {"fr": 1}, run, read_on=True)
    assert sum(place.tokens for place in reading.begun(run).values()) == 60 * 2 * STEP


# --- phases ------------------------------------------------------------------------------------------------------------------


def phased(*phases, **fields) -> RunSpec:
    return spec(phases=tuple(Phase(steps * STEP, mixture) for steps, mixture in phases), **fields)


@pytest.mark.parametrize("order", ORDERS)
def test_phases_read_as_the_chain_of_their_runs(order):
    parts = [(13, EN), (9, {"en": 0.3, "fr": 0.7}), (1, {"zh": 1}), (12, MIXED)]
    run, chain = phased(*parts, **order), []
    for steps, mixture in parts:
        chain.append(spec(steps, mixture, chain[-1] if chain else None, read_on=bool(chain), **order))
    assert np.array_equal(windows(run), np.concatenate([windows(part) for part in chain]))
    # And what starts from within the run reads on from there.
    inside = spec(5, MIXED, run, 13 + 4, read_on=True, **order)
    same = spec(5, MIXED, spec(4, parts[1][1], chain[0], read_on=True, **order), read_on=True, **order)
    assert np.array_equal(windows(inside), windows(same))


def test_phases_of_a_run_that_reads_on():
    base = spec(6, EN, seed=1)
    run = phased((4, {"en": 1, "fr": 1}), (6, EN), init=base, read_on=True, seed=2)
    read = of("en", windows(run))
    assert np.array_equal(read, windows(spec(20, EN, seed=1))[:, :-1].ravel()[6 * STEP :][: len(read)])


def test_first_steps():
    run = phased((3, EN), (1, {"fr": 1}), (5, MIXED))
    sampler = PhasedSampler(run, TEXT)
    assert sampler.first_steps == [0, 3, 4]
    assert [sampler.phase_of(step) for step in range(9)] == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    part = PhasedSampler(run, TEXT).windows_of(5, 2, 3)  # in any order, by any rank
    assert np.array_equal(part, sampler.windows_of(5)[2:5])
    assert np.array_equal(sampler.windows_of(0), windows(run)[:BATCH])


# --- the record --------------------------------------------------------------------------------------------------------------


def test_shares_and_epochs_are_of_what_was_read():
    base = spec(9, EN)
    for run in (spec(25, MIXED), phased((10, EN), (15, MIXED)), spec(25, MIXED, base, read_on=True), spec(25, MIXED, unique=20 * CONTEXT)):
        sampler, drawn = PhasedSampler(run, TEXT), windows(run)
        assert sampler.shares() == {name: round(len(of(name, drawn)) / (25 * STEP), 6) for name in run.mixture}
        unique = {name: min(size, 20) if run.data_order.unique_tokens else size for name, size in SIZES.items()}
        assert sampler.epochs() == {name: round(len(of(name, drawn)) / CONTEXT / unique[name], 4) for name in run.mixture}
    assert PhasedSampler(spec(40, {"en": 0.95, "fr": 0.05}), TEXT).shares() == {"en": 0.95, "fr": 0.05}


def test_every_seed_has_the_same_shares():
    shares = [PhasedSampler(spec(150, {"en": 0.99, "fr": 0.01}, seed=seed), TEXT).shares() for seed in range(4)]
    assert shares == [{"en": 0.99, "fr": 0.01}] * 4


def test_text_shorter_than_a_block():
    with pytest.raises(ValueError, match="'fr'.*fewer than 401 training tokens.*block_tokens"):
        PhasedSampler(spec(4, MIXED, block=400), TEXT | {"zh": TEXT["en"]})
