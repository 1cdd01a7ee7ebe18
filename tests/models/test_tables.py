"""The tables of all layers in one computation: fewer operations, same numbers; some masks compute their own."""

from typing import Any

import pytest
import torch
from device_ops import Operations
from torch import Tensor

import gmmvit
from gmmvit.masks import GaussianMixtureMask, tables_together
from gmmvit.masks.together import MOST_VALUES
from gmmvit.models import create_model

CPU = torch.device("cpu")
VIEWS = (
    "view _unsafe_view expand unsqueeze squeeze transpose t permute slice split_with_sizes unbind select detach unfold"
)


def a_layer_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmmvit.models.base.tables_together", lambda masks, device: {})


def started(build: Any, family: str, **options: Any) -> Any:
    """A small model in float64 whose masks differ from layer to layer."""
    model = build(family, **options).double()
    with torch.no_grad():
        for mask in masks_of(model):
            for parameter in mask.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def masks_of(model: torch.nn.Module) -> list[GaussianMixtureMask]:
    return [module for module in model.modules() if isinstance(module, GaussianMixtureMask)]


def passed(model: Any, images: Tensor) -> list[Tensor]:
    """Logits and all gradients."""
    model.zero_grad()
    logits = model(images)
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def computed(operations: Operations) -> int:
    """Tables that were computed: each has one exponential."""
    return sum(name == "exp.default" for name, _ in operations.calls)


def launches(operations: Operations) -> int:
    return sum(name.split(".")[0] not in VIEWS.split() for name, _ in operations.calls)


def test_a_step_of_the_papers_model_has_165_operations_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("vit", mask="gmm")
    counts = []
    for _ in range(2):
        with Operations() as operations:
            passed(model, torch.randn(2, 3, 32, 32))
        counts.append((launches(operations), computed(operations)))
        a_layer_each(monkeypatch)
    assert [tables for _, tables in counts] == [1, 9]
    assert counts[1][0] - counts[0][0] >= 165


@pytest.mark.parametrize(("family", "tables"), [("vit", 1), ("swin", 1), ("cait", 1), ("pit", 2), ("t2t", 2)])
def test_one_table_for_all_layers_of_a_grid(build: Any, family: str, tables: int) -> None:
    """PiT has a grid per stage, the last with two layers; T2T's token transformer has its own."""
    model = build(family)
    for forward in (model, lambda images: model.forward_intermediates(images, intermediates_only=True)):
        with Operations() as operations:
            forward(torch.randn(2, 3, 32, 32))
        assert computed(operations) == tables


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
@pytest.mark.parametrize(
    "options", [{"init": "paper"}, {"covariance": "full", "learn_center": True}, {"covariance": "diag"}], ids=str
)
def test_logits_and_gradients_are_those_of_a_table_a_layer(
    build: Any, family: str, options: dict[str, Any], checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = started(build, family, mask_options=options), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model.set_grad_checkpointing(checkpointing)
    together = [tensor.clone() for tensor in passed(model, images)]
    a_layer_each(monkeypatch)
    torch.testing.assert_close(together, passed(model, images), rtol=1e-11, atol=1e-11)


def test_masks_of_other_heads_share_a_table_and_each_gets_its_own_part() -> None:
    masks = [GaussianMixtureMask((3, 5), heads, 4, "paper") for heads in (2, 3, 1)]
    tables = tables_together(masks, CPU)
    for mask in masks:
        torch.testing.assert_close(tables[mask], mask.table())
    with torch.no_grad():
        masks[0].alpha.zero_()
    assert not masks[0].table().any()  # so a table passed on is the one used
    assert torch.equal(masks[0](table=tables[masks[0]]).values, tables[masks[0]])


class Own(GaussianMixtureMask):
    """Of another table, perhaps."""


@pytest.mark.parametrize(
    "other",
    [
        GaussianMixtureMask((5, 3), 2),
        GaussianMixtureMask((3, 5), 2, 4),
        GaussianMixtureMask((3, 5), 2, covariance="diag"),
        GaussianMixtureMask((3, 5), 2, learn_center=True),
        GaussianMixtureMask((3, 5), 2, float32_table=True),
        GaussianMixtureMask((3, 5), 2).double(),
        GaussianMixtureMask((3, 5), 2).to("meta"),
        gmmvit.ElementwiseMask((3, 5), 2),
        Own((3, 5), 2),
        None,
    ],
    ids=["grid", "kernels", "covariance", "centre", "float32", "dtype", "device", "kind", "class", "none"],
)
def test_a_mask_of_another_make_keeps_its_own(other: Any) -> None:
    alike = [GaussianMixtureMask((3, 5), 2), GaussianMixtureMask((3, 5), 2)]
    assert set(tables_together([alike[0], other, alike[1]], CPU)) == set(alike)
    assert tables_together([alike[0], other], CPU) == {}


def test_large_masks_keep_their_own() -> None:
    """As on the CPU, where they are slower together."""
    for side in (20, 21):
        masks = [GaussianMixtureMask(side, 4) for _ in range(2)]
        assert bool(tables_together(masks, CPU)) == (4 * 5 * (2 * side - 1) ** 2 <= MOST_VALUES["cpu"])
    assert bool(tables_together(masks, CPU)) is False


def test_parameters_that_are_not_the_modules_own_are_left_alone(build: Any) -> None:
    """As with FSDP's shards, which are whole only while their block runs."""
    model = build("vit")
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    images = torch.randn(2, 3, 32, 32)
    with Operations() as operations:
        logits = torch.func.functional_call(model, weights, (images,))
    assert computed(operations) == 2
    torch.testing.assert_close(logits, model(images))


def test_another_image_size_and_an_exported_model_compute_a_table_a_layer(build: Any) -> None:
    model = build("vit").eval()
    with Operations() as operations:
        model(torch.randn(1, 3, 64, 32))
    assert computed(operations) == 2
    exported = torch.export.export(model, (torch.randn(1, 3, 32, 32),)).graph_module
    graphs = [module.graph for module in exported.modules() if isinstance(module, torch.fx.GraphModule)]
    assert sum("exp.default" in str(node.target) for graph in graphs for node in graph.nodes) == 2


def test_hooks_of_a_mask_still_see_what_it_returns(build: Any) -> None:
    model, seen = build("vit"), []
    for mask in masks_of(model):
        mask.register_forward_hook(lambda mask, _, returned: seen.append((mask, returned.values)))
    model(torch.randn(1, 3, 32, 32))
    assert [mask for mask, _ in seen] == masks_of(model)
    for mask, table in seen:
        torch.testing.assert_close(table, mask.table())
