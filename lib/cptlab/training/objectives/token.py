"""Next-token prediction."""

import torch

from cptlab.training.objectives.objective import Batch, Objective, token_losses


class TokenObjective(Objective):
    """Next-token cross-entropy."""

    def losses(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = self.model(input_ids=batch["inputs"], use_cache=False).logits
        return token_losses(logits, batch["labels"]), {}
