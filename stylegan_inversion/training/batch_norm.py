"""Batch normalisation over the batches of all processes, on any device: two processes train as one with both batches.

PyTorch's own `SyncBatchNorm` refuses the CPU. Statistics are added up with a differentiable all-reduce.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _sum_over_processes(gradients[0])


def _sum_over_processes(x: Tensor) -> Tensor:
    return cast(Tensor, _SumOverProcesses.apply(x))


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose batch is that of all processes. Each must have a batch of the same shape."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, (B, C, H, W)."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        x = input.float()
        world = dist.get_world_size()
        sums = torch.cat([x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3))])
        mean, square = (_sum_over_processes(sums) / world).chunk(2)
        variance = (square - mean.square()).clamp(min=0)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            count = input.numel() / input.shape[1] * world
            momentum = self.momentum if self.momentum is not None else 0.1
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt()  # not F.batch_norm: it gives the statistics no gradient
        if self.affine:
            scale = scale * self.weight
        shape = (1, -1, 1, 1)
        out = (x - mean.view(shape)) * scale.view(shape)
        return (out + self.bias.view(shape) if self.affine else out).to(input.dtype)


def synchronize_batch_norm(module: nn.Module) -> None:
    """Turn every `nn.BatchNorm2d` of a network into a synchronised one, in place; names and weights stay."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SynchronizedBatchNorm2d
