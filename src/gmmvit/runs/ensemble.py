"""Several models combined into one. Letters: B batch, C channels, H height, W width."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Models of the same classes, each with the normalisation it was trained with.

    Takes images [B, C, H, W] in 0..1 and returns the logarithm of the mean of the models' probabilities, float32
    [B, classes]: logits whose softmax is that mean.

    Args:
        members: one or more models that return logits [B, classes].
        statistics: mean and standard deviation per channel, in 0..1, for each member.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, members: Sequence[nn.Module], statistics: Sequence[tuple[Sequence[float], Sequence[float]]]
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        for name, values in zip(("mean", "std"), zip(*statistics, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        parts = [
            member((images - mean) / std).float().log_softmax(-1)
            for member, mean, std in zip(self.members, self.mean, self.std, strict=True)
        ]
        return torch.stack(parts).logsumexp(0) - torch.tensor(float(len(parts))).log()
