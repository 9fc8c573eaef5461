"""Models that a run reads and does not train: its upstreams other than ``init``, where its objective needs them."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from cptlab.errors import ConfigError
from cptlab.runs.execution import Execution
from cptlab.runs.objectives import OBJECTIVES
from cptlab.runs.shapes import ModelSpec
from cptlab.runs.spec import DataOrder, Optimiser, RunSpec, Upstream
from cptlab.runs.store import Store
from cptlab.training.guards import upstream_weights
from cptlab.training.models import build_model, load_weights


def open_upstreams(
    spec: RunSpec, execution: Execution, store: Store, dtype: torch.dtype, device: torch.device
) -> dict[str, PreTrainedModel]:
    """The models that the objectives of ``spec`` need, by upstream name: in evaluation mode, without gradients, in ``dtype`` on ``device``.

    Raises:
        TrainingError: the weights are not here.
        StoreError: they are other ones than recorded.
        ConfigError: a model knows fewer tokens than the corpus has.
    """
    models = {}
    for name in dict.fromkeys(name for objective, _ in spec.objectives for name in OBJECTIVES[objective].upstreams):
        model = _open(spec.upstreams[name], spec, replace(execution, activation_checkpointing=False), store)
        if model.config.vocab_size < spec.corpus.vocab:
            raise ConfigError(
                f"the {name} knows {model.config.vocab_size} tokens and corpus {spec.corpus.name!r} has {spec.corpus.vocab}: "
                "use one that was trained with the corpus's tokenizer"
            )
        models[name] = model.requires_grad_(False).eval().to(device, dtype)
    return models


def _open(upstream: Upstream, spec: RunSpec, execution: Execution, store: Store) -> PreTrainedModel:
    if upstream.run is None:  # as a run that begins at this Hugging Face name would open it
        shape = ModelSpec(0, 0, 0, 0, vocab=spec.model.vocab, context=spec.model.context, family="hub")
        plain = {"objective": "token", "objective_options": None, "phases": (), "data_order": DataOrder(), "trainable": ("*",)}
        return build_model(replace(spec, model=shape, upstreams={"init": upstream}, optimiser=Optimiser(), **plain), execution)
    weights = upstream_weights(store, upstream).path
    model = build_model(upstream.run, execution, weights)
    load_weights(model, weights)
    return model
