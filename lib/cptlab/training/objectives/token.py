"""What is minimised. An objective wraps a model: its forward pass turns windows of tokens into one loss a position."""

import torch
from torch import nn
from transformers import PreTrainedModel


class TokenObjective(nn.Module):
    """Next-token cross-entropy in nats.

    ``forward(inputs, labels)`` takes int64 tokens of shape [batch, context] and returns the loss of each position, fp32 of
    shape [batch, context], and, when not training, whether the most likely token was the label (bool, the same shape). In evaluation,
    ``allowed`` (bool [vocab]) leaves the other tokens out of the softmax; the loss of a label that is one of them is infinite.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor, allowed: torch.Tensor | None = None):
        logits = self.model(input_ids=inputs, use_cache=False).logits
        if allowed is not None:
            logits = logits.masked_fill_(~allowed, -torch.inf)  # in place: a copy would be as large as the logits
        # Log-sum-exp minus the label's logit: cross_entropy would write the whole log-softmax, as large as the logits, in fp32.
        losses = torch.logsumexp(logits.float(), -1) - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).float()
        if self.training:
            return losses
        return losses, logits.argmax(-1) == labels
