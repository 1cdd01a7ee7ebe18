"""The Python of docs/attach.md runs as written; only the weights that it would download are random here."""

import re
from pathlib import Path

import pytest
import torch

import gmmvit

PAGE = (Path(__file__).parents[2] / "docs" / "attach.md").read_text()
TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 10}


def section(title):
    """The code blocks under a heading, joined; those before the first one under ""."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    part = text[0] if not title else next(t for t in text[1:] if t.startswith(title))
    return "\n".join(re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL))


def were_trained(model):
    """Whether the Gaussians that start with weight 0 now have another."""
    return any((m.gmm_mask.alpha[:, 1:] != 0).any() for m in model.modules() if hasattr(m, "gmm_mask"))


@pytest.fixture
def timm_offline(monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **o: create(name, img_size=32, **o))


def test_the_call_and_its_undoing(timm_offline, capsys):
    names = {}
    exec(section(""), names)
    assert "blocks.11.attn" in capsys.readouterr().out
    assert not gmmvit.mask_parameters(names["model"])


def test_a_timm_model_is_fine_tuned_and_read_again(timm_offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"loader": [(torch.randn(4, 3, 32, 32), torch.randint(10, (4,))) for _ in range(2)]}
    exec(section("Fine-tune"), names)
    masks = gmmvit.mask_parameters(names["model"])
    assert len(masks) == 24
    assert all(torch.equal(read, trained) for read, trained in zip(masks, names["masks"], strict=True))
    assert were_trained(names["model"])


@pytest.mark.filterwarnings("ignore")
def test_a_transformers_model_trains_in_its_own_trainer(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    monkeypatch.chdir(tmp_path)
    cls = transformers.ViTForImageClassification
    read = cls.from_pretrained

    def offline(name, **options):
        if name.startswith("google/"):
            return cls(transformers.ViTConfig(image_size=224, patch_size=56, **TINY))
        return read(name, **options)

    monkeypatch.setattr(cls, "from_pretrained", staticmethod(offline))
    names = {"train_dataset": [{"pixel_values": torch.randn(3, 224, 224), "labels": i % 10} for i in range(8)]}
    exec(section("A transformers model"), names)
    trained, again = (gmmvit.mask_parameters(names[model]) for model in ("model", "again"))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(trained, again, strict=True))
    assert were_trained(names["again"])
    images = torch.randn(2, 3, 224, 224)
    logits = [names[model].cpu().eval()(images).logits for model in ("model", "again")]
    torch.testing.assert_close(*logits)


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_model_under_peft_is_saved_and_read_again(timm_offline, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(section("LoRA by peft"), names)
    assert len(gmmvit.mask_parameters(names["again"])) == 24


def test_an_own_vit_gets_masks():
    names = {}
    exec(section("Your own ViT"), names)
    assert names["logits"].shape == (2, 10)
    assert names["tokens"].shape == (2, 65, 48)
    names["logits"].sum().backward()
    assert all(p.grad is not None for p in gmmvit.mask_parameters(names["my_vit"]))
