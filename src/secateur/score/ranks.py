"""Statistics of several processes as one.

Where torch.distributed has been initialised, as under torchrun, each process reads its own share of the calibration data, and what it has
gathered is added to what the others have, so that all of them score, plan and refit alike, as one process with all the data would.
All processes must take part: what one of them calibrates alone waits for the others.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from secateur.errors import SelectionError

T = TypeVar("T")
N = TypeVar("N", int, float)


def processes() -> int:
    """How many processes share the data."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def summed(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors of one shape: the same numbers in each of them."""
    if processes() == 1:
        return tensor
    total = tensor.detach().clone().to(_device())
    distributed.all_reduce(total)
    return total.to(tensor.device)


def total(number: N) -> N:
    """The sum of all processes' numbers."""
    return sum(collected(number))


def collected(value: T) -> list[T]:
    """What each process has, in the order of their ranks."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    distributed.all_gather_object(found, value)
    return found


def of_first(value: T) -> T:
    """What the first process has: for what is measured, which differs from one process to the next."""
    return collected(value)[0]


def counted_before(count: int) -> tuple[int, int]:
    """How many of something the processes before this one have, and how many there are in all."""
    counts = collected(count)
    rank = distributed.get_rank() if len(counts) > 1 else 0
    return sum(counts[:rank]), sum(counts)


def check_samples(count: int) -> int:
    """The number of calibration samples of all processes; :class:`SelectionError` in each of them if one has none."""
    counts = collected(count)
    if 0 in counts:
        whose = f" of process {counts.index(0)}" if len(counts) > 1 else ""
        raise SelectionError(f"The calibration data{whose} hold no samples. An iterator that was read before is empty: give a new one.")
    return sum(counts)


def _device() -> torch.device:
    """Where the processes can meet: NCCL knows GPUs alone."""
    return torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else torch.device("cpu")
