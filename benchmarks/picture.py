"""Draws a picture of docs/gallery.md or of README from a run folder.

python benchmarks/picture.py masks RUN docs/masks.svg         the learned masks, a row per layer and a column per head
python benchmarks/picture.py training RUN OUT.svg             the same beside the masks before training
python benchmarks/picture.py attention RUN OUT.png            what the model looks at, a row per image
python benchmarks/picture.py report RUN OUT.webp              the top of its report, in a headless Chromium
"""

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from gmmvit.data import DataError
from gmmvit.report import mask_picture, write_report
from gmmvit.report.attention import attention_maps
from gmmvit.report.masks import starting_model
from gmmvit.report.pictures import heat_over
from gmmvit.report.results import looked_at, measure
from gmmvit.runs.checkpoint import LoadedRun, load_run
from gmmvit.runs.files import RunError, write_whole

CELL, GAP, LINE = 120, 12, 22  # pixels
PAGE = {"width": 1120, "height": 1500}
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")


def masks(run: LoadedRun) -> bytes:
    return mask_picture(run.model).encode()


def training(run: LoadedRun) -> bytes:
    start = starting_model(run)
    if isinstance(start, str):
        raise ValueError(start)
    return mask_picture(run.model, start).encode()


def attention(run: LoadedRun) -> bytes:
    """Test images and the attention of every layer over them, as PNG."""
    outcome = measure(run, None)
    indices = looked_at(outcome)
    images = outcome.split.images[indices]
    maps = attention_maps(run, images)
    if not maps:
        raise ValueError(f"attention is not drawn for {run.recipe.model}")
    heats = [layer.heat() for layer in maps]
    titles = ["image", *(f"layer {number}" for number in range(1, len(maps) + 1))]
    size = (GAP + len(titles) * (CELL + GAP), LINE + len(indices) * (CELL + LINE + GAP))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (CELL + GAP), 3), title, "#5d666f", font)
    for number, (index, image) in enumerate(zip(indices, images, strict=True)):
        top = LINE + number * (CELL + LINE + GAP)
        shown = [image.expand(3, -1, -1), *(heat_over(image, heat[number], cell) for heat, cell in heats)]
        for column, pixels in enumerate(shown):
            picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            picture = picture.resize((CELL, CELL), Image.Resampling.NEAREST)
            canvas.paste(picture, (GAP + column * (CELL + GAP), top))
        draw.text((GAP, top + CELL + 2), outcome.caption(index), "#22262b", font)
    buffer = io.BytesIO()
    canvas.quantize(256).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def report(run: LoadedRun) -> bytes:
    """The first screens of the report, as WebP."""
    from playwright.sync_api import sync_playwright

    browsers = [path for path in map(shutil.which, BROWSERS) if path]
    if not browsers:
        raise ValueError("there is no Chromium: apt-get install chromium-headless-shell")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as program:
        page = write_report(run.folder, Path(folder) / "report.html")
        browser = program.chromium.launch(executable_path=browsers[0], args=["--no-sandbox"])
        view = browser.new_page(viewport=PAGE)
        view.goto(page.as_uri())
        shot = view.screenshot()
        browser.close()
    buffer = io.BytesIO()
    Image.open(io.BytesIO(shot)).save(buffer, "webp", quality=80, method=6)
    return buffer.getvalue()


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    drawers = {"masks": masks, "training": training, "attention": attention, "report": report}
    parser.add_argument("kind", choices=drawers)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("out", type=Path, help="the file to write")
    arguments = parser.parse_args(words)
    try:
        with torch.no_grad():
            picture = drawers[arguments.kind](load_run(arguments.run))
        write_whole(arguments.out, picture)
    except (RunError, DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {len(picture) / 1000:.1f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
