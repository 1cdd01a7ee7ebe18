"""An attached model takes a real step in two processes, replicated or sharded."""

import pytest
import torch
from torch import multiprocessing, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from zoo import small_vit

from gmmvit.attach import attach, load_masks, mask_parameters

pytest.importorskip("timm")


def batch(rank, dtype=torch.float32):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(rank))
    return images.to(dtype), torch.tensor([rank, 3])


def new_model(dtype=torch.float32):
    torch.manual_seed(0)
    return attach(small_vit(global_pool="avg").to(dtype), init="paper", dtype=dtype).train()


def step(forward, model, images, labels):
    # A bfloat16 parameter cannot move by less than 1/256 of itself.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5 if images.dtype == torch.float32 else 1e5)
    nn.functional.cross_entropy(forward(images).float(), labels).backward()
    optimizer.step()


def replicated(rank, folder):
    model = new_model()
    step(DistributedDataParallel(model), model, *batch(rank))
    torch.save([p.detach() for p in mask_parameters(model)], f"{folder}/{rank}.pt")


def sharded(rank, folder):
    model = new_model(torch.bfloat16)
    for part in (*model.blocks, model):
        fully_shard(part)
    step(model, model, *batch(rank, torch.bfloat16))
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(state, f"{folder}/state.pt")


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    replicated(rank, folder)
    sharded(rank, folder)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes left."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return folder


def in_one_process(dtype=torch.float32):
    """The masks before and after the step of two processes."""
    model = new_model(dtype)
    before = [p.detach().clone() for p in mask_parameters(model)]
    step(model, model, *(torch.cat(parts) for parts in zip(batch(0, dtype), batch(1, dtype), strict=True)))
    return before, [p.detach() for p in mask_parameters(model)]


def test_two_processes_take_the_step_of_one(folder):
    before, after = in_one_process()
    for rank in range(2):
        for got, expected, old in zip(torch.load(folder / f"{rank}.pt"), after, before, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
            assert not torch.equal(got, old)


def test_a_bfloat16_model_is_sharded_with_its_masks(folder):
    model = small_vit(global_pool="avg").to(torch.bfloat16)
    masks = mask_parameters(load_masks(model, folder / "state.pt", dtype=torch.bfloat16))
    for got, old, expected in zip(masks, *in_one_process(torch.bfloat16), strict=True):
        assert got.dtype == torch.bfloat16
        moved = (expected - old).float()
        assert moved.abs().max() > 0.1
        torch.testing.assert_close((got - old).float(), moved, atol=0.05 * moved.abs().max().item(), rtol=0.1)
