"""On a GPU: the same draws give the same images as on the CPU, and the host never waits."""

import pytest
import torch

from gmmvit.augment import POLICIES, Augment

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def batch(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (96, 3, 20, 31), generator=generator).byte()
    return images.to(device), torch.randint(0, 10, (96,), generator=generator).to(device)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cpu_generator_gives_the_cpus_images_without_a_synchronisation(policy: str) -> None:
    augment = Augment(num_classes=10, mean=MEAN, std=STD, policy=policy)
    here, there = batch("cpu"), batch("cuda")
    for seed in range(4):
        want, want_targets = augment(*here, torch.Generator().manual_seed(seed))
        torch.cuda.set_sync_debug_mode("error")
        try:
            got, got_targets = augment(*there, torch.Generator().manual_seed(seed))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert got.device.type == "cuda"
        level = 1.5 / 255 / min(STD)
        assert ((got.cpu() - want).abs() < level).float().mean() > 0.99
        torch.testing.assert_close(got_targets.cpu(), want_targets)


@pytest.mark.parametrize("images_on", ["cpu", "cuda"])
def test_a_generator_on_the_gpu_is_reproducible(images_on: str) -> None:
    augment = Augment(num_classes=10, mean=MEAN, std=STD, policy="cifar10")
    runs = [augment(*batch(images_on), torch.Generator("cuda").manual_seed(3)) for _ in range(2)]
    assert runs[0][0].device.type == images_on
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
