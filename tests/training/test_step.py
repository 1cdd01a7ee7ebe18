"""The training step: what its CUDA graph needs, checked on the CPU, and numbers that it must not change."""

import copy

import pytest
import torch
from device_ops import Operations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gmmvit
from gmmvit.training.loop import augmented, train_epoch
from gmmvit.training.optim import Average, make_optimizer, plain_groups, rates_as_tensors, set_learning_rate
from gmmvit.training.progress import Progress
from gmmvit.training.session import prepare, seed_everything, step_images

SMALL = {"dim": 16, "depth": 2, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1, "epochs": 2}
EVERYTHING = {"ema": 0.9, "clip_norm": 1.0, "drop_path": 0.2, "dropout": 0.1, "mix_prob": 0.5, "erase_prob": 0.5}

LIKE_SMALL = {"optimizer": "muon", "muon_lr_scale": 3.0, "stem": "conv", "mode": "log", "mask_init": "conv"}


def begun(folder, **fields):
    """A training that is about to take its first step, and the parts of its steps."""
    recipe = gmmvit.load_recipe("digits", **(SMALL | fields))
    setting, state, _ = prepare(recipe, folder, Progress(quiet=True))
    state.model.train()
    return setting, state, augmented(setting, seed_everything(0, 0)), step_images(recipe, len(setting.data.train))


@pytest.mark.parametrize(
    "fields",
    [{}, EVERYTHING, {"accumulate": 2, "dtype": "bfloat16"}, {"optimizer": "muon"}, EVERYTHING | LIKE_SMALL],
    ids=["plain", "everything", "accumulated", "Muon", "Muon with everything, as in recipe small"],
)
def test_every_step_is_the_same_list_of_operations_on_the_same_memory(tmp_path, fields):
    """So one that is recorded does, replayed, what the next would do: no number of the host differs, no tensor of the
    model, the optimiser or the average is another, and nothing is read back."""
    _, state, steps, images = begun(tmp_path, **fields)
    recorded = []
    for number in range(4):
        parts = next(steps)
        set_learning_rate(state.optimizer, 1e-3 / (1 + number))
        with Operations() as operations:
            state.step.take(parts, images)
        given = {tensor.data_ptr() for part in parts for tensor in part}
        recorded.append((operations.calls, [place for place in operations.outside if place not in given]))
        assert operations.waiting() == [] or number == 0
    assert recorded[2] == recorded[3]


def test_a_step_hears_of_another_rate(tmp_path):
    _, state, steps, images = begun(tmp_path)
    weight = state.model.head.weight
    rate = state.optimizer.param_groups[0]["lr"]
    moved = []
    for number in (1e-3, 0.0):
        set_learning_rate(state.optimizer, number)
        assert state.optimizer.param_groups[0]["lr"] is rate
        before = weight.detach().clone()
        state.step(next(steps), images)
        moved.append(not torch.equal(before, weight))
    assert moved == [True, False]


def test_rates_as_tensors_train_bit_for_bit_as_plain_numbers():
    torch.manual_seed(0)
    model = gmmvit.create_model("vit", mask="gmm", dim=16, depth=1, num_heads=2)
    other = copy.deepcopy(model)
    recipe = gmmvit.load_recipe("digits", mask_lr_scale=3.0)
    optimizers = [make_optimizer(m, recipe) for m in (model, other)]
    for group in optimizers[1].param_groups:
        group["lr"], group["capturable"] = recipe.lr, False
    for step in range(5):
        for m, optimizer in zip((model, other), optimizers, strict=True):
            torch.manual_seed(step)
            set_learning_rate(optimizer, 1.2345678e-3 / (1 + step))
            m(torch.rand(4, 3, 32, 32)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert plain_groups(optimizers[0].state_dict())["param_groups"] == optimizers[1].state_dict()["param_groups"]


def test_a_saved_optimiser_gets_its_tensors_back():
    model = torch.nn.Linear(2, 2)
    recipe = gmmvit.load_recipe("digits")
    optimizer = make_optimizer(model, recipe)
    optimizer.load_state_dict(plain_groups(optimizer.state_dict()))
    rates_as_tensors(optimizer)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [recipe.lr] * 2
    assert all(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups)


def test_the_average_is_torchs_bit_for_bit_without_a_look_at_the_device():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.BatchNorm1d(5))
    ours, theirs = Average(model, 0.9), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(4, 5))
        if step == 4:  # as after a checkpoint
            again = Average(model, 0.9)
            again.load_state_dict(ours.state_dict())
            ours = again
            ours.update_parameters(model)
            theirs.update_parameters(model)
            continue
        with Operations() as operations:
            ours.update_parameters(model)
        theirs.update_parameters(model)
        assert operations.waiting() == [] or step == 0
        assert len(operations) <= 3 or step == 0
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    with Operations() as operations:
        theirs.update_parameters(model)
    assert operations.waiting(), "torch's own reads the number of updates, which is why it is not used"


@pytest.mark.slow
def test_compiled_and_accumulated_gradients_are_the_eager_ones_in_memory_of_their_own(tmp_path):
    fields = {"accumulate": 3, "batch_size": 8, "drop_path": 0.0, "dtype": "float32"}
    gradients = {}
    for compiled in (False, True):
        _, state, steps, images = begun(tmp_path, compile=compiled, **fields)
        kept, zero = [], state.optimizer.zero_grad

        def watched(set_to_none, state=state, kept=kept, zero=zero):
            kept.append({n: (p.grad.data_ptr(), p.grad.clone()) for n, p in state.model.named_parameters()})
            zero(set_to_none=set_to_none)

        state.optimizer.zero_grad = watched
        for _ in range(3):
            state.step(next(steps), images)
        gradients[compiled] = kept
    for eager, compiled in zip(gradients[False], gradients[True], strict=True):
        for name, (_, expected) in eager.items():
            torch.testing.assert_close(compiled[name][1], expected, rtol=1e-3, atol=1e-5, msg=name)
    places = [{name: place for name, (place, _) in step.items()} for step in gradients[True]]
    assert places[0] == places[1] == places[2]


def test_a_forgotten_step_begins_anew(tmp_path):
    setting, state, _, _ = begun(tmp_path)
    train_epoch(setting, state)
    saved = copy.deepcopy(state.persistent())
    assert state.step.taken == setting.steps_per_epoch
    state.restore(saved)
    assert state.step.taken == 0


@pytest.mark.parametrize(
    "fields", [{"mix_prob": 1.0, "policy": "cifar10"}, {"accumulate": 3, "batch_size": 25}], ids=str
)
def test_steps_augmented_together_are_those_augmented_alone(tmp_path, fields, monkeypatch):
    setting, *_ = begun(tmp_path, **fields)
    steps = {}
    for at_once in (1, 5):
        monkeypatch.setattr("gmmvit.training.loop.steps_at_once", lambda values, device, at_once=at_once: at_once)
        steps[at_once] = list(augmented(setting, seed_everything(0, 0)))
    assert len(steps[1]) == len(steps[5]) == setting.steps_per_epoch
    for one, five in zip(steps[1], steps[5], strict=True):
        for part, other in zip(one, five, strict=True):
            assert torch.equal(part[0], other[0])
            assert torch.equal(part[1], other[1])
