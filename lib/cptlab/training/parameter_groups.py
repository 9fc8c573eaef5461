"""Which parameters the optimiser treats alike."""

import fnmatch
from collections import defaultdict

from transformers import PreTrainedModel

from cptlab.errors import ConfigError
from cptlab.runs.spec import Optimiser


def parameter_groups(model: PreTrainedModel, optimiser: Optimiser) -> list[dict]:
    """The trained parameters as AdamW's groups, a group a ``lr_factor``: matrices, which decay, then vectors.

    Raises:
        ConfigError: a pattern of ``optimiser.lr_factors`` decides for no trained parameter.
    """
    factors = (*optimiser.lr_factors, ("*", 1.0))
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            place = next(i for i, (pattern, _) in enumerate(factors) if fnmatch.fnmatchcase(name, pattern))
            groups[place, parameter.ndim < 2].append(parameter)
    unused = [pattern for i, (pattern, _) in enumerate(factors[:-1]) if not {(i, False), (i, True)} & groups.keys()]
    if unused:
        raise ConfigError(f"optimiser.lr_factors: {unused} match no trained parameter that no earlier pattern has: mend, move or drop them")
    return [
        {"params": groups[place, vector], "weight_decay": 0.0 if vector else optimiser.weight_decay, "lr_factor": factors[place][1]}
        for place, vector in sorted(groups)
    ]
