"""The operations on grey levels and colours, each with one parameter per sample.

n samples, C = 1 or 3 channels, H x W pixels. All take and return uint8 [n, C, H, W]; parameters are on the same device
and already shaped [n, 1, 1, 1] (or [n, C, 1, 1]). Arithmetic is float32 in torchvision's order, so that the results
are torchvision's bit for bit.
"""

import torch
from torch import Tensor


def to_bytes(levels: Tensor) -> Tensor:
    """Float levels, overwritten, cut to 0..255 and towards zero."""
    return levels.clamp_(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """The luma uint8 [n, 1, H, W]; a grey image is its own."""
    if images.shape[1] == 1:
        return images
    # Separate products and sums: a fused multiply-add rounds once less and moves a level now and then.
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114).to(torch.uint8)


def mean_grey(images: Tensor) -> Tensor:
    """The mean luma, float32 [n, 1, 1, 1]; summed in integers, so that it does not depend on how the sum is split."""
    pixels = images.shape[2] * images.shape[3]
    return grey(images).sum(dim=(1, 2, 3), keepdim=True).to(torch.float32).div_(pixels)


def level_range(images: Tensor) -> tuple[Tensor, Tensor]:
    """(low, gain), float32 [n, C, 1, 1], that stretch each channel to 0..255; a constant channel stays as it is."""
    low = images.amin(dim=(2, 3), keepdim=True).float()
    span = images.amax(dim=(2, 3), keepdim=True).float() - low
    constant = span == 0
    return low.masked_fill_(constant, 0), (255 / span).masked_fill_(constant, 1)


def stretch(images: Tensor, low: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """`(image - low) * gain + offset`: brightness, contrast, autocontrast and invert are all of this form."""
    return to_bytes(images.float().sub_(low).mul_(gain).add_(offset))


def blend(images: Tensor, other: Tensor, ratio: Tensor, complement: Tensor) -> Tensor:
    """`ratio * image + complement * other`, where complement is 1 - ratio, rounded from float64."""
    return to_bytes(images.float().mul_(ratio).add_(other.float().mul_(complement)))


def saturation(images: Tensor, ratio: Tensor, complement: Tensor) -> Tensor:
    """Blend with the luma; leaves grey images as they are."""
    return images if images.shape[1] == 1 else blend(images, grey(images), ratio, complement)


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
    smooth[:, :, 1:-1, 1:-1] = total.div_(13).round_()
    return to_bytes(levels.mul_(ratio).add_(smooth.mul_(complement)))


def posterize(images: Tensor, mask: Tensor) -> Tensor:
    """Keep the bits of the uint8 `mask`."""
    return images & mask


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the levels of at least the uint8 `threshold`."""
    return torch.where(images >= threshold, images.bitwise_not(), images)


def equalize(images: Tensor) -> Tensor:
    """Equalise the histogram of each channel, with the integer arithmetic of PIL and torchvision."""
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
