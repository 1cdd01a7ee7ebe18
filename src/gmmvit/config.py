"""A training configuration: one frozen dataclass, its YAML files in `recipes/`, and their checks. Loads no torch."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gmmvit.field_values import RecipeError as RecipeError
from gmmvit.field_values import coerced
from gmmvit.text import short
from gmmvit.yaml_files import YamlError, read_yaml

RECIPES = Path(__file__).parent / "recipes"


def opt(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field of the recipe with its help line."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training does. Fields are those of the YAML files and of the command line."""

    # data
    dataset: str = opt(
        "digits", "digits, cifar10, cifar100, svhn, tiny-imagenet, flowers102, folder:PATH or hf:NAME_OR_PATH."
    )
    data_dir: str | None = opt(None, "Folder that holds the named datasets.")
    image_size: tuple[int, ...] | None = opt(
        None, "Training size in pixels, N or HEIGHTxWIDTH; the dataset's own by default."
    )
    channels: int | None = opt(None, "1 (grey) or 3 (colour); the dataset's own by default.")
    fit: str = opt("crop", "How images of another shape are brought to the training size.", ("crop", "stretch", "pad"))
    val_fraction: float = opt(0.1, "Part of the training set held out for validation; 0 trains on all of it.")
    test_fraction: float = opt(0.2, "Part of a folder without test set that is held out for the test.")
    split_seed: int = opt(0, "Seed of those two splits.")
    train_per_class: int | None = opt(
        None, "Take the first so many training images of each class alone; the validation part is cut from them."
    )
    cache_dir: str | None = opt(None, "Where decoded images are kept (environment: GMMVIT_CACHE).")
    skip_broken: bool = opt(False, "Go on without the images that cannot be read, and list them.")
    dedupe: bool = opt(False, "Keep copies of a picture, exact or near, in one part of a folder: or hf: data set.")
    folds: int | None = opt(
        None, "Cross-validation: so many trainings, each measured on another part of the images (docs/training.md)."
    )
    fold: int | None = opt(None, "Of those only this one, from 1 on.")
    train_on_all: bool = opt(
        False, "Learn the validation images too: nothing chooses a best epoch, the last one is kept."
    )
    # model
    model: str = opt("vit", "Family of the model (see `gmmvit models`), timm:NAME or hf:NAME_OR_PATH.")
    model_args: Mapping[str, Any] | None = opt(None, "Arguments of a timm: or hf: model, as depth=4,embed_dim=64.")
    pretrained: bool | str = opt(
        False, "Weights to start from: true (those of its library), or a safetensors or .pth file or a folder with one."
    )
    size: str | None = opt(None, "Named size of the family (see `gmmvit models`).")
    mask: str = opt("gmm", "Mask on the attention logits.", ("none", "elm", "gmm"))
    mode: str = opt("multiply", "How the mask acts on attention.", ("multiply", "log", "post"))
    mask_init: str | None = opt(
        None, "Start of the mask (elm: paper or identity).", ("paper", "identity", "local", "conv")
    )
    num_kernels: int = opt(5, "Gaussians per head.")
    covariance: str = opt("spherical", "Shape of a Gaussian.", ("spherical", "diag", "full"))
    learn_center: bool = opt(False, "Learn an offset of the mask's peak per head.")
    elm_per_head: bool = opt(False, "One element-wise mask per head instead of one per layer.")
    patch_size: tuple[int, ...] | None = opt(None, "Patch in pixels, N or HEIGHTxWIDTH; the family's own by default.")
    dim: tuple[int, ...] | None = opt(None, "Width; one number or one per stage, as 96,192,384.")
    depth: tuple[int, ...] | None = opt(None, "Layers; one number or one per stage.")
    num_heads: tuple[int, ...] | None = opt(None, "Attention heads; one number or one per stage.")
    mlp_ratio: float | None = opt(None, "Hidden width of the MLPs as a multiple of the width.")
    stem: str | None = opt(
        None, "What makes tokens of images: patch (linear, by default) or conv (small convolutions).", ("patch", "conv")
    )
    position_std: float | None = opt(None, "Standard deviation at which position embeddings start; 1 by default.")
    pool: str | None = opt(None, "What the head reads: mean of the patches, or a class token.", ("mean", "cls"))
    dropout: float = opt(0.0, "Dropout of embeddings and projections.")
    drop_path: float = opt(0.1, "Probability that a sample skips a branch.")
    # augmentation
    crop_padding: int = opt(4, "Pixels of padding before a random crop; 0 is no crop.")
    flip: bool | None = opt(None, "Random mirror images; by default where the dataset allows them.")
    policy: str | None = opt(
        None,
        "Augmentation policy; by default the dataset's own.",
        ("none", "cifar10", "svhn", "imagenet", "rand", "trivial"),
    )
    rand_ops: int = opt(2, "Operations a RandAugment policy applies.")
    rand_magnitude: int = opt(9, "Magnitude of RandAugment, 0 to 30.")
    erase_prob: float = opt(0.25, "Probability of random erasing.")
    erase_area: tuple[float, ...] = opt((0.02, 0.4), "Smallest and largest erased part of the image.")
    erase_aspect: tuple[float, ...] = opt((0.3, 3.3), "Smallest and largest height to width of the erased part.")
    mix_prob: float = opt(0.5, "Part of the batches that are mixed, by mixup or cutmix at a fair coin.")
    mixup_alpha: float = opt(1.0, "Beta distribution of mixup; 0 switches it off.")
    cutmix_alpha: float = opt(1.0, "Beta distribution of cutmix; 0 switches it off.")
    label_smoothing: float = opt(0.1, "Part of the target spread over all classes.")
    # optimisation
    epochs: int = opt(100, "Epochs; each is validated and checkpointed.")
    passes: int = opt(1, "Sweeps over the training set in an epoch.")
    minutes: float | None = opt(
        None, "Minutes that the training may take: sets epochs, passes and warm-up from the speed measured before it."
    )
    batch_size: int = opt(128, "Images in a batch.")
    accumulate: int = opt(1, "Batches whose gradients make one step.")
    optimizer: str = opt(
        "adamw",
        "adamw, or muon: hidden matrices move along the orthogonal factor of their momentum, the rest by AdamW.",
        ("adamw", "muon"),
    )
    lr: float = opt(1e-3, "Peak learning rate.")
    min_lr: float = opt(1e-6, "Learning rate at the end of the cosine.")
    warmup_epochs: float = opt(10.0, "Epochs of linear warm-up; a quarter of the training at most.")
    restarts: tuple[int, ...] | None = opt(
        None, "Epochs after which the learning rate begins anew, as 20,40; `resume --epochs` adds one."
    )
    weight_decay: float = opt(0.05, "Weight decay of matrices; masks, norms, biases, positions have none.")
    mask_lr_scale: float = opt(1.0, "Learning rate of the mask parameters as a multiple of the others'.")
    muon_lr_scale: float = opt(1.0, "Learning rate of Muon's matrices as a multiple of the others'.")
    mask_weight_decay: float = opt(0.0, "Weight decay of the mask parameters.")
    class_weights: str = opt(
        "none", "Weight of an image in the loss: balanced gives every class the same sum.", ("none", "balanced")
    )
    sampling: str = opt(
        "shuffled", "Order of the images: balanced draws every class equally often.", ("shuffled", "balanced")
    )
    select: str = opt(
        "top1",
        "What makes an epoch the best, on validation: top1, macro_f1 or balanced (accuracy).",
        ("top1", "macro_f1", "balanced"),
    )
    patience: int | None = opt(
        None, "Stop after so many epochs without a better validation value, of what select names; never by default."
    )
    clip_norm: float | None = opt(None, "Largest norm of the gradient.")
    ema: float | None = opt(None, "Decay of an average of the weights, which is then evaluated and kept, as 0.999.")
    # machine
    seed: int = opt(0, "Seed of initialisation, order and augmentation.")
    device: str = opt("auto", "auto, cpu, cuda, cuda:1, mps ...")
    dtype: str = opt(
        "auto",
        "Arithmetic of the forward pass; auto is bfloat16 where the device is fast at it.",
        ("auto", "float32", "bfloat16", "float16"),
    )
    shard: bool = opt(False, "Under torchrun, split model and optimiser over the processes (FSDP2).")
    compile: bool = opt(False, "Compile the model with torch.compile.")
    cuda_graph: bool = opt(True, "On one GPU: record a whole step of the training once and replay it as a CUDA graph.")
    deterministic: bool = opt(False, "Only deterministic GPU kernels (the CPU's always are).")
    threads: int | None = opt(None, "CPU threads; torch's choice by default.")
    loggers: tuple[str, ...] = opt((), "Also log to: tensorboard, wandb, trackio (a list with commas).")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, coerced(f, getattr(self, f.name)))
        _check_ranges(self)


# Fields and the range that their numbers must lie in.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("val_fraction", "test_fraction"), (0, 0.9)),
    **dict.fromkeys(("erase_prob", "mix_prob", "erase_area"), (0, 1)),
    **dict.fromkeys(("label_smoothing", "drop_path", "dropout"), (0, 0.99)),
    **dict.fromkeys(("epochs", "passes", "batch_size", "accumulate", "train_per_class", "patience"), (1, 10**9)),
    **dict.fromkeys(("image_size", "patch_size", "dim", "depth", "num_heads"), (1, 10**5)),
    **dict.fromkeys(("num_kernels", "threads"), (1, 1024)),
    **dict.fromkeys(("crop_padding",), (0, 1024)),
    **dict.fromkeys(("warmup_epochs", "weight_decay", "min_lr", "mask_lr_scale", "muon_lr_scale"), (0, 10**6)),
    **dict.fromkeys(("mask_weight_decay", "mixup_alpha", "cutmix_alpha"), (0, 10**6)),
    **dict.fromkeys(("seed", "split_seed"), (0, 2**63 - 1)),
    **dict.fromkeys(("lr", "clip_norm", "mlp_ratio", "position_std", "erase_aspect"), (1e-12, 10**6)),
    "minutes": (0.01, 10**6),
    "folds": (2, 1000),
    "fold": (1, 1000),
    "ema": (0, 1 - 1e-9),
    "rand_ops": (1, 100),
    "rand_magnitude": (0, 30),
}


def _check_ranges(recipe: Recipe) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(recipe, name)
        for number in value if isinstance(value, tuple) else () if value is None else (value,):
            if not low <= number <= high:
                raise RecipeError(f"{name} must be {low:g} to {high:g}, got {short(number)}")
    if recipe.fold is not None and (recipe.folds is None or recipe.fold > recipe.folds):
        raise RecipeError(f"fold must be one of 1 to folds, got {recipe.fold} of {recipe.folds or 'no'} folds")
    restarts = recipe.restarts or ()
    if list(restarts) != sorted({epoch for epoch in restarts if 0 < epoch < recipe.epochs}):
        raise RecipeError(
            f"restarts must be rising numbers of epochs below the {recipe.epochs} of the training, got "
            f"{short(restarts)}"
        )
    if recipe.train_on_all and recipe.patience is not None:
        raise RecipeError("patience and train_on_all do not go together: no validation image is left to judge by")
    if recipe.channels not in (None, 1, 3):
        raise RecipeError(f"channels must be 1 or 3, got {recipe.channels}")
    for name in ("image_size", "patch_size"):
        if len(getattr(recipe, name) or (1,)) > 2:
            raise RecipeError(f"{name} must be N or HEIGHTxWIDTH, got {short(getattr(recipe, name))}")
    for name in ("erase_area", "erase_aspect"):
        pair = getattr(recipe, name)
        if len(pair) != 2 or pair[0] > pair[1]:
            raise RecipeError(f"{name} must be a smallest and a largest value, got {short(pair)}")
    if recipe.mask == "elm" and recipe.mask_init in ("local", "conv"):
        raise RecipeError(f"mask_init of an elm must be paper or identity, got {recipe.mask_init!r}")
    if recipe.mask == "gmm" and recipe.mask_init == "conv" and recipe.mode != "log":
        raise RecipeError(
            f"mask_init conv needs mode log (--mode log), or another start (--mask-init local), got {recipe.mode!r}"
        )
    if recipe.mask == "gmm" and recipe.mask_init == "conv" and recipe.num_kernels < 2:
        raise RecipeError("mask_init conv needs num_kernels of at least 2, a peak and a constant, got 1")
    if recipe.shard and recipe.optimizer == "muon":
        raise RecipeError(
            "optimizer muon needs whole matrices, which shard splits; take --no-shard or --optimizer adamw"
        )
    _check_library(recipe)
    unknown = set(recipe.loggers) - {"tensorboard", "wandb", "trackio"}
    if unknown:
        raise RecipeError(f"loggers must be among ['tensorboard', 'trackio', 'wandb'], got {short(sorted(unknown))}")


def _check_library(recipe: Recipe) -> None:
    """Fields that belong to our own families, or to models of other libraries, alone."""
    if library_of(recipe.model) is None:
        if recipe.model_args is not None:
            raise RecipeError(
                f"model_args are for models of timm: and hf:; {recipe.model} has the fields {list(SIZES)}"
            )
        if recipe.pretrained is True:
            raise RecipeError(f"pretrained must be false or a file or folder of weights: {recipe.model} comes without")
        return
    given = [name for name in SIZES if getattr(recipe, name) is not None]
    if given:
        raise RecipeError(
            f"{given[0]} is a field of gmmvit's own families; say what {recipe.model} calls it with model_args "
            "(--model-args NAME=VALUE,...)"
        )


def library_of(model: str) -> tuple[str, str] | None:
    """("timm" or "hf", name) of a model of another library; None for one of our families."""
    library, colon, name = model.partition(":")
    return (library, name) if colon and library in ("timm", "hf") else None


# What a recipe says of the size of a model of ours; of no meaning to another family.
SIZES = ("size", "patch_size", "dim", "depth", "num_heads", "mlp_ratio", "stem", "position_std", "pool")

# What a recipe says of its mask; of no meaning to another kind of mask.
_OF_THE_MASK = ("mode", "mask_init", "num_kernels", "covariance", "learn_center", "elm_per_head")


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def make_recipe(values: dict[str, Any], source: str = "the recipe") -> Recipe:
    """A Recipe from a mapping; raises RecipeError for an unknown or ill-typed field, with the nearest good name."""
    known = [f.name for f in dataclasses.fields(Recipe)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name)[:80], known, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "; `gmmvit train --help` lists the fields"
            raise RecipeError(f"{source} has an unknown field {short(name)}{hint}")
    try:
        return Recipe(**values)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def load_recipe(name: str | Path = "digits", **overrides: Any) -> Recipe:
    """A shipped recipe by name, or a YAML file by path, with fields replaced by `overrides`.

    With another `model` than the recipe's, the recipe's sizes and weights are left out: the model's own hold. So are
    mode, start and shape of its mask with another `mask`, its start where a timm: or hf: model comes `pretrained`, and
    optimiser and rate with `pretrained` weights.

    Raises RecipeError for an unknown recipe, file, field or value, TypeError for a name that is none.
    """
    if not isinstance(name, str | Path):
        raise TypeError(f"name must be that of a recipe or the path of a YAML file, got {name!r}")
    path = RECIPES / f"{name}.yaml" if str(name) in recipe_names() else Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(str(name), recipe_names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"no recipe and no file {str(name)!r}; shipped are {', '.join(recipe_names())}{hint}")
    try:
        values = read_yaml(path) or {}
    except YamlError as error:
        raise RecipeError(f"{path} {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold fields as `name: value`, got a {type(values).__name__}")
    if isinstance(values.get("recipe"), dict):  # the config.yaml of a run repeats that run
        values = values["recipe"]
    written = make_recipe(values, f"recipe {path.name}")  # so that a fault of the file is reported as the file's
    left_out: set[str] = set()
    if overrides.get("model", written.model) != written.model:
        left_out |= {*SIZES, "model_args", "pretrained"}
    if overrides.get("mask", written.mask) != written.mask:
        left_out |= {*_OF_THE_MASK}
    if overrides.get("pretrained") and library_of(overrides.get("model", written.model)):
        left_out.add("mask_init")  # the model should mean what it meant: the mask is the identity at first
    if overrides.get("pretrained"):
        left_out |= {"optimizer", "lr", "muon_lr_scale"}  # those of a start from nothing would undo the weights
    values = {name: value for name, value in values.items() if name not in left_out}
    return make_recipe({**values, **overrides}, "the given values" if overrides else f"recipe {path.name}")


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values for YAML and JSON."""
    values = dataclasses.asdict(recipe)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def masking_options(recipe: Recipe) -> dict[str, Any]:
    """The mask of the recipe: "mask", "mode" and, where there is one, "mask_options".

    A Gaussian mask starts local; in a model with given weights as the identity, so that they mean what they meant.
    """
    options: dict[str, Any] = {"mask": recipe.mask, "mode": recipe.mode}
    if recipe.mask == "gmm":
        start = "identity" if recipe.pretrained else "local"
        kinds = {"num_kernels": recipe.num_kernels, "covariance": recipe.covariance}
        options["mask_options"] = kinds | {
            "learn_center": recipe.learn_center,
            "init": recipe.mask_init or start,
        }
    elif recipe.mask == "elm":
        options["mask_options"] = {"per_head": recipe.elm_per_head, "init": recipe.mask_init or "identity"}
    return options


def model_options(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says about the model, as arguments of `create_model`; fields left open stay with the family."""
    options: dict[str, Any] = {"family": recipe.model} | masking_options(recipe)
    for name in SIZES:
        value = getattr(recipe, name)
        if value is not None:
            options[name] = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    return options | {"dropout": recipe.dropout, "drop_path": recipe.drop_path}
