"""Odd arguments for the public Python names: a result, or a one-sentence error that our own code raises."""

import datetime
import dis
import math
import os
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

import gmmvit
from gmmvit.config import Recipe
from gmmvit.data import decode_image, inspect_dataset
from gmmvit.report import write_report
from gmmvit.runs.evaluate import evaluate_run
from gmmvit.runs.export import export_run
from soak.flags import FREE
from soak.trials import ODD, Sound

OURS = str(Path(gmmvit.__file__).parent)
LONGEST = 1100  # characters of a sentence
Target = tuple[Callable[..., Any], dict[str, Any]]


def odd_values(rng: Random) -> list[Any]:
    """New ones for each trial, since some are used up."""
    ring: list[Any] = [1]
    ring.append(ring)
    return [
        None, True, False, -1, 0, 1, 2, 3, 2**31, 2**63, 10**30, 0.5, -0.5, -0.0, 1e-300, math.nan, math.inf, -math.inf,
        1 + 2j, Decimal("1.5"), Fraction(1, 3), np.int64(3), np.float32("nan"), np.bool_(True),
        *(value[:900] for value in ODD), "gmm", "\udcff", "a\0b", b"x", bytearray(b"x"),
        [], (), {}, set(), [1], (3, 3), (-1, 4), (2.5, 2), (0, 0), [None], ["a", 1], {"a": 1}, {1: 2}, ring,
        range(3), range(10**12), iter([1]), (n for n in "ab"), object(), int, len, Ellipsis, NotImplemented,
        Path("."), Path("nowhere"), datetime.datetime(2026, 1, 1), ValueError("x"), os, lambda *_: 0,
        np.array([]), np.zeros((2, 2)), np.array("a"), np.array([None]), np.zeros((8, 8, 3), np.uint8),
        torch.tensor(3), torch.tensor(0.5), torch.empty(0), torch.zeros(2, 3), torch.full((4, 4), math.nan),
        torch.zeros(2, 4, 4), torch.zeros(1, 2, 5, 4), torch.zeros(2, 2, dtype=torch.complex64), torch.zeros(3).bool(),
        torch.zeros(2, 4, 4).half(), torch.zeros(2, 4, 4, dtype=torch.int8), torch.zeros(2, 4, 4).to_sparse(),
        torch.zeros(1, 2, 5, 4, device="meta"), torch.float32, torch.int8, torch.device("meta"), torch.Size([2, 2]),
        nn.Linear, nn.Linear(2, 2), nn.Identity(), nn.ModuleList(), nn.Parameter(torch.zeros(3)),
    ]  # fmt: skip


def _donor() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2)


def targets(sound: Sound, place: Path) -> dict[str, Callable[[], Target]]:
    """Each name with valid arguments."""
    q = torch.randn(1, 2, 5, 4)
    picture = np.zeros((8, 8, 3), np.uint8)
    table = torch.ones(2, 3, 3)
    attached = lambda: gmmvit.attach(_donor())  # noqa: E731
    small = {"dim": 16, "depth": 1, "num_heads": 2, "image_size": 8, "num_classes": 3}
    loaded = lambda: gmmvit.load_run(sound.run)  # noqa: E731
    data = {"data_dir": None, "image_size": 8, "channels": 3, "fit": "crop", "val_fraction": 0.1, "test_fraction": 0.2,
            "split_seed": 0, "train_per_class": None, "cache_dir": sound.root / "cache", "skip_broken": False,
            "dedupe": False, "folds": None, "fold": None, "train_on_all": False, "download": False,
            "report": None}  # fmt: skip
    training = {"out": place / "run", "overwrite": False, "quiet": True}
    return {
        "gmm_attention": lambda: (gmmvit.gmm_attention, {
            "q": q, "k": q, "v": q, "mask": torch.ones(2, 4, 4), "scale": None, "bias": None, "prefix_tokens": 1,
            "mode": "multiply", "dropout_p": 0.0, "backend": "auto"}),
        "gmm_attention of a table": lambda: (gmmvit.gmm_attention, {
            "q": q, "k": q, "v": q, "mask": gmmvit.OffsetTable(table, (2, 2)), "prefix_tokens": 1}),
        "OffsetTable": lambda: (gmmvit.OffsetTable, {"values": table, "grid": (2, 2)}),
        "GaussianMixtureMask": lambda: (_drawn(gmmvit.GaussianMixtureMask), {
            "grid": (2, 3), "num_heads": 2, "num_kernels": 2, "init": "identity", "covariance": "spherical",
            "learn_center": False, "depth": 0.5, "positive": False, "float32_table": False}),
        "ElementwiseMask": lambda: (_drawn(gmmvit.ElementwiseMask), {
            "grid": (2, 3), "num_heads": 2, "per_head": False, "init": "identity"}),
        "MaskedAttention": lambda: (_seen(gmmvit.MaskedAttention, torch.randn(1, 5, 16)), {
            "dim": 16, "num_heads": 2, "head_dim": None, "mask": gmmvit.GaussianMixtureMask((2, 2), 2),
            "mode": "multiply", "prefix_tokens": 1, "qkv_bias": False, "out_dim": None, "scale": None, "dropout": 0.0}),
        "create_model": lambda: (_seen(gmmvit.create_model, torch.randn(1, 3, 8, 8)), small | {
            "family": "vit", "size": "tiny", "mask": "gmm", "mode": "multiply", "pool": "mean", "num_kernels": 2}),
        "attach": lambda: (_seen(gmmvit.attach, torch.randn(1, 3, 16, 16)), {
            "model": _donor(), "mask": "gmm", "mode": "multiply", "init": "identity", "num_kernels": 2, "layers": None,
            "grid": None, "prefix_tokens": None, "dtype": None, "covariance": "spherical", "learn_center": False}),
        "detach": lambda: (gmmvit.detach, {"model": attached()}),
        "describe": lambda: (lambda model: str(gmmvit.describe(model)), {"model": attached()}),
        "mask_parameters": lambda: (gmmvit.mask_parameters, {"model": attached()}),
        "attention_maps": lambda: (lambda model, x: gmmvit.attention_maps(model, x), {
            "model": attached(), "x": torch.randn(1, 3, 16, 16)}),
        "load_masks": lambda: (gmmvit.load_masks, {"model": _donor(), "path": attached().state_dict(), "dtype": None}),
        "load_reference": lambda: (gmmvit.load_reference, {
            "state_dict": {"a": torch.zeros(2)}, "family": "vit", "mask": "gmm", "image_size": 8, "num_classes": 3}),
        "load_dataset": lambda: (gmmvit.load_dataset, {"name": f"folder:{sound.images}", **data}),
        "load_dataset digits": lambda: (gmmvit.load_dataset, {"name": "digits", **data}),
        "inspect_dataset": lambda: (inspect_dataset, {"name": f"folder:{sound.images}"}),
        "load_recipe": lambda: (gmmvit.load_recipe, {"name": "digits"} | {
            field: getattr(sound.recipe, field) for field in Recipe.__dataclass_fields__}),
        "load_run": lambda: (gmmvit.load_run, {"folder": sound.run, "weights": "best", "device": "cpu"}),
        "predict": lambda: (loaded().predict, {"images": [picture], "unknown_below": None, "batch_size": 2}),
        "decode": lambda: (loaded().decode, {"source": picture}),
        "decode_image": lambda: (decode_image, {"source": picture, "size": (8, 8), "channels": 3, "fit": "crop"}),
        "Predictions": lambda: (_answers, {
            "classes": ("a", "b"), "probabilities": torch.tensor([[0.3, 0.7]]), "unknown_below": None, "k": 2}),
        "unknown_threshold": lambda: (gmmvit.unknown_threshold, {"run": loaded(), "keep": 0.95, "data_dir": None}),
        "evaluate_run": lambda: (evaluate_run, {
            "folder": sound.run, "part": "test", "weights": "best", "data_dir": None, "dataset": None, "device": "auto",
            "more": False, "csv": None, "overwrite": False}),
        "write_report": lambda: (write_report, {
            "runs": sound.run, "out": place / "page.html", "data_dir": None, "device": "cpu", "overwrite": False}),
        "export_run": lambda: (export_run, {
            "folder": sound.run, "out": place / "model.pt2", "format": "torch", "dtype": "float32", "quantize": None,
            "weights": "best", "check": False, "part": None, "max_drop": 0.01, "data_dir": None, "overwrite": False}),
        "train": lambda: (gmmvit.train, {"recipe": sound.recipe, **training}),
        "train_several": lambda: (gmmvit.train_several, {"recipes": [sound.recipe], **training}),
        "cross_validate": lambda: (gmmvit.cross_validate, {"recipe": sound.recipe, **training}),
        "resume": lambda: (gmmvit.resume, {"folder": sound.run, "data_dir": None, "epochs": None, "quiet": True}),
        "resume_folds": lambda: (gmmvit.resume_folds, {"folder": sound.run, "data_dir": None, "quiet": True}),
    }  # fmt: skip


def _drawn(kind: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **given: kind(**given).dense()


def _seen(kind: Callable[..., Any], images: torch.Tensor) -> Callable[..., Any]:
    """Makes the module and calls it, with images of its own size if it has one."""

    def see(**given: Any) -> Any:
        model = kind(**given)
        size = getattr(model, "image_size", None)
        return model(images if size is None else torch.randn(1, 3, *size))

    return see


def _answers(k: Any, **given: Any) -> Any:
    found = gmmvit.Predictions(**given)
    return len(found), found.confidence, found.predicted, found.top(k)


# The costly ones come less often.
RARE = {"train", "train_several", "cross_validate", "export_run", "write_report", "unknown_threshold", "evaluate_run"}


def call(sound: Sound, rng: Random, number: int) -> str:
    """Calls a public name with one or two odd arguments."""
    with sound.place() as place:
        known = targets(sound, place)
        name = rng.choice([name for name in known if name not in RARE or rng.random() < 0.15])
        function, given = known[name]()
        # The donor's own code complains about images that are not images.
        free = [field for field in given if field != "x" and (name != "load_recipe" or field in {"name", *FREE})]
        odd = rng.sample(free, k=min(len(free), 1 + (rng.random() < 0.25)))
        values = {argument: rng.choice(odd_values(rng)) for argument in odd}
        try:
            function(**given | values)
        except Exception as error:
            fault = unfit(error)
            return fault and f"{name}({', '.join(f'{k}={shown(v)}' for k, v in values.items())}): {fault}"
    return ""


def shown(value: Any) -> str:
    return ascii(value)[:80]


def unfit(error: Exception) -> str:
    """Why an error is not fit for the user; empty if it is one sentence that our own code raised."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    said, code = str(error), trace.tb_frame.f_code
    kind = f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins.")
    where = f"{Path(code.co_filename).name}:{trace.tb_lineno}"
    if not code.co_filename.startswith(OURS) or not _raised(trace):
        return f"{kind} of {where}: {said[:300]}"
    if isinstance(error, AttributeError | KeyError | IndexError | AssertionError):
        return f"{kind} of {where}: {said[:300]}"
    if not said or len(said) > LONGEST or "\n" in said:
        return f"{kind} of {where} is not one line of at most {LONGEST} characters: {ascii(said)[:300]}"
    return ""


def _raised(trace: TracebackType) -> bool:
    """Whether a `raise` statement raised it, not a failed operation."""
    code = trace.tb_frame.f_code.co_code
    return dis.opname[code[trace.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")
