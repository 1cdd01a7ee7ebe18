"""The policies draw what torchvision's transforms draw: the same sequences of operations, equally often."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms import (
    AutoAugment,
    AutoAugmentPolicy,
    Compose,
    RandAugment,
    RandomCrop,
    RandomHorizontalFlip,
    TrivialAugmentWide,
    autoaugment,
)

from gmmvit.augment import Augment
from gmmvit.augment.ops import OPS
from gmmvit.augment.policies import AUTO_POLICIES, make_policy

HEIGHT, WIDTH = 24, 40
Sequences = Counter[tuple[tuple[str, float], ...]]


def torchvision_draws(transform: Callable[[torch.Tensor], torch.Tensor], count: int) -> Sequences:
    """How often each sequence of (operation, magnitude) comes up."""
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    calls: list[tuple[str, float]] = []

    def record(img: torch.Tensor, op_name: str, magnitude: float, **_: object) -> torch.Tensor:
        calls.append((op_name, round(float(magnitude), 3)))
        return img

    sequences: Sequences = Counter()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(autoaugment, "_apply_op", record)
        for _ in range(count):
            calls.clear()
            transform(image)
            sequences[tuple(calls)] += 1
    return sequences


def our_draws(name: str, count: int) -> Sequences:
    policy = make_policy(name)
    uniform = np.random.default_rng(0).random((count, policy.num_draws))
    stages = policy.plan(uniform, HEIGHT, WIDTH)
    sequences: Sequences = Counter()
    for i in range(count):
        calls = [(OPS[op[i]], round(float(magnitude[i]), 3)) for op, magnitude in stages]
        # torchvision's AutoAugment does not call a skipped operation, and has no Identity of its own
        sequences[tuple(call for call in calls if name not in AUTO_POLICIES or call[0] != "Identity")] += 1
    return sequences


@pytest.mark.parametrize("name", [*AUTO_POLICIES, "rand", "trivial"])
def test_sequences_of_operations_are_as_frequent_as_torchvisions(name: str) -> None:
    ours_count, theirs_count = 60_000, 4_000
    transform = {"rand": RandAugment, "trivial": TrivialAugmentWide}.get(
        name, lambda: AutoAugment(AutoAugmentPolicy(name))
    )()
    ours, theirs = our_draws(name, ours_count), torchvision_draws(transform, theirs_count)
    assert set(theirs) <= set(ours)
    for sequence, count in ours.items():
        share = count / ours_count
        sigma = (share * (1 / theirs_count + 1 / ours_count)) ** 0.5
        # five sigma, plus three counts where the normal law does not hold yet
        assert abs(theirs[sequence] / theirs_count - share) < 5 * sigma + 3 / theirs_count, sequence


def test_rand_augment_takes_its_number_of_operations_and_its_magnitude() -> None:
    policy = make_policy("rand", rand_ops=3, rand_magnitude=30)
    stages = policy.plan(np.random.default_rng(0).random((500, policy.num_draws)), HEIGHT, WIDTH)
    assert len(stages) == 3
    rotations = np.concatenate([magnitude[op == OPS.index("Rotate")] for op, magnitude in stages])
    assert set(rotations) == {-30.0, 30.0}


def test_magnitudes_follow_the_size_of_the_image() -> None:
    policy = make_policy("rand", rand_magnitude=30)
    uniform = np.random.default_rng(0).random((500, policy.num_draws))
    for height, width in ((33, 66), (331, 33)):
        op, magnitude = policy.plan(uniform, height, width)[0]
        across, down = (abs(magnitude[op == OPS.index(name)]) for name in ("TranslateX", "TranslateY"))
        assert np.allclose(across, 150 / 331 * width, rtol=1e-6)
        assert np.allclose(down, 150 / 331 * height, rtol=1e-6)


def smooth_picture() -> torch.Tensor:
    """uint8 [3, 32, 32] without equal rows or columns, and levels that leave room for every operation."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    return (40 + 170 * torch.stack((0.7 * x + 0.3 * y**2, (x * 5).sin() ** 2 * y, (y * 7 + x).cos() ** 2))).byte()


def distinct(images: torch.Tensor) -> float:
    return len({sample.numpy().tobytes() for sample in images}) / len(images)


def test_512_copies_of_an_image_come_out_as_different_as_torchvision_makes_them() -> None:
    # Flip, crop and policy leave 162 places and a fifth of the images without any operation, so some copies must meet.
    augment = Augment(num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3, policy="cifar10", erase_prob=0, mix_prob=0)
    reference = Compose([RandomHorizontalFlip(), RandomCrop(32, padding=4), AutoAugment(AutoAugmentPolicy.CIFAR10)])
    image, labels = smooth_picture(), torch.zeros(512, dtype=torch.int64)
    generator = torch.Generator().manual_seed(2)
    ours = [distinct(augment(image.expand(512, -1, -1, -1), labels, generator)[0]) for _ in range(4)]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = distinct(torch.stack([reference(image) for _ in range(512)]))
    assert abs(sum(ours) / len(ours) - theirs) < 0.05


def test_with_erasing_at_least_95_percent_of_512_copies_are_different() -> None:
    augment = Augment(num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3, policy="cifar10", erase_prob=1, mix_prob=0)
    images = smooth_picture().expand(512, -1, -1, -1)
    out, _ = augment(images, torch.zeros(512, dtype=torch.int64), torch.Generator().manual_seed(2))
    assert distinct(out) >= 0.95
