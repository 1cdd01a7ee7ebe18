"""Models of timm, transformers and torchvision with random weights: masks attached, saved, loaded and detached."""

import sys
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "attach"))

from zoo import DONORS, logits

import gmmvit
from soak.trials import Sound


def attach(sound: Sound, rng: Random, number: int) -> str:
    """The identity keeps the outputs, saved masks load again, and detaching restores the donor."""
    donor, seed = DONORS[number % len(DONORS)], rng.randrange(2**31)
    if donor.missing():
        return ""
    options: dict = {"mask": rng.choice(["gmm", "elm"]), "mode": rng.choice(["multiply", "log", "post"])}
    if options["mask"] == "gmm":
        options |= {"num_kernels": rng.randint(1, 6), "covariance": rng.choice(["spherical", "diag", "full"])}
    said = f"{donor.library} {donor.name}, seed {seed}, {options}"
    images = donor.images(seed + 1)
    with torch.no_grad(), sound.place() as place:
        plain = donor.make(seed)
        expected = logits(plain, images)
        model = gmmvit.attach(donor.make(seed), **options)
        difference = (logits(model, images) - expected).abs().max() / expected.abs().max()
        if not difference < 1e-3:
            return f"{said}: the identity changes the outputs by {difference:.1e} of the largest"
        for parameter in gmmvit.mask_parameters(model):
            parameter.mul_(1 + 0.5 * torch.rand_like(parameter))
        changed = logits(model, images)
        if not changed.isfinite().all():
            return f"{said}: outputs that are not finite"
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, place / "file")
        if not torch.equal(logits(gmmvit.load_masks(donor.make(seed), place / "file"), images), changed):
            return f"{said}: other outputs after saving and loading the masks"
        gmmvit.detach(model)
        same = list(model.state_dict()) == list(plain.state_dict())
        return "" if same and torch.equal(logits(model, images), expected) else f"{said}: not the donor after detach"
