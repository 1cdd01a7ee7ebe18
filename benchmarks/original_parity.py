"""Our models against the original code at its sizes: checkpoints as it saves them, converted by `gmmvit convert`.

    python benchmarks/original_parity.py --original CHECKOUT [--eval ../shared/data] [--only vit,swin] [--sizes 32,64]

CHECKOUT is a checkout of github.com/CatworldLee/Gaussian-Mixture-Mask-Attention; it needs einops and timm. Every model
of its `create_model` is built with each mask that it knows. All weights, including class tokens, layer scales and
masks, are random, because many initial values hide what a layer does. The file has the form that its training writes
(`model_state_dict`, here with the `module.` of data parallel training too); `gmmvit convert` is given only family and
mask. Prints a line per model: the largest difference of logits and of all gradients, everything in float64 on random
pixels; with `--eval`, also what `gmmvit eval` prints for the converted runs.
"""

import argparse
import contextlib
import io
import itertools
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.cli import main as gmmvit
from gmmvit.original.weights import convert_tensors
from gmmvit.runs.checkpoint import load_run

# The original's names of its models, and ours of their families.
MODELS = {
    **dict.fromkeys(("vit", "vit-base", "vit-heat", "vit_d6", "vit_d15", "vit_d30", "vit_d30*", "vit_d30**"), "vit"),
    **{"vit_d60": "vit", "swin": "swin", "cait-tiny": "cait", "cait": "cait", "pit": "pit", "t2t": "t2t"},
}
CLASSES = {32: 10, 64: 200}  # of CIFAR-10 and Tiny-ImageNet


def original_model(name: str, mask: str, image_size: int) -> nn.Module:
    """A model of the original code with random trainable parameters."""
    from models.create_model import create_model  # type: ignore[import-not-found]  # of the checkout

    options = {"is_GMM": mask == "gmm", "is_SLM": mask == "elm", "num_kernals": 5, "sd": 0.1, "model": name}
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        model: nn.Module = create_model(image_size, CLASSES[image_size], argparse.Namespace(**options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            if not p.requires_grad or parameter_name.endswith(("sigma", "alpha")):
                continue  # the start of a Gaussian mixture is random already
            noise = torch.randn(p.shape, generator=generator)
            if parameter_name.endswith((".scale", "mix_heads_pre_attn", "mix_heads_post_attn", ".mask.mask")):
                p.copy_(0.3 * noise)
            else:
                p.add_(0.02 * noise)
    return model


def training_state(model: nn.Module) -> dict[str, Any]:
    """What the original saves besides the weights."""
    from utils.scheduler import build_scheduler  # type: ignore[import-not-found]  # of the checkout

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    options = argparse.Namespace(epochs=100, warmup=10, lr=1e-3)
    scheduler = build_scheduler(options, optimizer, 10)
    return {"optimizer_state_dict": optimizer.state_dict(), "scheduler": scheduler.state_dict()}


def has_mask(name: str, mask: str) -> bool:
    """Whether the original has this mask in this model: its deeper ViTs and Swin have no element-wise one."""
    return mask != "elm" or not (name == "swin" or "_d" in name)


def gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the gradients of a cross-entropy, float64."""
    logits = model(images)
    nn.functional.cross_entropy(logits, torch.arange(len(images))).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(name: str, mask: str, image_size: int, run: Path, data_dir: str | None) -> dict[str, Any]:
    """Converts one model of the original into the folder `run` and measures its distance from ours."""
    family = MODELS[name]
    model = original_model(name, mask, image_size)
    file = run.with_suffix(".pth")
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 1, **training_state(model)}, file)
    status = gmmvit(["convert", str(file), "--family", family, "--mask", mask, "--out", str(run)])
    if status != 0:
        raise SystemExit(f"gmmvit convert failed for {name} with mask {mask} at {image_size} pixels")
    loaded = load_run(run)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, image_size, image_size), generator=generator, dtype=torch.uint8)
    scaled = images.double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (loaded.mean, loaded.std))
    inputs = (scaled - mean) / std
    expected, their_gradients = gradients(model.double().eval(), inputs)
    ours, our_gradients = gradients(loaded.model.double(), inputs)
    wanted = convert_tensors(their_gradients, family)
    if set(wanted) != set(our_gradients):
        raise SystemExit(f"{name} with mask {mask}: gradients differ in {sorted(set(wanted) ^ set(our_gradients))}")
    largest = max(float((our_gradients[key] - value).abs().max()) for key, value in wanted.items())
    counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (model, loaded.model)]
    row = {"logits": float((ours - expected).abs().max()), "gradients": largest, "size": float(expected.abs().max())}
    row |= {"theirs": counts[0], "ours": counts[1]}
    measured = data_dir is not None and image_size == 32
    if measured and gmmvit(["eval", str(run), "--data-dir", str(data_dir), "--json"]) != 0:
        raise SystemExit(f"gmmvit eval failed for {run}")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", required=True, help="a checkout of the original implementation")
    parser.add_argument("--only", default=",".join(MODELS), help="models by the original's names")
    parser.add_argument("--sizes", default="32,64", help="image sizes")
    parser.add_argument("--eval", help="folder of data sets: also measure the converted runs on CIFAR-10")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(args.original).resolve()))
    warnings.filterwarnings("ignore", category=FutureWarning)  # the original imports timm by its old names
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        cases = itertools.product(map(int, args.sizes.split(",")), args.only.split(","), ("none", "elm", "gmm"))
        for image_size, name, mask in cases:
            if not has_mask(name, mask):
                continue
            run = Path(folder) / f"{name.replace('*', 's')}-{mask}-{image_size}"
            row = compare(name, mask, image_size, run, args.eval)
            worst = max(worst, row["logits"], row["gradients"])
            print(
                f"{name:<10} {mask:<5} {image_size} px  logits {row['logits']:.1e} (up to {row['size']:.1f})  "
                f"gradients {row['gradients']:.1e}  parameters {row['theirs']:,} / {row['ours']:,}",
                flush=True,
            )
    print(f"largest difference {worst:.1e}")
    if worst > 1e-6:
        raise SystemExit("differs by more than 1e-6")


if __name__ == "__main__":
    main()
