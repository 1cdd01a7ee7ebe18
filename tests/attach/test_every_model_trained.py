"""Every model of the table in training: dropout and drop path, autocast, half precision, gradient checkpointing."""

import inspect

import pytest
import torch
from zoo import DONORS, logits, with_dropout

from gmmvit.attach import attach, mask_parameters

pytestmark = pytest.mark.parametrize("donor", DONORS, ids=lambda d: f"{d.library}-{d.name}")


@pytest.fixture(autouse=True)
def installed(donor):
    if donor.missing():
        pytest.skip(donor.missing())


def knows_dropout(model):
    """Whether any code that the donor runs mentions dropout; that of sam for sdpa ignores the configured one."""
    forwards = [type(module).forward for module in model.modules()]
    if hasattr(model, "forward_head"):  # timm: dropout before the classifier
        forwards.append(type(model).forward_head)
    return any("drop" in inspect.getsource(forward) for forward in forwards)


def test_dropout_and_drop_path_draw_as_in_the_donor(donor):
    results = []
    for change in (lambda m: m, attach):
        model = change(with_dropout(donor.make())).train()
        torch.manual_seed(5)
        results.append(logits(model, donor.images()))
    torch.manual_seed(5)
    dropped = not torch.equal(results[0], logits(donor.make().train(), donor.images()))
    assert dropped == knows_dropout(donor.make())
    torch.testing.assert_close(results[1], results[0], atol=3e-5, rtol=1e-5)  # float32, other sums on other CPUs


def test_it_trains_under_autocast_near_the_donor(donor):
    results = []
    for model in (donor.make(), attach(donor.make())):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(logits(model, donor.images()))
    error = (results[1] - results[0]).abs().max() / results[0].abs().max()
    assert error < 0.05
    results[1].float().square().sum().backward()
    gradients = [p.grad for p in mask_parameters(model) if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


def test_it_computes_in_half_precision(donor):
    model = attach(donor.make()).to(torch.bfloat16)
    out = logits(model, donor.images(dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def checkpoint(model):
    """Turns gradient checkpointing on; returns whether the donor has it."""
    if getattr(model, "supports_gradient_checkpointing", False):  # transformers
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
        return True
    try:
        model.set_grad_checkpointing()
    except (AttributeError, AssertionError):  # torchvision has none; some of timm's say "not supported"
        return False
    return True


def test_gradient_checkpointing_gives_the_same_gradients(donor):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(2)
        model = attach(donor.make(), init="paper").train()
        if checkpointing and not checkpoint(model):
            pytest.skip("the donor has no gradient checkpointing")
        torch.manual_seed(3)
        logits(model, donor.images()).square().sum().backward()
        gradients.append([p.grad for p in mask_parameters(model) if p.grad is not None])
    assert gradients[0]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)
