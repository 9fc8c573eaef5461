"""What is minimised, by name. What a run must know of an objective without torch stands in :mod:`cptlab.runs.objectives`."""

from transformers import PreTrainedModel

from cptlab.runs.spec import RunSpec
from cptlab.training.objectives.objective import Objective, PhasedObjective
from cptlab.training.objectives.token import TokenObjective

OBJECTIVES: dict[str, type[Objective]] = {"token": TokenObjective}


def build_objective(model: PreTrainedModel, spec: RunSpec, upstream_models: dict[str, PreTrainedModel]) -> Objective:
    """The objective of ``spec`` around ``model``, by phase where phases differ in it.

    ``upstream_models`` are those of :func:`cptlab.training.upstreams.open_upstreams`.
    """
    parts = [OBJECTIVES[name](model, options, upstream_models) for name, options in spec.objectives]
    return parts[0] if all(part == spec.objectives[0] for part in spec.objectives) else PhasedObjective(model, parts)
