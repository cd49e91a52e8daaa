"""Several processes that train one model: `torchrun`'s environment, sums over all of them, BatchNorm over all of them.

torch's own SyncBatchNorm takes CUDA tensors only. This one uses plain tensor operations on every device, so that GPUs
run the code that was tested on a CPU.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from twins_trt.errors import UsageError
from twins_trt.verbs.groups.running import torch_device

PATIENCE = timedelta(hours=2)  # the first process validates while the others wait


@dataclass(frozen=True)
class World:
    """The processes of a run. rank: of this one, counted from 0. size: how many. device: where this one computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, validates and reports for all."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place; not differentiable."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Waits until every process calls this."""
        if self.size > 1:
            dist.barrier()


def world_size() -> int:
    """The number of processes that `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """The rank of this process, counted from 0."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Joins the processes that `torchrun` started (its env:// variables); without it the world is this process alone.

    device: `auto`, `cpu` or `cuda`; with CUDA, LOCAL_RANK chooses the GPU. Processes talk over NCCL on GPUs, gloo on
    CPUs. Raises `MissingDependencyError` where `cuda` is wanted and there is no GPU.
    """
    chosen = choose_device(device)
    if world_size() == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        # What still holds the group, and refers to itself, would end it while Python exits, where gloo's threads abort.
        gc.collect()
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """The device called `name`; with several GPUs this process's own."""
    if torch_device(name) == "cpu":
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UsageError(
            f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}",
            f"torchrun --nproc-per-node {torch.cuda.device_count()}",
        )
    return torch.device("cuda", local)


class _SumOverAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are over the batches of all processes, which must have one shape."""

    def forward(self, x: Tensor) -> Tensor:
        """x: float [N, C, H, W] -> the same shape and dtype; statistics in float32."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        wide = x.float()
        count = dist.get_world_size() * x.numel() // x.shape[1]
        mean = _SumOverAll.apply(wide.sum(dim=(0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        var = _SumOverAll.apply(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / max(1, count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def sync_batch_norms(model: nn.Module) -> None:
    """Turns every BatchNorm2d of `model` into a `SyncBatchNorm2d`, in place; names, weights and statistics stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
