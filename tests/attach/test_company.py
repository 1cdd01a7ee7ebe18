"""Attached models beside accelerate and torchao; peft and torch.distributed have their own files."""

import pytest
import torch
from torch import nn
from zoo import small_vit

from gmmvit.attach import attach, describe, detach, load_masks, mask_parameters

pytest.importorskip("timm")
IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def new_model():
    model = small_vit(img_size=(32, 48), global_pool="avg")
    with torch.no_grad():
        for parameter in model.parameters():  # large enough for the logits of attentions to matter
            parameter.add_(0.2 * torch.randn_like(parameter))
    return attach(model, init="paper")


def test_accelerate_prepares_steps_and_takes_a_saved_state_up_again(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    plain = new_model().train()
    model = new_model().train()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    model(IMAGES).square().mean().backward()
    plain(IMAGES).square().mean().backward()
    for got, expected in zip(mask_parameters(model), mask_parameters(plain), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)

    def step():
        optimizer.zero_grad()
        accelerator.backward(model(IMAGES).square().mean())
        optimizer.step()
        return [parameter.detach().clone() for parameter in mask_parameters(model)]

    first = step()
    accelerator.save_state(tmp_path)
    second = step()
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    accelerator.load_state(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, mask_parameters(model), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(second, step(), strict=True))  # the optimiser's moments came back too
    again = load_masks(small_vit(img_size=(32, 48), global_pool="avg"), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, mask_parameters(again), strict=True))


@pytest.mark.filterwarnings("ignore")
def test_torchao_quantises_the_donors_weights_and_leaves_the_masks():
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = new_model()
    masks = [parameter.detach().clone() for parameter in mask_parameters(model)]
    quantize_(model, Int8WeightOnlyConfig())
    assert type(model.blocks[0].attn.qkv.weight).__module__.startswith("torchao")
    assert all(torch.equal(a, b) for a, b in zip(masks, mask_parameters(model), strict=True))
    assert [layer.action for layer in describe(model)] == ["gmm"] * 2
    rounded = new_model()  # the same weights, read back from eight bits
    for name, module in rounded.named_modules():
        if isinstance(module, nn.Linear):
            module.weight.data = model.get_submodule(name).weight.dequantize()
    torch.testing.assert_close(model(IMAGES), rounded(IMAGES), atol=1e-5, rtol=1e-5)
    assert (model(IMAGES) - new_model()(IMAGES)).abs().max() > 1e-5  # weights were rounded
    assert (rounded(IMAGES) - detach(rounded)(IMAGES)).abs().max() > 1e-3  # and the masks matter
    for call in (attach, detach):
        with pytest.raises(
            ValueError, match=r"'blocks\.0\.attn\.qkv' is quantised \(torchao\): attach and detach before"
        ):
            call(model)
