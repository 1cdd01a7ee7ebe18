"""Several models combined into one. Letters: B batch, C channels, H height, W width."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gmmvit.tasks import ONE_LABEL, Task


class Ensemble(nn.Module):
    """Models of the same classes, each with the normalisation it was trained with.

    Takes images [B, C, H, W] in 0..1 and returns logits float32 [B, classes] whose probabilities are the mean of the
    models'; of one label an image the logarithm of that mean.

    Args:
        members: one or more models that return logits [B, classes].
        statistics: mean and standard deviation per channel, in 0..1, for each member.
        task: whether an image has one label or several.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        statistics: Sequence[tuple[Sequence[float], Sequence[float]]],
        task: Task = ONE_LABEL,
    ) -> None:
        super().__init__()
        self.task = task
        self.members = nn.ModuleList(members)
        for name, values in zip(("mean", "std"), zip(*statistics, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        parts = [
            member((images - mean) / std).float()
            for member, mean, std in zip(self.members, self.mean, self.std, strict=True)
        ]
        return self.task.mean_logits(torch.stack(parts))
