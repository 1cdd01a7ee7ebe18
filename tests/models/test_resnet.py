"""The convnet for comparison: any image, no mask, and every command of the other families."""

import pytest
import torch

import gmmvit
from gmmvit.cli import main
from gmmvit.config import RecipeError
from gmmvit.models import create_model
from gmmvit.models.resnet import ResNet


def small(**options):
    torch.manual_seed(0)
    return create_model("resnet", **{"dim": 4, "depth": 8, "num_classes": 7, **options})


def test_its_size_is_that_of_the_usual_resnet_20():
    """0.27 M of ResNet-20 (arXiv 1512.03385, table 6) at 16 wide, and 1 x 1 convolutions beside two blocks."""
    with torch.device("meta"):
        model = create_model("resnet", dim=16)
    assert sum(p.numel() for p in model.parameters()) == 269_722 + 16 * 32 + 32 * 64


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (17, 40), (3, 5), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_image_goes_through_and_gradients_reach_every_parameter(size, channels):
    model = small(channels=channels)
    model(torch.randn(3, channels, *size)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.eval()(torch.randn(2, channels, *size)).shape == (2, 7)


def test_it_computes_what_the_usual_blocks_compute():
    """Against convolutions in the ordinary memory order, in float64."""
    model = small(depth=14).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    images = torch.randn(2, 3, 13, 10, dtype=torch.float64)
    x = model.patch_embed.norm(model.patch_embed.conv(images)).relu()
    for block in model.blocks:
        branch = block.norm2(block.conv2(block.norm1(block.conv1(x)).relu()))
        if block.stride > 1:
            x = torch.nn.functional.conv2d(x, block.shortcut.weight, stride=block.stride)
        x = (x + branch).relu()
    torch.testing.assert_close(model(images), model.head(x.mean((2, 3))), rtol=1e-10, atol=1e-10)


def test_features_are_those_of_the_three_stages():
    features = small(depth=14).forward_intermediates(torch.randn(2, 3, 16, 24), intermediates_only=True)
    assert [tuple(f.shape) for f in features] == [(2, 4, 16, 24), (2, 8, 8, 12), (2, 16, 4, 6)]


def test_a_mask_and_a_depth_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="resnet has no attention for a mask to act on: mask must be 'none', got 'gmm'"
    ):
        small(mask="gmm")
    with pytest.raises(ValueError, match=r"depth of resnet must be 6 n \+ 2 .* got 18"):
        small(depth=18)
    with pytest.raises(TypeError, match="resnet has no option 'num_heads'"):
        small(num_heads=3)
    with pytest.raises(RecipeError, match="resnet has no attention for a mask to act on: train it with --mask none"):
        gmmvit.train(gmmvit.load_recipe("digits", model="resnet"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_it_compiles_whole():
    torch.compiler.reset()
    model, images = small().eval(), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))


def test_it_is_saved_and_loaded(tmp_path):
    model, images = small().eval(), torch.randn(2, 3, 8, 8)
    model.save_pretrained(tmp_path)
    assert torch.equal(ResNet.from_pretrained(tmp_path)(images), model(images))


@pytest.mark.slow
def test_every_command_takes_it(tmp_path, capsys):
    run = tmp_path / "run"
    sizes = [
        "--model=resnet",
        "--mask=none",
        "--dim=4",
        "--depth=8",
        "--epochs=2",
        "--passes=1",
        "--threads=1",
        "--quiet",
    ]
    assert main(["train", *sizes, "--out", str(run)]) == 0
    assert main(["eval", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "This model has no masks" in page
    assert "Attention is not drawn for resnet" in page
    assert main(["resume", str(run), "--quiet"]) == 0
    assert main(["models"]) == 0
    assert "resnet  tiny      none       610,786" in capsys.readouterr().out
    for format, package in (("torch", "torch"), ("onnx", "onnxruntime")):
        pytest.importorskip(package)
        assert main(["export", str(run), "--format", format]) == 0
