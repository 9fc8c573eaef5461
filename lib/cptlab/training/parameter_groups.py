"""Which parameters the optimiser treats alike."""

import fnmatch
from collections import defaultdict

from transformers import PreTrainedModel

from cptlab.errors import ConfigError
from cptlab.runs.spec import Optimiser


def parameter_groups(model: PreTrainedModel, optimiser: Optimiser) -> list[dict]:
    """The trained parameters as AdamW's groups, a group a ``rate`` (factor on the learning rate): matrices, which decay, then vectors.

    Raises:
        ConfigError: a pattern of ``optimiser.lr_factors`` decides for no trained parameter.
    """
    rates = (*(optimiser.lr_factors or ()), ("*", 1.0))
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            place = next(i for i, (pattern, _) in enumerate(rates) if fnmatch.fnmatchcase(name, pattern))
            groups[place, parameter.ndim < 2].append(parameter)
    unused = [pattern for i, (pattern, _) in enumerate(rates[:-1]) if not {(i, False), (i, True)} & groups.keys()]
    if unused:
        raise ConfigError(f"optimiser.lr_factors: {unused} match no trained parameter that no earlier pattern has: mend, move or drop them")
    return [
        {"params": groups[place, vector], "weight_decay": 0.0 if vector else optimiser.weight_decay, "rate": rates[place][1]}
        for place, vector in sorted(groups)
    ]
