"""The report of a run: one HTML file that works offline, on desktops and phones.

`page` is the frame, `charts` and `pictures` draw. The sections are in `runs` (head, curves), `comparison`, `folds`,
`results` (classes, confusion, labels, calibration, mistakes, where it looked) and `masks`.
"""

from collections.abc import Sequence
from pathlib import Path

from gmmvit.checks import boolean, paths
from gmmvit.data import DataError
from gmmvit.device import choose_device
from gmmvit.report.comparison import comparison
from gmmvit.report.folds import folds_section
from gmmvit.report.masks import mask_picture, mask_section, starting_model
from gmmvit.report.page import document, paragraph
from gmmvit.report.results import (
    calibration_section,
    classes_section,
    confusion_section,
    labels_section,
    looking_section,
    measure,
    mistakes_section,
)
from gmmvit.report.runs import RunRecord, count_parameters, curves, head, read_run, title
from gmmvit.runs.checkpoint import LoadedRun, load_run
from gmmvit.runs.claim import own_if_run
from gmmvit.runs.files import RunError, check_new, write_whole
from gmmvit.runs.run_folder import CONFIG, as_folder, fold_folders, is_folds
from gmmvit.tasks import ONE_LABEL

__all__ = ["mask_picture", "write_report"]

FILE = "report.html"


def write_report(
    runs: Sequence[str | Path] | str | Path,
    out: str | Path | None = None,
    *,
    data_dir: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> Path:
    """Writes the report of a run: figures, curves, confusion matrix, classes, calibration, worst mistakes,
    masks, attention. Of several labels an image a table of the labels stands in the place of the matrix.

    A sentence replaces what cannot be shown (no weights yet, data set moved).

    Args:
        runs: run folders. With several, a table compares their masks by means over seeds and the details show the
            first. The folder of a cross-validation stands for its folds; its own figures come first.
        out: the HTML file, or a folder for it; default: report.html in the first run's folder.
        data_dir: where the named data sets are now, if they moved.
        device: where the model runs: cpu, cuda, auto.
        overwrite: replaces a file at `out`; a run's own report.html is always replaced.

    Returns:
        The path of the file.

    Raises:
        RunError: a folder is not a run, or the file cannot be written.
        RecipeError: the device does not exist.
        ValueError: no run was given.
    """
    folders = list(runs) if isinstance(runs, Sequence) and not isinstance(runs, str) else [runs]
    if not folders:
        raise ValueError("runs must name at least one run folder, got none")
    folders = [as_folder(folder) for folder in folders]
    paths(out=out, data_dir=data_dir)
    boolean("overwrite", overwrite)
    crossed = [Path(folder) for folder in folders if is_folds(folder)]
    path = Path(folders[0]) / FILE if out is None else Path(out)
    path = path / FILE if path.is_dir() else path
    own = [Path(folder).resolve() / FILE for folder in folders]
    folders = [run for folder in folders for run in _runs_of(folder)]
    records = [read_run(folder) for folder in folders]
    check_new(path, overwrite or path.resolve() in own)
    chosen = choose_device(device)
    sections = [("folds", "Cross-validation", "".join(map(folds_section, crossed)))]
    sections.append(("runs", "Masks compared", comparison(records) if len(records) > 1 else ""))
    sections.append(("curves", "Curves", curves(records[0])))
    try:
        loaded = load_run(folders[0], device=chosen)
    except RunError as error:
        sections.append(("model", "The model", paragraph(f"No weights to show: {error}.", "warn")))
    else:
        count_parameters(records[0], loaded.model)
        sections += _details(loaded, data_dir, records[0])
    page = document(title(records[0]), sections, head(records[0]))
    own_if_run(path)
    write_whole(path, page.encode(errors="backslashreplace"))
    return path


def _runs_of(folder: str | Path) -> list[str | Path]:
    """The folder itself, or the folders of a cross-validation's started folds."""
    if not is_folds(folder):
        return [folder]
    begun = [place for place in fold_folders(folder) if (place / CONFIG).is_file()]
    if not begun:
        raise RunError(f"{folder} has no fold yet: continue with `gmmvit resume {folder}`")
    return [*begun]


def _details(run: LoadedRun, data_dir: str | None, record: RunRecord) -> list[tuple[str, str, str]]:
    """The sections that need the model, some of them its data too."""
    learned = ("masks", "Learned masks", mask_section(run.model, starting_model(run)))
    try:
        outcome = measure(run, data_dir)
    except DataError as error:
        missing = (
            f"No test images, so the scores of the classes, the mistakes and the attention maps are left out: {error}. "
            "Masks and curves need no images."
        )
        return [("images", "Test images", paragraph(missing, "warn")), learned]
    if outcome.part == "test":
        record.facts["test_images"] = len(outcome.split)
    if run.task is ONE_LABEL:
        answers = [("confusion", "Confusion matrix", confusion_section(outcome))]
        answers.append(("classes", "Classes", classes_section(outcome)))
    else:
        answers = [("labels", "Labels", labels_section(outcome))]
    return [
        *answers,
        ("calibration", "Calibration", calibration_section(outcome)),
        ("mistakes", "Worst mistakes", mistakes_section(outcome)),
        learned,
        ("attention", "Attention", looking_section(outcome)),
    ]
