"""The command inspect: looks at a data set before training."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gmmvit.cli.app import Json, app, say
from gmmvit.cli.flags import DataFlags, suitable_recipe
from gmmvit.config import load_recipe


@app.command
def inspect(
    dataset: str,
    /,
    *,
    recipe: str | None = None,
    out: Path = Path("inspect.html"),
    overwrite: bool = False,
    as_json: Json = False,
    fields: Annotated[DataFlags | None, Parameter(name="*")] = None,
) -> None:
    """Look at a data set before training: classes, sizes, broken images, copies, a contact sheet, the augmentation.

    Prints a few lines and writes a page that works offline.

    Parameters
    ----------
    dataset
        As for `gmmvit train --dataset`, such as folder:PATH or cifar10; a bare path is a folder of images.
    recipe
        The recipe whose augmentation is shown; default: the one that `gmmvit train` would choose.
    out
        The page.
    overwrite
        Replace that file.
    as_json
        Print the findings as JSON.
    fields
        The recipe's fields for data and augmentation.
    """
    from gmmvit.data import DataError, dataset_names
    from gmmvit.report.found import as_values, lines_of
    from gmmvit.report.inspection import check_page, write_inspection
    from gmmvit.runs.run_data import inspect_data

    check_page(out, overwrite)
    if ":" not in dataset and dataset not in dataset_names() and Path(dataset).expanduser().exists():
        dataset = f"folder:{dataset}"
    given: dict[str, Any] = {**(fields or {}), "dataset": dataset}
    try:
        name, reason = (recipe, "") if recipe else suitable_recipe(given)
    except DataError:  # the findings report data that a training refuses
        name, reason = "few", "the fallback"
    loaded = load_recipe(name, **given)
    notices: list[str] = []

    def heard(line: str) -> None:
        say(line, error=True)
        if not line.startswith(f"{dataset}: decod"):  # progress
            notices.append(line)

    found = inspect_data(loaded, heard)
    page = write_inspection(found, loaded, out, notices=notices, overwrite=overwrite)
    if as_json:
        print(json.dumps({**as_values(found), "recipe": name, "page": str(page)}, indent=2))
        return
    for line in lines_of(found, loaded):
        say(line)
    say(f"augmentation as in recipe {name}" + (f", {reason}" if reason else ""))
    say(str(page))
