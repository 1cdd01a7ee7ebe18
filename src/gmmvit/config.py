"""The training configuration: a frozen dataclass, its YAML files in `recipes/`, and checks. Does not import torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gmmvit.field_values import RecipeError as RecipeError
from gmmvit.field_values import coerced, opt
from gmmvit.text import nearest, short
from gmmvit.yaml_files import YamlError, read_yaml

RECIPES = Path(__file__).parent / "recipes"


# The starts of each mask kind; training from scratch uses "local" if available, else "identity".
MASK_STARTS = {"elm": ("paper", "identity"), "gmm": ("paper", "identity", "local", "conv")}

_data, _model, _augment, _optim, _machine = (
    partial(opt, group) for group in ("Data", "Model", "Augmentation", "Optimisation", "Machine")
)
_size, _mask = partial(_model, marks="size"), partial(_model, marks="mask")


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a training. The fields are the keys of YAML files and the flags of the command line."""

    dataset: str = _data(
        "digits",
        "digits, cifar10, cifar100, svhn, tiny-imagenet, flowers102, folder:PATH or hf:NAME_OR_PATH.",
        marks="movable",
    )
    data_dir: str | None = _data(None, "Folder that holds the named datasets.", marks="movable incidental path")
    image_size: tuple[int, ...] | None = _data(
        None, "Training size in pixels, N or HEIGHTxWIDTH; the dataset's own by default.", range=(1, 10**5)
    )
    channels: int | None = _data(
        None,
        "1 (grey), 3 (colour), or those of TIFF and .npy files up to 12; the dataset's own by default.",
        range=(1, 12),
    )
    bits: int | None = _data(None, "Of a level, 8 or 16; those of a folder's first image by default.")
    axes: str | None = _data(
        None, "Order of height, width and channels in .npy files; where their shape says it by default.", ("hwc", "chw")
    )
    fit: str = _data(
        "crop", "How images of another shape are brought to the training size.", ("crop", "stretch", "pad")
    )
    val_fraction: float = _data(
        0.1, "Part of the training set held out for validation; 0 trains on all of it.", range=(0, 0.9)
    )
    test_fraction: float = _data(
        0.2, "Part of a folder without test set that is held out for the test.", range=(0, 0.9)
    )
    split_seed: int = _data(0, "Seed of those two splits.", range=(0, 2**63 - 1))
    train_per_class: int | None = _data(
        None,
        "Use only the first so many training images of each class; the validation part is cut from them.",
        range=(1, 10**9),
    )
    cache_dir: str | None = _data(
        None, "Where decoded images are kept (environment: GMMVIT_CACHE).", marks="movable incidental path"
    )
    skip_broken: bool = _data(False, "Train without unreadable images, and list them.", marks="movable")
    dedupe: bool = _data(False, "Keep exact and near copies of a picture in one part of a folder: or hf: data set.")
    folds: int | None = _data(
        None,
        "Cross-validation: so many trainings, each tested on another part of the images (docs/training.md).",
        range=(2, 1000),
    )
    fold: int | None = _data(None, "Only this fold, counted from 1.", range=(1, 1000))
    train_on_all: bool = _data(
        False, "Train on the validation images too; the last epoch is kept, as nothing can choose a best one."
    )
    model: str = _model("vit", "Family of the model (see `gmmvit models`), timm:NAME or hf:NAME_OR_PATH.")
    model_args: Mapping[str, Any] | None = _model(None, "Arguments of a timm: or hf: model, like depth=4,embed_dim=64.")
    pretrained: bool | str = _model(
        False,
        "Weights to start from: true (the library's), a safetensors or .pth file, or a folder with one.",
        marks="path",
    )
    size: str | None = _size(None, "Named size of the family (see `gmmvit models`).")
    mask: str = _model("gmm", "Mask on the attention logits.", ("none", *MASK_STARTS))
    mode: str = _mask("multiply", "How the mask acts on attention.", ("multiply", "log", "post"))
    mask_init: str | None = _mask(
        None, "Start of the mask (elm: paper or identity).", ("paper", "identity", "local", "conv")
    )
    num_kernels: int = _mask(5, "Gaussians per head.", range=(1, 1024), options={"gmm": "num_kernels"})
    covariance: str = _mask(
        "spherical", "Shape of a Gaussian.", ("spherical", "diag", "full"), options={"gmm": "covariance"}
    )
    learn_center: bool = _mask(False, "Learn an offset of the mask's peak per head.", options={"gmm": "learn_center"})
    elm_per_head: bool = _mask(
        False, "One element-wise mask per head instead of one per layer.", options={"elm": "per_head"}
    )
    patch_size: tuple[int, ...] | None = _size(
        None, "Patch in pixels, N or HEIGHTxWIDTH; the family's own by default.", range=(1, 10**5)
    )
    dim: tuple[int, ...] | None = _size(None, "Width; one number or one per stage, like 96,192,384.", range=(1, 10**5))
    depth: tuple[int, ...] | None = _size(None, "Layers; one number or one per stage.", range=(1, 10**5))
    num_heads: tuple[int, ...] | None = _size(None, "Attention heads; one number or one per stage.", range=(1, 10**5))
    mlp_ratio: float | None = _size(None, "Hidden width of the MLPs as a multiple of the width.", range=(1e-12, 10**6))
    stem: str | None = _size(
        None, "How images become tokens: patch (linear, the default) or conv (small convolutions).", ("patch", "conv")
    )
    position_std: float | None = _size(
        None, "Initial standard deviation of position embeddings; 1 by default.", range=(1e-12, 10**6)
    )
    pool: str | None = _size(None, "What the head reads: mean of the patches, or a class token.", ("mean", "cls"))
    dropout: float = _model(0.0, "Dropout of embeddings and projections.", range=(0, 0.99))
    drop_path: float = _model(0.1, "Probability that a sample skips a branch.", range=(0, 0.99))
    crop_padding: int = _augment(4, "Pixels of padding before a random crop; 0 is no crop.", range=(0, 1024))
    flip: bool | None = _augment(None, "Random horizontal flips; on by default if the dataset allows them.")
    policy: str | None = _augment(
        None,
        "Augmentation policy; by default the dataset's own.",
        ("none", "cifar10", "svhn", "imagenet", "rand", "trivial"),
    )
    rand_ops: int = _augment(2, "Operations a RandAugment policy applies.", range=(1, 100))
    rand_magnitude: int = _augment(9, "Magnitude of RandAugment, 0 to 30.", range=(0, 30))
    erase_prob: float = _augment(0.25, "Probability of random erasing.", range=(0, 1))
    erase_area: tuple[float, ...] = _augment(
        (0.02, 0.4), "Smallest and largest erased part of the image.", range=(0, 1)
    )
    erase_aspect: tuple[float, ...] = _augment(
        (0.3, 3.3), "Smallest and largest aspect ratio (height / width) of the erased part.", range=(1e-12, 10**6)
    )
    mix_prob: float = _augment(
        0.5, "Part of the batches that are mixed, by mixup or cutmix with equal chance.", range=(0, 1)
    )
    mixup_alpha: float = _augment(1.0, "Beta distribution of mixup; 0 switches it off.", range=(0, 10**6))
    cutmix_alpha: float = _augment(1.0, "Beta distribution of cutmix; 0 switches it off.", range=(0, 10**6))
    label_smoothing: float = _augment(
        0.1, "Part of the target spread over all classes; of several labels, over both sides of each.", range=(0, 0.99)
    )
    epochs: int = _optim(100, "Epochs; each is validated and checkpointed.", range=(1, 10**9))
    passes: int = _optim(1, "Sweeps over the training set in an epoch.", range=(1, 10**9))
    minutes: float | None = _optim(
        None,
        "Time limit of the training in minutes: sets epochs, passes and warm-up from a speed measurement.",
        range=(0.01, 10**6),
    )
    batch_size: int = _optim(128, "Images in a batch.", range=(1, 10**9))
    accumulate: int = _optim(1, "Batches whose gradients make one step.", range=(1, 10**9))
    optimizer: str = _optim(
        "adamw",
        "adamw, or muon: hidden matrices move along the orthogonal factor of their momentum, the rest by AdamW.",
        ("adamw", "muon"),
        marks="scratch",
    )
    lr: float = _optim(1e-3, "Peak learning rate.", range=(1e-12, 10**6), marks="scratch")
    min_lr: float = _optim(1e-6, "Learning rate at the end of the cosine.", range=(0, 10**6))
    warmup_epochs: float = _optim(
        10.0, "Epochs of linear warm-up, at most a quarter of the training.", range=(0, 10**6)
    )
    restarts: tuple[int, ...] | None = _optim(
        None, "Epochs after which the learning rate restarts, such as 20,40; `resume --epochs` adds one."
    )
    weight_decay: float = _optim(
        0.05, "Weight decay of matrices; masks, norms, biases, positions have none.", range=(0, 10**6)
    )
    mask_lr_scale: float = _optim(
        1.0,
        "Learning rate of the mask parameters as a multiple of the others'.",
        range=(0, 10**6),
        marks="mask_training",
    )
    muon_lr_scale: float = _optim(
        1.0, "Learning rate of Muon's matrices as a multiple of the others'.", range=(0, 10**6), marks="scratch"
    )
    mask_weight_decay: float = _optim(
        0.0, "Weight decay of the mask parameters.", range=(0, 10**6), marks="mask_training"
    )
    class_weights: str = _optim(
        "none",
        "Weight of an image in the loss: balanced gives every class the same sum, and both sides of each of several "
        "labels.",
        ("none", "balanced"),
    )
    sampling: str = _optim(
        "shuffled", "Order of the images: balanced draws every class equally often.", ("shuffled", "balanced")
    )
    select: str = _optim(
        "top1",
        "Validation metric that chooses the best epoch: top1 (map with several labels an image), macro_f1 or balanced "
        "(accuracy); with several labels also micro_f1.",
        ("top1", "macro_f1", "balanced", "map", "micro_f1"),
    )
    patience: int | None = _optim(
        None,
        "Stop after so many epochs without a better value of the select metric; never by default.",
        range=(1, 10**9),
    )
    clip_norm: float | None = _optim(None, "Largest norm of the gradient.", range=(1e-12, 10**6))
    ema: float | None = _optim(
        None, "Decay of an average of the weights, like 0.999; the average is evaluated and kept.", range=(0, 1 - 1e-9)
    )
    seed: int = _machine(0, "Seed of initialisation, order and augmentation.", range=(0, 2**63 - 1))
    device: str = _machine("auto", "auto, cpu, cuda, cuda:1, mps ...", marks="movable incidental process")
    dtype: str = _machine(
        "auto",
        "Arithmetic of the forward pass; auto is bfloat16 if the device computes it fast.",
        ("auto", "float32", "bfloat16", "float16"),
        marks="incidental",
    )
    shard: bool = _machine(
        False, "Under torchrun, split model and optimiser over the processes (FSDP2).", marks="movable incidental"
    )
    compile: bool = _machine(False, "Compile the model with torch.compile.", marks="movable incidental")
    cuda_graph: bool = _machine(
        True, "On one GPU: record a whole training step once and replay it as a CUDA graph.", marks="movable incidental"
    )
    deterministic: bool = _machine(
        False, "Use only deterministic GPU kernels (the CPU's always are).", marks="incidental process"
    )
    threads: int | None = _machine(
        None, "CPU threads; torch's choice by default.", range=(1, 1024), marks="movable incidental process"
    )
    loggers: tuple[str, ...] = _machine(
        (), "Also log to tensorboard, wandb, trackio (comma-separated).", marks="movable incidental"
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, coerced(f, getattr(self, f.name)))
        _check_together(self)


def fields_of(mark: str) -> tuple[str, ...]:
    """The names of the recipe's fields with this mark or of this group, in the recipe's order."""
    return tuple(f.name for f in dataclasses.fields(Recipe) if mark in f.metadata["marks"])


def _check_together(recipe: Recipe) -> None:
    """Checks fields that depend on each other."""
    if recipe.fold is not None and (recipe.folds is None or recipe.fold > recipe.folds):
        raise RecipeError(f"fold must be one of 1 to folds, got {recipe.fold} of {recipe.folds or 'no'} folds")
    restarts = recipe.restarts or ()
    if list(restarts) != sorted({epoch for epoch in restarts if 0 < epoch < recipe.epochs}):
        raise RecipeError(
            f"restarts must be increasing epoch numbers below the training's {recipe.epochs}, got {short(restarts)}"
        )
    if recipe.train_on_all and recipe.patience is not None:
        raise RecipeError("patience needs validation images, and train_on_all leaves none")
    if recipe.bits not in (None, 8, 16):
        raise RecipeError(f"bits must be 8 or 16, got {recipe.bits}")
    for name in ("image_size", "patch_size"):
        if len(getattr(recipe, name) or (1,)) > 2:
            raise RecipeError(f"{name} must be N or HEIGHTxWIDTH, got {short(getattr(recipe, name))}")
    for name in ("erase_area", "erase_aspect"):
        pair = getattr(recipe, name)
        if len(pair) != 2 or pair[0] > pair[1]:
            raise RecipeError(f"{name} must be a minimum and a maximum, got {short(pair)}")
    if recipe.mask != "none":
        _check_start(recipe)
    if recipe.shard and recipe.optimizer == "muon":
        raise RecipeError(
            "optimizer muon needs whole matrices, which shard splits; choose --no-shard or --optimizer adamw"
        )
    _check_library(recipe)
    unknown = set(recipe.loggers) - {"tensorboard", "wandb", "trackio"}
    if unknown:
        raise RecipeError(f"loggers must be from ['tensorboard', 'trackio', 'wandb'], got {short(sorted(unknown))}")


def _check_start(recipe: Recipe) -> None:
    """Checks that the mask can start as `mask_init` says."""
    starts = MASK_STARTS[recipe.mask]
    if recipe.mask_init not in (None, *starts):
        raise RecipeError(f"mask_init of an {recipe.mask} must be {' or '.join(starts)}, got {short(recipe.mask_init)}")
    if recipe.mask_init == "conv" and recipe.mode != "log":
        raise RecipeError(
            f"mask_init conv needs mode log (--mode log), or another start (--mask-init local), got {recipe.mode!r}"
        )
    if recipe.mask_init == "conv" and recipe.num_kernels < 2:
        raise RecipeError("mask_init conv needs num_kernels of at least 2, a peak and a constant, got 1")


def _check_library(recipe: Recipe) -> None:
    """Checks fields that apply only to our own families or only to models of other libraries."""
    if library_of(recipe.model) is None:
        if recipe.model_args is not None:
            raise RecipeError(
                f"model_args are for models of timm: and hf:; {recipe.model} has the fields {list(SIZES)}"
            )
        if recipe.pretrained is True:
            raise RecipeError(f"pretrained must be false or a file or folder of weights: {recipe.model} has none")
        return
    given = [name for name in SIZES if getattr(recipe, name) is not None]
    if given:
        raise RecipeError(
            f"{given[0]} is a field of gmmvit's own families; give {recipe.model}'s own argument with model_args "
            "(--model-args NAME=VALUE,...)"
        )


def library_of(model: str) -> tuple[str, str] | None:
    """("timm" or "hf", name) for a model of another library, None for our families."""
    library, colon, name = model.partition(":")
    return (library, name) if colon and library in ("timm", "hf") else None


SIZES = fields_of("size")


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def make_recipe(values: dict[str, Any], source: str = "the recipe") -> Recipe:
    """A Recipe from a mapping; raises RecipeError for an unknown field, with the nearest name, or a wrong value."""
    known = [f.name for f in dataclasses.fields(Recipe)]
    for name in values:
        if name not in known:
            hint = nearest(name, known, cutoff=0.5, otherwise="; `gmmvit train --help` lists the fields")
            raise RecipeError(f"{source} has an unknown field {short(name)}{hint}")
    try:
        return Recipe(**values)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def load_recipe(name: str | Path = "digits", **overrides: Any) -> Recipe:
    """A shipped recipe by name, or a YAML file by path, with fields replaced by `overrides`.

    If `model` differs from the recipe's, the recipe's sizes and weights are dropped for the model's own. Likewise
    dropped are mode, start and shape of the mask if `mask` differs, the mask's start for a `pretrained` timm: or hf:
    model, and optimiser and learning rate for `pretrained` weights.

    Raises RecipeError for an unknown recipe, file, field or value, TypeError if `name` is neither text nor path.
    """
    if not isinstance(name, str | Path):
        raise TypeError(f"name must be a recipe's name or the path of a YAML file, got {short(name)}")
    path = RECIPES / f"{name}.yaml" if str(name) in recipe_names() else Path(name)
    if not path.is_file():
        hint = nearest(name, recipe_names())
        raise RecipeError(f"no recipe or file {str(name)!r}; shipped are {', '.join(recipe_names())}{hint}")
    try:
        values = read_yaml(path) or {}
    except YamlError as error:
        raise RecipeError(f"{path} {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold fields as `name: value`, got a {type(values).__name__}")
    if isinstance(values.get("recipe"), dict):  # a run's config.yaml repeats the run
        values = values["recipe"]
    written = make_recipe(values, f"recipe {path.name}")  # report errors of the file under its name
    for field in ("model", "mask", "pretrained"):  # read below
        if not isinstance(overrides.get(field), str | bool | None):
            make_recipe({field: overrides[field]}, "the given values")
    left_out: set[str] = set()
    if overrides.get("model", written.model) != written.model:
        left_out |= {*SIZES, "model_args", "pretrained"}
    if overrides.get("mask", written.mask) != written.mask:
        left_out |= {*fields_of("mask")}
    if overrides.get("pretrained") and library_of(overrides.get("model", written.model)):
        left_out.add("mask_init")  # start from the identity mask, which keeps the model's outputs
    if overrides.get("pretrained"):
        left_out |= {*fields_of("scratch")}  # they would destroy the weights
    values = {name: value for name, value in values.items() if name not in left_out}
    return make_recipe({**values, **overrides}, "the given values" if overrides else f"recipe {path.name}")


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values for YAML and JSON."""
    values = dataclasses.asdict(recipe)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def masking_options(recipe: Recipe) -> dict[str, Any]:
    """The recipe's mask: "mask", "mode" and, with a mask, "mask_options".

    A Gaussian mask starts as "local", or as the identity in a model with given weights, which keeps its outputs.
    """
    masking: dict[str, Any] = {"mask": recipe.mask, "mode": recipe.mode}
    if recipe.mask == "none":
        return masking
    start = "local" if "local" in MASK_STARTS[recipe.mask] and not recipe.pretrained else "identity"
    options = {
        f.metadata["options"][recipe.mask]: getattr(recipe, f.name)
        for f in dataclasses.fields(recipe)
        if recipe.mask in f.metadata["options"]
    }
    return masking | {"mask_options": options | {"init": recipe.mask_init or start}}


def model_options(recipe: Recipe) -> dict[str, Any]:
    """The recipe's model as arguments of `create_model`; open fields are left to the family."""
    options: dict[str, Any] = {"family": recipe.model} | masking_options(recipe)
    for name in SIZES:
        value = getattr(recipe, name)
        if value is not None:
            options[name] = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    return options | {"dropout": recipe.dropout, "drop_path": recipe.drop_path}
