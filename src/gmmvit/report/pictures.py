"""Pictures as `data:` addresses: images of the data set, masks in colour, attention over an image.

Letters: C channels, H height, W width; R x S cells of a mask.
"""

import base64
import io
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Blue below, orange above the neutral value: distinct with every kind of colour vision.
_DIVERGING = ("#123f73", "#3f83bf", "#a9cbe2", "#f4f2ee", "#f3bf87", "#d9772a", "#7a3206")
_SEQUENTIAL = ("#f6f5f2", "#c3d7e6", "#7fb0d3", "#3a7bb3", "#154a80", "#0a2b52")
_ERRORS = ("#f6f5f2", "#f6dcc0", "#eeb27a", "#d9772a", "#a34a10", "#5f2504")
LEVELS = 65  # colours of a map; odd, so that the neutral value gets one
LOSSLESS_SIDE = 64  # larger images are stored as JPEG of at most LARGEST_SIDE pixels
LARGEST_SIDE = 160
HEAT = (255, 122, 20)
MARK = (0, 214, 255)


def _ramp(anchors: Sequence[str]) -> list[tuple[int, int, int]]:
    """LEVELS colours, evenly spaced along `anchors`."""
    colours = [tuple(int(anchor[i : i + 2], 16) for i in (1, 3, 5)) for anchor in anchors]
    ramp = []
    for level in range(LEVELS):
        place = level / (LEVELS - 1) * (len(colours) - 1)
        first = min(int(place), len(colours) - 2)
        part = place - first
        low, high = colours[first], colours[first + 1]
        ramp.append(tuple(round(a + (b - a) * part) for a, b in zip(low, high, strict=True)))
    return ramp  # type: ignore[return-value]


DIVERGING = _ramp(_DIVERGING)
SEQUENTIAL = _ramp(_SEQUENTIAL)
ERRORS = _ramp(_ERRORS)


def hex_colour(colour: tuple[int, int, int]) -> str:
    """#rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def levels(values: Tensor, low: float, high: float) -> Tensor:
    """Values as indices 0 to LEVELS - 1 into a map over low..high, clamped to its ends; NaN counts as low."""
    place = (values.double().nan_to_num(low) - low) / max(high - low, 1e-12)
    return (place.clamp(0, 1) * (LEVELS - 1)).round().to(torch.uint8)


def _address(image: object, kind: str) -> str:
    buffer = io.BytesIO()
    options = {"quality": 88} if kind == "jpeg" else {"optimize": True}
    image.save(buffer, kind, **options)  # type: ignore[attr-defined]
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def map_address(indices: Tensor, colours: Sequence[tuple[int, int, int]]) -> str:
    """A map uint8 [R, S] of indices into `colours` as PNG, one pixel per cell."""
    from PIL import Image

    image = Image.frombytes("P", (indices.shape[1], indices.shape[0]), indices.contiguous().numpy().tobytes())
    image.putpalette([value for colour in colours for value in colour])
    return _address(image, "png")


def viewable(image: Tensor) -> Tensor:
    """An image [C, H, W] of any number of channels, uint8 or uint16, as uint8 of 1 or 3: the first three channels, or
    the first; of 16 bits stretched from their darkest level to their brightest."""
    shown = image[: 3 if len(image) >= 3 else 1]
    if image.dtype == torch.uint8:
        return shown
    levels = shown.float()
    low = levels.min()
    return ((levels - low) * (255 / (levels.max() - low).clamp_min(1))).round().to(torch.uint8)


def about_view(channels: int, bits: int) -> str:
    """What `viewable` shows of such images, in sentences after a space; empty where it is all."""
    first = "three are" if channels > 3 else "is"
    chosen = "" if channels in (1, 3) else f" Of {channels} channels the first {first} shown."
    stretched = " Levels of 16 bits are stretched from the darkest to the brightest of each picture."
    return chosen + (stretched if bits == 16 else "")


def image_address(image: Tensor) -> str:
    """An image [C, H, W], as `viewable` shows it, as PNG; a large one is shrunk and stored as JPEG."""
    from PIL import Image

    image = viewable(image)
    picture = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).cpu().contiguous().numpy(), "RGB")
    if max(picture.size) <= LOSSLESS_SIDE:
        return _address(picture, "png")
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return _address(picture, "jpeg")


def heat_over(image: Tensor, heat: Tensor, query: tuple[int, int] | None) -> Tensor:
    """Heat [rows, cols] laid over an image [C, H, W] -> uint8 [3, H', W'], enlarged to at least 96 pixels.

    The image becomes grey and dim. Cells above the mean heat are coloured, the largest fully, so evenly spread
    attention colours nothing. `query` is the (row, column) of a cell to frame.
    """
    grey = viewable(image).float().mean(0)
    factor = -(-96 // max(grey.shape))
    grey = grey.repeat_interleave(max(1, factor), 0).repeat_interleave(max(1, factor), 1)
    height, width = grey.shape
    heat = (heat.float() - heat.float().mean()).clamp_min(0)
    heat = heat / heat.max().clamp_min(1e-9)
    smooth = nn.functional.interpolate(heat[None, None], (height, width), mode="bilinear", align_corners=False)[0]
    weight = 0.8 * smooth
    picture = (1 - weight) * (0.75 * grey) + weight * torch.tensor(HEAT, dtype=torch.float32).view(3, 1, 1)
    if query is not None:
        rows, cols = heat.shape
        top, bottom = (round((query[0] + step) * height / rows) for step in (0, 1))
        left, right = (round((query[1] + step) * width / cols) for step in (0, 1))
        frame = torch.zeros(height, width, dtype=torch.bool)
        frame[top:bottom, left:right] = True
        thick = max(1, max(height, width) // 64)
        frame[top + thick : bottom - thick, left + thick : right - thick] = False
        picture[:, frame] = torch.tensor(MARK, dtype=torch.float32).unsqueeze(1)
    return picture.round().clamp(0, 255).to(torch.uint8)
