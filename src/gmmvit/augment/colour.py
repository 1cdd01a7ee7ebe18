"""The operations on grey levels and colours, each with one parameter per sample.

n samples, C channels, H x W pixels. All take and return uint8 [n, C, H, W]; parameters are on the same device, shaped
[n, 1, 1, 1] or [n, C, 1, 1]. Arithmetic is float32 in torchvision's order, so results match torchvision bit for bit.
16-bit images come as float32 with black at 0 and white at 1: these are neither rounded nor clipped, and overwritten.
"""

import torch
from torch import Tensor


def white(images: Tensor) -> float:
    """The level of white."""
    return 255 if images.dtype == torch.uint8 else 1.0


def to_levels(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """Float levels as `dtype`: for uint8 clipped to 0..255 in place and truncated, else unchanged."""
    return levels.clamp_(0, 255).to(torch.uint8) if dtype == torch.uint8 else levels


def grey(images: Tensor) -> Tensor:
    """[n, 1, H, W]: the luma of RGB, else the mean of the channels; a grey image is returned as it is."""
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        return to_levels(images.float().mean(1, keepdim=True), images.dtype)
    # Separate products and sums: a fused multiply-add rounds once less and would sometimes change a level.
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114).to(images.dtype)


def mean_grey(images: Tensor) -> Tensor:
    """The mean luma, float32 [n, 1, 1, 1]; summed in integers, so the order of the sum does not matter."""
    pixels = images.shape[2] * images.shape[3]
    return grey(images).sum(dim=(1, 2, 3), keepdim=True).to(torch.float32).div_(pixels)


def level_range(images: Tensor) -> tuple[Tensor, Tensor]:
    """(low, gain), float32 [n, C, 1, 1], that stretch each channel from black to white; a constant one stays."""
    low = images.amin(dim=(2, 3), keepdim=True).float()
    span = images.amax(dim=(2, 3), keepdim=True).float() - low
    constant = span == 0
    return low.masked_fill_(constant, 0), (white(images) / span).masked_fill_(constant, 1)


def stretch(images: Tensor, low: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """`(image - low) * gain + offset`: brightness, contrast, autocontrast and invert are all of this form."""
    return to_levels(images.float().sub_(low).mul_(gain).add_(offset), images.dtype)


def blend(images: Tensor, other: Tensor, ratio: Tensor, complement: Tensor) -> Tensor:
    """`ratio * image + complement * other`, where complement is 1 - ratio, rounded from float64."""
    return to_levels(images.float().mul_(ratio).add_(other.float().mul_(complement)), images.dtype)


def saturation(images: Tensor, ratio: Tensor, complement: Tensor) -> Tensor:
    """Blend with the luma; only RGB changes."""
    return images if images.shape[1] != 3 else blend(images, grey(images), ratio, complement)


def sharpness(images: Tensor, ratio: Tensor, complement: Tensor) -> Tensor:
    """Blend with a smoothed image: 3 x 3, weight 5 in the middle and 1 around it; the border is not smoothed."""
    if min(images.shape[-2:]) <= 2:
        return images
    levels = images.float()
    rows = levels[:, :, :-2] + levels[:, :, 1:-1]
    rows += levels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1]
    total += rows[..., 2:]
    inner = levels[:, :, 1:-1, 1:-1]
    total += inner * 4
    smooth = levels.clone()
    total = total.div_(13)
    smooth[:, :, 1:-1, 1:-1] = total.round_() if images.dtype == torch.uint8 else total
    return to_levels(levels.mul_(ratio).add_(smooth.mul_(complement)), images.dtype)


def posterize(images: Tensor, mask: Tensor) -> Tensor:
    """Keep the bits of `mask` in levels of 0..255."""
    if images.dtype == torch.uint8:
        return images & mask.to(torch.uint8)
    step = (256 - mask) / 256
    return (images / step).floor_().mul_(step)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert levels from `threshold` (0..255) up."""
    if images.dtype == torch.uint8:
        return torch.where(images >= threshold.to(torch.uint8), images.bitwise_not(), images)
    return torch.where(images >= threshold / 255, 1 - images, images)


def equalize(images: Tensor) -> Tensor:
    """Equalise each channel's histogram, with the integer arithmetic of PIL and torchvision."""
    if images.dtype != torch.uint8:
        return _equalize_ranks(images)
    planes = images.flatten(0, 1).flatten(1).long()
    histogram = torch.zeros(len(planes), 256, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(1, planes, torch.ones((), dtype=torch.int32, device=images.device).expand_as(planes))
    brightest = histogram.gather(1, planes.amax(1, keepdim=True))
    step = (planes.shape[1] - brightest) // 255
    below = histogram.cumsum(1, dtype=torch.int32) - histogram
    table = (below + step // 2) // step.clamp(min=1)
    levels = torch.arange(256, dtype=torch.int32, device=images.device)
    table = torch.where(step == 0, levels, table.clamp_(0, 255)).to(torch.uint8)
    return table.gather(1, planes).view_as(images)


def _equalize_ranks(images: Tensor) -> Tensor:
    """Each level becomes the fraction of its channel's pixels below it, those of the highest level not counted; a
    constant channel stays."""
    planes = images.flatten(2)
    ordered = planes.sort(-1).values
    below = torch.searchsorted(ordered, planes.contiguous()).float()
    most = below.amax(-1, keepdim=True)
    return torch.where(most > 0, below / most.clamp(min=1), planes).view_as(images)
