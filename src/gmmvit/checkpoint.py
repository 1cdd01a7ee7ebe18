"""The run folder: what a training writes, how it is resumed, and how a trained model is loaded from it."""

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gmmvit.augment import normalize
from gmmvit.config import Recipe, RecipeError, as_dict, make_recipe
from gmmvit.data import decode_image
from gmmvit.models import create_model
from gmmvit.version import __version__

CONFIG, METRICS, SUMMARY, CHECKPOINT = "config.yaml", "metrics.jsonl", "summary.json", "checkpoint.pt"
WEIGHTS = {"best": "model.safetensors", "last": "last.safetensors"}
FILES = (CONFIG, METRICS, SUMMARY, CHECKPOINT, *WEIGHTS.values(), "report.html")


class RunError(RuntimeError):
    """A run folder that cannot be written, read or continued; one sentence."""


@contextmanager
def _told(path: Path, doing: str) -> Iterator[None]:
    """Faults of the disk as one sentence with the file's name."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot {doing} {path}: {error.strerror or error}") from error


def _replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file so that a kill or a full disk leaves the old one or the new one, never a torn one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _told(path, "write"):
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            raise OSError(str(error).splitlines()[0]) from error
        finally:
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file's content in one step."""
    _replace(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final newline."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def save_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A state_dict as safetensors."""
    write_whole(path, save({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}, metadata))


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Everything that a resumed training needs, as one file."""
    _replace(folder / CHECKPOINT, lambda file: torch.save(state, file))


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state that `save_checkpoint` wrote, on the CPU; None where no epoch was finished. Only tensors and plain
    values are read."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RunError(f"{path} is damaged and cannot be resumed from: {str(error).splitlines()[0]}") from error


def create_run(folder: Path, *, overwrite: bool = False) -> None:
    """Makes the folder of a new run; an old run is replaced only when asked, and only the files that a run writes."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give the run a folder with --out")
    if folder.is_dir() and any(folder.iterdir()):
        is_run = (folder / CONFIG).exists()
        if not overwrite:
            hint = f"continue it with `gmmvit resume {folder}`, " if is_run else ""
            what = "already holds a run" if is_run else "is not empty"
            raise RunError(f"{folder} {what}; {hint}choose another folder with --out, or replace it with --overwrite")
        if not is_run:
            raise RunError(
                f"{folder} holds files that are not a run's, so --overwrite leaves it alone; choose another --out"
            )
    with _told(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {"gmmvit": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def save_config(folder: Path, recipe: Recipe, model: dict[str, Any], data: dict[str, Any]) -> None:
    """Writes config.yaml: the recipe, the arguments of `create_model`, what is known of the data, and versions."""
    import yaml

    content = {"recipe": as_dict(recipe), "model": model, "data": data, "versions": versions()}
    write_whole(folder / CONFIG, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def load_config(folder: str | Path) -> dict[str, Any]:
    """The content of a run's config.yaml; raises RunError where the folder is not a run."""
    import yaml

    path = Path(folder) / CONFIG
    if not path.is_file():
        raise RunError(f"{folder} is not a run folder: it has no {CONFIG}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        parts = {name: content[name] for name in ("recipe", "model", "data", "versions")}
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not the configuration of a run: {' '.join(str(error).split())}") from None
    return parts


def recipe_of(folder: str | Path) -> Recipe:
    """The recipe of a run."""
    try:
        return make_recipe(load_config(folder)["recipe"], f"{Path(folder) / CONFIG}")
    except RecipeError as error:
        raise RunError(str(error)) from None


def append_row(folder: Path, row: dict[str, Any]) -> None:
    """One line of metrics.jsonl."""
    path = folder / METRICS
    with _told(path, "write"), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that a kill cut short is left out."""
    path = Path(folder) / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def rewind_rows(folder: Path, epoch: int) -> None:
    """Drops the rows of epochs that the checkpoint does not cover."""
    rows = [row for row in read_rows(folder) if row["epoch"] <= epoch]
    write_whole(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with all that its predictions need.

    `image_size` is (height, width) in pixels, `mean` and `std` are per channel in 0..1, `classes` are in the order of
    the logits. The model is in eval mode.
    """

    folder: Path
    model: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str
    device: torch.device

    @torch.no_grad()
    def logits(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """uint8 images [N, C, H, W] -> float32 logits [N, classes] on the CPU."""
        parts = [
            self.model(normalize(batch.to(self.device), self.mean, self.std)).float().cpu()
            for batch in images.split(batch_size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def decode(self, source: Any) -> Tensor:
        """An image file, its bytes or a PIL image -> uint8 [C, H, W] as in training; raises DataError by name."""
        return decode_image(source, size=self.image_size, channels=self.channels, fit=self.fit)

    def predict(self, source: Any, k: int = 5) -> list[tuple[str, float]]:
        """The k likeliest classes of one image with their probabilities, the likeliest first."""
        probabilities = self.logits(self.decode(source)[None])[0].softmax(-1)
        top = probabilities.topk(min(k, len(self.classes)))
        return [(self.classes[i], p) for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]


def load_run(folder: str | Path, *, weights: str = "best", device: str | torch.device = "cpu") -> LoadedRun:
    """A trained model from its run folder.

    Args:
        folder: what `gmmvit train --out` wrote.
        weights: "best" on the validation part, or "last".
        device: where the model goes.

    Raises:
        RunError: where the folder is not a run, or its weights are missing, damaged or of another model.
    """
    folder = Path(folder)
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {list(WEIGHTS)}, got {weights!r}")
    config = load_config(folder)
    data = config["data"]
    model = create_model(**config["model"])
    path = folder / WEIGHTS[weights]
    if not path.is_file():
        raise RunError(f"{folder} has no {path.name} yet: its training has not finished an epoch")
    try:
        model.load_state_dict(load_file(path))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise RunError(f"{path} does not hold the weights of this run: {str(error).splitlines()[0]}") from None
    return LoadedRun(
        folder=folder,
        model=model.to(device).eval(),
        recipe=recipe_of(folder),
        classes=tuple(data["classes"]),
        image_size=tuple(data["image_size"]),
        channels=data["channels"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        fit=data["fit"],
        device=torch.device(device),
    )
