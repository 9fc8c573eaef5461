"""What is minimised, by name. What a run must know of an objective without torch stands in :mod:`cptlab.runs.objectives`."""

from cptlab.training.objectives.token import TokenObjective

OBJECTIVES = {"token": TokenObjective}
