"""The commands that need no run: models, convert, recipes, bench."""

import json
import typing
from pathlib import Path

from gmmvit.cli.app import Json, app, say
from gmmvit.config import load_recipe, recipe_names


@app.command
def models(
    *, image_size: str = "32", num_classes: int = 10, channels: int = 3, markdown: bool = False, as_json: Json = False
) -> None:
    """List families, sizes and masks with their parameters and multiply-accumulates for an image size.

    Parameters
    ----------
    image_size
        Pixels, N or HEIGHTxWIDTH.
    num_classes
        Width of the head.
    channels
        Channels of the images.
    markdown
        Print the README's table, with one row per size of the paper.
    as_json
        Print JSON.
    """
    size = load_recipe("digits", image_size=image_size).image_size or (32,)
    from gmmvit.models import list_models, markdown_table, text_table

    rows = list_models((size[0], size[-1]), num_classes, channels)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print(markdown_table(rows) if markdown else text_table(rows))


@app.command
def convert(
    file: Path,
    /,
    *,
    family: str,
    mask: typing.Literal["none", "elm", "gmm"],
    out: Path,
    dataset: str | None = None,
    data_dir: str | None = None,
    num_heads: str | None = None,
    overwrite: bool = False,
) -> None:
    """Turn a checkpoint of the original code into a run folder for predict, eval and report.

    Parameters
    ----------
    file
        The .pth file; only its tensors are read.
    family
        Family of the model.
    mask
        Its mask.
    out
        Folder of the run.
    dataset
        What it was trained on: cifar10, cifar100, svhn or tiny-imagenet; default: the likeliest one for its images and
        classes.
    data_dir
        Folder of the data set, for class names that only its files contain.
    num_heads
        Heads, if the tensors do not show them (some models without Gaussian mask); one number or one per stage.
    overwrite
        Replace an old run in that folder.
    """
    heads = None if num_heads is None else load_recipe(num_heads=num_heads).num_heads
    from gmmvit.original.convert import convert as write_run

    folder = write_run(
        file,
        out,
        family=family,
        mask=mask,
        dataset=dataset,
        data_dir=data_dir,
        overwrite=overwrite,
        report=lambda notice: say(notice, error=True),
        **({} if heads is None else {"heads": heads[0] if len(heads) == 1 else heads}),
    )
    say(str(folder))


@app.command
def recipes() -> None:
    """List the shipped recipes with the comments at the top of their files."""
    from gmmvit.config import RECIPES

    for name in recipe_names():
        lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        print(name)
        print("\n".join(f"    {line.removeprefix('#').strip()}" for line in lines if line.startswith("#")))


@app.command
def bench(
    *,
    shapes: str | None = None,
    dtype: typing.Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    repeats: int = 15,
    out: Path | None = None,
    overwrite: bool = False,
    as_json: Json = False,
) -> None:
    """Time masked attention on this machine against SDPA without a mask, eager torch and FlexAttention.

    Parameters
    ----------
    shapes
        BATCHxHEADSxTOKENSxWIDTH, comma-separated, such as 256x12x64x16,2x12x4096x64.
    dtype
        Dtype of q, k and v.
    repeats
        Measurements of each contender.
    out
        CSV to write.
    overwrite
        Replace that file.
    as_json
        Print JSON.
    """
    from gmmvit.bench import run

    run(shapes, dtype=dtype, repeats=repeats, out=out, overwrite=overwrite, as_json=as_json)
