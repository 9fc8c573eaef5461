"""Evaluation: what a set of a name measures, choices scored by log-likelihood, and kept checkpoints measured without training.

All kinds rest on :meth:`cptlab.training.engine.Engine.evaluate`, so that they pad, spread over ranks and leave training alone as it does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch.distributed as dist

from cptlab.corpora import open_corpus
from cptlab.corpora.recipe import CorpusRecipe
from cptlab.errors import ConfigError
from cptlab.runs.evaluation_sets import EvaluationSet
from cptlab.runs.execution import Execution
from cptlab.runs.lacking import Lacking
from cptlab.runs.record import compute_of
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.training.engine import Engine, compute_type
from cptlab.training.guards import check_text
from cptlab.training.models import build_model, load_weights
from cptlab.training.objectives.token import TokenObjective

END = 16  # tokens that a set's choices have: of longer ones the rarest words decide, whatever came before


def evaluation_windows(corpus, name: str, context: int) -> np.ndarray:
    """Windows [n, context + 1] of an evaluation set (:mod:`cptlab.runs.evaluation_sets`), spread evenly over the validation text.

    Raises:
        ConfigError: the validation text has fewer windows than the set takes.
    """
    wanted = EvaluationSet.parse(name)
    tokens = corpus.tokens(wanted.source, "validation")
    available = max(0, (len(tokens) - 1) // context)
    least = max(1, wanted.choices)
    count = available if wanted.count is None else wanted.count
    if not least <= count <= available:
        every = replace(wanted, count=None).name
        remedy = f"use {every!r}" if available >= least else "take a shorter context, more text or fewer choices"
        raise ConfigError(
            f"evaluation set {name!r} needs {max(least, count)} windows of {context + 1} tokens, "
            f"and the validation text of {wanted.source!r} has {available}: {remedy}"
        )
    places = (np.arange(count) * available // count) * context
    return np.stack([tokens[place : place + context + 1] for place in places]).astype(np.int64)


def measurement(corpus, name: str, context: int) -> Callable[[Engine], dict]:
    """What an evaluation set measures, as a function from the engine to ``loss_nats``, ``accuracy`` and ``predicted_tokens``.

    Raises:
        ConfigError: as :func:`evaluation_windows`, or no label of the set is among the tokens that it names.
    """
    wanted = EvaluationSet.parse(name)
    windows = evaluation_windows(corpus, name, context)
    if wanted.choices:
        return partial(score_choices, items=end_items(windows, wanted.choices))
    if wanted.among is None:
        return partial(token_loss, windows=windows)
    allowed = tokens_of(corpus.recipe, wanted.among)
    if not allowed[windows[:, 1:]].any():
        raise ConfigError(f"evaluation set {name!r} is empty: no token of its windows occurs in the training text of {wanted.among!r}")
    return partial(token_loss, windows=windows, allowed=allowed)


@lru_cache(maxsize=64)
def tokens_of(recipe: CorpusRecipe, source: str) -> np.ndarray:
    """Which tokens occur in the training text of a source: bool of shape [vocab]."""
    found = np.zeros(recipe.vocab, bool)
    tokens = open_corpus(recipe).tokens(source)
    for start in range(0, len(tokens), 2**24):
        found[tokens[start : start + 2**24]] = True
    return found


def token_loss(engine: Engine, windows: np.ndarray, allowed: np.ndarray | None = None) -> dict:
    """Mean loss (nats a token) and accuracy over windows [n, context + 1].

    ``allowed`` (bool [vocab]; None: all) are the tokens that take part in the softmax. A label outside is not counted:
    ``predicted_tokens`` says how many are.
    """
    loss, hits, count = engine.evaluate(windows, None if allowed is None else allowed[windows[:, 1:]], allowed).sum(0)
    return {"loss_nats": float(loss / count), "accuracy": float(hits / count), "predicted_tokens": int(count)}


# --- choices -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A question: tokens of its context (at least one), those of each choice (at least one each), and which choice is right."""

    context: Sequence[int]
    choices: Sequence[Sequence[int]]
    right: int


def end_items(windows: np.ndarray, choices: int) -> list[Item]:
    """The last 16 tokens of each window (at most half of it) among those of ``choices - 1`` others.

    The others are the same distances further on (cyclically, drawn once from a fixed seed) for every window. So each end is the true one
    once and a false one equally often: what ends a model likes whatever came before says nothing. They are far away also where windows
    adjoin, so that more windows make the measurement finer and not harder.
    """
    ends = windows[:, -min(END, windows.shape[1] // 2) :]
    generator = np.random.Generator(np.random.Philox(0))
    steps = [0, *(1 + generator.permutation(len(windows) - 1)[: choices - 1])]
    starts = windows[:, : -ends.shape[1]]
    return [Item(start, [ends[(i + step) % len(ends)] for step in steps], 0) for i, start in enumerate(starts)]


def choice_losses(engine: Engine, items: Sequence[Item]) -> list[np.ndarray]:
    """Loss of every choice of every item given its context: nats summed over the choice's tokens, minus its log-likelihood.

    Choices may differ in length and number. A context that is too long for the model's loses its beginning.

    Raises:
        ConfigError: an item without a context, or a choice that is empty or leaves no room for one token of context.
    """
    pairs = [(number, item.context, choice) for number, item in enumerate(items) for choice in item.choices]
    width = engine.context + 1
    windows, counted = np.zeros((len(pairs), width), np.int32), np.zeros((len(pairs), width - 1), bool)
    for row, (number, context, choice) in enumerate(pairs):
        if not len(context) or not 0 < len(choice) < width:
            raise ConfigError(
                f"item {number} has a context of {len(context)} tokens and a choice of {len(choice)}: "
                f"give at least one token of context and choices of 1 to {engine.context} tokens"
            )
        context = context[-(width - len(choice)) :]
        length = len(context) + len(choice)
        windows[row, : len(context)], windows[row, len(context) : length] = context, choice
        counted[row, len(context) - 1 : length - 1] = True  # the label of position p is token p + 1; what follows the choice is padding
    losses = engine.evaluate(windows, counted)[:, 0]
    return np.split(losses, np.cumsum([len(item.choices) for item in items])[:-1])


def score_choices(engine: Engine, items: Sequence[Item]) -> dict:
    """Share of items whose right choice is likelier than every other (``accuracy``), and the right choices' loss in nats a token."""
    losses = choice_losses(engine, items)
    tokens = sum(len(item.choices[item.right]) for item in items)
    # Strictly: neither a tie nor a loss that is no number is a win.
    won = [all(loss[item.right] < np.delete(loss, item.right)) for item, loss in zip(items, losses, strict=True)]
    right = sum(loss[item.right] for item, loss in zip(items, losses, strict=True))
    return {"loss_nats": float(right / tokens), "accuracy": float(np.mean(won)), "predicted_tokens": tokens}


# --- finished runs -----------------------------------------------------------------------------------------------------------


def measure_checkpoints(request: Request, store: Store, execution: Execution, wanted: Lacking) -> None:
    """Evaluate kept checkpoints on the sets that are still missing; nothing is trained."""
    corpus = open_corpus(request.spec.corpus)
    check_text(corpus, request, store, wanted.view)
    sets = {name: measurement(corpus, name, request.spec.model.context) for _, name in wanted.measurements}
    compute = compute_type(request.spec.precision, execution, compute_of(wanted.view.record))
    rows = []
    for step in sorted({step for step, _ in wanted.measurements}):
        weights = wanted.view.checkpoint(step).verified()
        model = build_model(request.spec, execution, weights)
        load_weights(model, weights)
        engine = Engine(request.spec, execution, TokenObjective(model), compute)
        for name in (name for s, name in wanted.measurements if s == step):
            rows.append({"step": step, "tokens": step * request.spec.batch_tokens, "set": name} | sets[name](engine))
        engine.close()
    if not dist.is_initialized() or dist.get_rank() == 0:
        store.prove(request.id)
        store.add_measurements(request.id, rows)
