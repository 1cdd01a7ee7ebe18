"""An attached model takes a real step in two processes."""

import pytest
import torch
from donor import small_vit
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from gmmvit.attach import attach, mask_parameters

pytest.importorskip("timm")


def batch(rank):
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(rank)), torch.tensor([rank, 3])


def model_and_optimizer():
    torch.manual_seed(0)
    model = attach(small_vit(global_pool="avg"), init="paper").train()
    return model, torch.optim.SGD(model.parameters(), lr=0.5)


def step(forward, optimizer, images, labels):
    nn.functional.cross_entropy(forward(images), labels).backward()
    optimizer.step()


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, optimizer = model_and_optimizer()
    step(DistributedDataParallel(model), optimizer, *batch(rank))
    torch.save([p.detach() for p in mask_parameters(model)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_take_the_step_of_one(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    model, optimizer = model_and_optimizer()
    start = [p.detach().clone() for p in mask_parameters(model)]
    step(model, optimizer, *(torch.cat(parts) for parts in zip(batch(0), batch(1), strict=True)))
    for rank in range(2):
        for got, expected, before in zip(
            torch.load(tmp_path / f"{rank}.pt"), mask_parameters(model), start, strict=True
        ):
            torch.testing.assert_close(got, expected.detach(), atol=1e-6, rtol=1e-5)
            assert not torch.equal(got, before)
