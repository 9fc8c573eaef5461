"""What every objective shares: the models that it holds, and the evaluation, which is the same whatever is trained."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

Batch = dict[str, torch.Tensor]


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each position in nats: fp32 of the shape of ``labels``, from logits of that shape and the vocabulary."""
    # Log-sum-exp minus the label's logit: cross_entropy would write the whole log-softmax, as large as the logits, in fp32.
    return torch.logsumexp(logits.float(), -1) - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).float()


class Objective(nn.Module):
    """A model and what is minimised with it.

    ``forward(batch)`` takes a dictionary of tensors, at least ``inputs`` and ``labels`` (int64, both of shape [batch, tokens]). In
    training it returns what :meth:`losses` does; in evaluation always the next token's loss (fp32 [batch, context]) and whether the most
    likely token was the label (bool), so that runs of all objectives are measured alike. There, ``allowed`` (bool [vocab]) in the batch
    leaves the other tokens out of the softmax; the loss of a label that is one of them is infinite.

    Args:
        model: what is trained.
        options: of the objective, all of them.
        upstream_models: the frozen models that it reads, by upstream name, where it needs any. They stand in a plain dictionary, which is
            no part of the module: neither the optimiser nor ZeRO nor a checkpoint sees them, and ``train()`` leaves them as they are.
    """

    def __init__(
        self, model: PreTrainedModel, options: Mapping[str, Any] | None = None, upstream_models: dict[str, PreTrainedModel] | None = None
    ):
        super().__init__()
        self.model, self.options, self.upstream_models = model, dict(options or {}), dict(upstream_models or {})

    def losses(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of each position in nats, whose mean is minimised, and further quantities by name, a value a position or one in all,
        whose means become columns of the training curve."""
        raise NotImplementedError

    def turn_to(self, phase: int) -> None:
        """Go on to a data phase, by its number."""

    def forward(self, batch: Batch):
        if self.training:
            losses, told = self.losses(batch)
            return losses, {name: value.detach() for name, value in told.items()}
        logits = self.model(input_ids=batch["inputs"], use_cache=False).logits
        if "allowed" in batch:
            logits = logits.masked_fill_(~batch["allowed"], -torch.inf)  # in place: a copy would be as large as the logits
        return token_losses(logits, batch["labels"]), logits.argmax(-1) == batch["labels"]


class PhasedObjective(Objective):
    """The objective of each phase of a run, around one model; ``parts`` are no part of the module, for what they train it holds."""

    def __init__(self, model: PreTrainedModel, parts: list[Objective]):
        super().__init__(model)
        self.parts, self.phase = tuple(parts), 0

    def turn_to(self, phase: int) -> None:
        self.phase = phase

    def losses(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.parts[self.phase].losses(batch)
