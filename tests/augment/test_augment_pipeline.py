"""Augment as a whole: order, shapes, reproducibility, flip and crop, erasing, and what it refuses."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from device_ops import Operations
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torchvision.transforms import RandomErasing
from torchvision.transforms import functional as tv

from gmmvit.augment import POLICIES, Augment, normalize
from gmmvit.augment.device import one_thread
from gmmvit.augment.geometry import flip_crop

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
OFF: dict[str, Any] = {"crop_padding": 0, "flip": False, "erase_prob": 0, "mix_prob": 0, "label_smoothing": 0}


def make(**options: Any) -> Augment:
    return Augment(**{"num_classes": 10, "mean": MEAN, "std": STD, **options})


def batch(count: int, channels: int = 3, height: int = 32, width: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (count, channels, height, width), generator=generator).byte()
    return images, torch.randint(0, 10, (count,), generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_normalize_is_torchvisions() -> None:
    images, _ = batch(4, 3, 9, 13)
    torch.testing.assert_close(normalize(images, MEAN, STD), tv.normalize(images / 255, MEAN, STD))


def test_all_switched_off_is_the_evaluation_path() -> None:
    images, labels = batch(6)
    out, targets = make(**OFF)(images, labels, seeded())
    assert torch.equal(out, normalize(images, MEAN, STD))
    assert torch.equal(targets, torch.nn.functional.one_hot(labels, 10).float())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 3, 20, 31), (5, 1, 31, 20), (3, 3, 1, 1)], ids=str)
def test_every_policy_takes_every_shape(policy: str, shape: tuple[int, int, int, int]) -> None:
    images, labels = batch(*shape)
    before = images.clone()
    mean = MEAN[: shape[1]]
    for seed in range(3):
        out, targets = make(policy=policy, mean=mean, std=mean, mix_prob=1)(images, labels, seeded(seed))
        assert out.shape == shape
        assert out.dtype == torch.float32
        assert out.is_contiguous()
        assert out.isfinite().all()
        assert targets.shape == (shape[0], 10)
        torch.testing.assert_close(targets.sum(1), torch.ones(shape[0]))
    assert torch.equal(images, before)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(policy: str) -> None:
    images, labels = batch(64)
    augment = make(policy=policy)
    first, first_targets = augment(images, labels, seeded(5))
    second, second_targets = make(policy=policy)(images, labels, seeded(5))
    assert torch.equal(first, second)
    assert torch.equal(first_targets, second_targets)
    assert not torch.equal(first, augment(images, labels, seeded(6))[0])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sample_does_not_depend_on_the_others(policy: str) -> None:
    images, labels = batch(48)
    augment = make(policy=policy, mix_prob=0)
    whole, _ = augment(images, labels, seeded())
    strangers = images.clone()
    strangers[7:] = 255 - strangers[7:]
    assert torch.equal(augment(strangers, labels, seeded())[0][:7], whole[:7])
    assert torch.equal(augment(images[:7], labels[:7], seeded())[0], whole[:7])


def test_the_number_of_threads_is_put_back_also_after_an_error() -> None:
    images, labels = batch(2)
    torch.set_num_threads(2)
    make(policy="cifar10")(images, labels, seeded())
    assert torch.get_num_threads() == 2
    with pytest.raises(RuntimeError), one_thread():
        raise RuntimeError
    assert torch.get_num_threads() == 2


def test_flip_and_crop_are_torchvisions() -> None:
    images, _ = batch(81, 3, 12, 21)
    flipped = np.arange(81) % 2 == 0
    top, left = np.divmod(np.arange(81.0), 9)
    got = flip_crop(images, flipped, top, left, 4)
    for i, image in enumerate(images):
        mirrored = tv.hflip(image) if flipped[i] else image
        assert torch.equal(got[i], tv.crop(tv.pad(mirrored, [4]), int(top[i]), int(left[i]), 12, 21))


def test_flips_are_half_and_places_of_the_crop_are_uniform() -> None:
    image = torch.zeros(1, 9, 9, dtype=torch.uint8)
    image[0, 4, 4], image[0, 4, 3] = 255, 100  # the neighbour reveals the flip
    images, labels = image.expand(8100, -1, -1, -1), torch.zeros(8100, dtype=torch.int64)
    options = {**OFF, "mean": (0.0,), "std": (1.0,), "crop_padding": 4}
    out, _ = make(**{**options, "flip": True})(images, labels, seeded())
    counts = torch.bincount(out.flatten(1).argmax(1), minlength=81)
    assert (counts - 100).abs().max() < 50  # five sigma
    plain, _ = make(**options)(images, labels, seeded())
    mirrored = (out != plain).flatten(1).any(1).float().mean()
    assert abs(mirrored - 0.5) < 0.03


def test_erasing_is_distributed_like_torchvisions() -> None:
    height, width, count = 24, 40, 6000
    images, labels = torch.full((count, 3, height, width), 255, dtype=torch.uint8), torch.zeros(count).long()
    out, _ = make(**{**OFF, "erase_prob": 0.5})(images, labels, seeded())
    ours = (out == 0).float()
    assert torch.equal(ours, ours[:, :1].expand_as(ours))
    erased = ours[:, 0].flatten(1).any(1)
    assert abs(erased.float().mean() - 0.5) < 0.03
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = [RandomErasing.get_params(images[0], (0.02, 0.4), (0.3, 3.3), [0.0])[:4] for _ in range(3000)]
    theirs = torch.zeros(len(draws), height, width)
    for i, (top, left, tall, wide) in enumerate(draws):
        theirs[i, top : top + tall, left : left + wide] = 1
    ours = ours[erased, 0]
    for statistic in (lambda m: m.mean((1, 2)), lambda m: m.amax(2).mean(1), lambda m: m.amax(1).mean(1)):
        a, b = statistic(ours), statistic(theirs)  # area, height, width as fractions of the image
        assert abs(a.mean() - b.mean()) < 5 * math.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.std() - b.std()) < 0.02
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.06


def test_erasing_comes_after_normalisation_and_before_mixing() -> None:
    images, labels = torch.zeros(400, 3, 16, 16, dtype=torch.uint8), torch.zeros(400).long()
    out, _ = make(**{**OFF, "erase_prob": 1.0, "mix_prob": 1.0, "cutmix_alpha": 0.0})(images, labels, seeded(1))
    base = normalize(images[:1], MEAN, STD)[0, :, 0, 0]
    parts = (out / base.view(1, 3, 1, 1)).round(decimals=4).unique()
    assert len(parts) == 4  # 0, lam, 1 - lam, 1: one ratio for the batch
    torch.testing.assert_close(parts[1] + parts[2], torch.tensor(1.0), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "cifar"}, r"policy 'cifar' .*cifar10"),
        ({"mean": (0.5,), "std": (0.2, 0.2)}, "mean and std"),
        ({"mean": (125.0,) * 3}, "mean .*0..1.*125"),
        ({"std": (0.0,) * 3}, "std must be positive"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"crop_padding": -1}, "crop_padding must be at least 0, got -1"),
        ({"rand_ops": 0}, "rand_ops must be at least 1"),
        ({"rand_magnitude": 31}, "rand_magnitude must be between 0 and 30, got 31"),
        ({"erase_prob": 1.5}, r"erase_prob must be within 0\.\.1; got 1.5"),
        ({"mix_prob": -0.1}, "mix_prob must be within"),
        ({"mixup_alpha": -1}, "mixup_alpha must be within"),
        ({"label_smoothing": float("nan")}, "label_smoothing must be within"),
        ({"erase_area": (0.5, 0.1)}, "erase_area must be"),
        ({"erase_aspect": (0, 1)}, "erase_aspect must be"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("name", ["crop_padding", "erase_prob"])
def test_options_of_a_wrong_type_are_named(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be"):
        make(**{name: "4"})


def test_wrong_batches_are_named() -> None:
    images, labels = batch(4)
    augment = make()
    for bad, kind, message in (
        ((images.float(), labels, seeded()), TypeError, "images must be uint8.*float32"),
        ((images.numpy(), labels, seeded()), TypeError, "images must be a torch.Tensor"),
        ((images[0], labels, seeded()), ValueError, r"\[B, C, H, W\]; got \[3, 32, 32\]"),
        ((images[:, :1], labels, seeded()), ValueError, "images has 1 channels, but mean and std have 3"),
        ((images, labels.int(), seeded()), TypeError, "labels must be an int64 tensor; got torch.int32"),
        ((images, labels[:2], seeded()), ValueError, r"labels must have the shape \[4\]"),
        ((images, labels + 10, seeded()), ValueError, r"labels must be within 0\.\.9; got 1\d\.\.1\d"),
        ((images, labels, None), TypeError, "generator must be a torch.Generator; got NoneType"),
    ):
        with pytest.raises(kind, match=message):
            augment(*bad)


def test_importing_and_a_plain_augment_load_no_torchvision() -> None:
    code = (
        "import sys, gmmvit.augment as a; a.Augment(num_classes=2, mean=(0.5,), std=(0.5,));"
        "print(*({'torchvision', 'PIL', 'scipy', 'sklearn', 'pyarrow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("options", [{"mix_prob": 0.0}, {"cutmix_alpha": 0.0}, {"mixup_alpha": 0.0}], ids=str)
def test_shares_of_a_batch_make_the_whole(options: dict[str, float]) -> None:
    augment = make(policy="cifar10", **{"mix_prob": 1.0, **options})
    images, labels = batch(23, height=16, width=12)
    whole = augment(images, labels, seeded())
    shares = slice(0, 9), slice(9, 23), slice(23, 23)
    parts = zip(*(augment(images, labels, seeded(), share) for share in shares), strict=True)
    for one, together in zip(whole, parts, strict=True):
        assert torch.equal(one, torch.cat(together))


@pytest.mark.parametrize("policy", ["none", "cifar10", "rand"])
def test_several_batches_are_what_each_is_alone(policy: str) -> None:
    """Whatever share is computed, also with batches of one image and of none."""
    augment = Augment(num_classes=10, mean=MEAN, std=STD, policy=policy, erase_prob=0.5, mix_prob=0.7)
    sizes = [7, 1, 12, 0, 9, 12]
    images, labels = batch(sum(sizes))
    for rank, processes in ((0, 1), (0, 3), (2, 3)):

        def share(count: int, rank: int = rank, processes: int = processes) -> slice:
            return slice(count * rank // processes, count * (rank + 1) // processes)

        generator, other = seeded(3), seeded(3)
        together = augment.several(images, labels, sizes, generator, share)
        for part, one in zip(together, zip(images.split(sizes), labels.split(sizes), strict=True), strict=True):
            expected = augment(*one, other, share(len(one[1])))
            assert torch.equal(part[0], expected[0])
            assert torch.equal(part[1], expected[1])
        assert torch.equal(generator.get_state(), other.get_state())
    with pytest.raises(ValueError, match="sizes must add up to the 41 images"):
        augment.several(images, labels, [1, 2], seeded())


def test_sixteen_batches_take_at_most_sixty_operations_each_and_none_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts what a GPU would be asked to do; drawing is the host's work, and so is the check of labels on the host."""
    augment = make(policy="cifar10")
    images, labels = batch(16 * 32)

    def hidden(owner: Any, name: str) -> None:
        work = getattr(owner, name)

        def apart(*arguments: Any) -> Any:
            with _disable_current_modes():
                return work(*arguments)

        monkeypatch.setattr(owner, name, apart)

    for owner, name in ((augment, "_draw"), (augment, "_check_batch"), (augment._mix, "draw")):
        hidden(owner, name)
    with Operations() as operations:
        augment.several(images, labels, [32] * 16, seeded())
    assert 10 < len(operations) / 16 <= 60
    assert operations.waiting() == []
    with Operations() as operations:
        augment(images[:32], labels[:32], seeded())
    assert len(operations) > 200, "alone a batch takes several times as many"
