"""Images of 8 or 16 bits to normalised floats, for training and evaluation alike."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gmmvit.augment.device import to_device


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ValueError unless `mean` and `std` are per-channel statistics of images scaled to 0..1."""
    if len(mean) == 0 or len(mean) != len(std):
        raise ValueError(f"mean and std need one value per channel each; got {len(mean)} and {len(std)} values")
    if not all(0 <= value <= 1 for value in mean):
        raise ValueError(f"mean is per channel on the scale 0..1; got {tuple(mean)}")
    if not all(0 < value < float("inf") for value in std):
        raise ValueError(f"std must be positive, per channel on the scale 0..1; got {tuple(std)}")


_WHITE = {torch.uint8: 255, torch.uint16: 65535}


def check_images(images: Tensor, channels: int, argument: str = "images") -> None:
    """Raise unless `images` is a uint8 or uint16 tensor [B, channels, H, W] with H and W at least 1."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{argument} must be a torch.Tensor of dtype uint8 or uint16; got {type(images).__name__}")
    if images.dtype not in _WHITE:
        raise TypeError(f"{argument} must be uint8 (0..255) or uint16 (0..65535); got {images.dtype}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{argument} must have the shape [B, C, H, W]; got {list(images.shape)}")
    if images.shape[1] != channels:
        raise ValueError(f"{argument} has {images.shape[1]} channels, but mean and std have {channels}")


def from_0_to_1(images: Tensor) -> Tensor:
    """uint8 or uint16 levels as float32 from 0 to 1."""
    return images.float() / _WHITE[images.dtype]


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(image / white - mean) / std`, white being 255 or 65535.

    Args:
        images: uint8 or uint16 [B, C, H, W], any device.
        mean, std: C values each, on the scale 0..1.

    Returns:
        float32 [B, C, H, W] on the same device, contiguous.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or statistic.
    """
    check_statistics(mean, std)
    check_images(images, len(mean))
    white = _WHITE[images.dtype]
    host = torch.tensor([[white * value for value in mean], [1 / (white * value) for value in std]])
    shift, scale = to_device(host, images.device).view(2, 1, -1, 1, 1)
    # Three passes, yet faster than one addcmul on CPU, and the bits do not depend on a pixel's place in a vector.
    return images.to(torch.float32, memory_format=torch.contiguous_format).sub_(shift).mul_(scale)
