"""What Hugging Face Accelerate knows of this process, and random numbers that depend on the place in a run alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import MissingExtraError, UsageError

PLAIN = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_MLU", "MULTI_HPU")
"""Ways of running several processes in which each holds the whole model."""


@contextmanager
def accelerated(precision: str | None, seed: int) -> Iterator[Any]:
    """An Accelerator for one run: its device, its place among processes, and its mixed precision.

    What accelerate keeps of the precision for the whole process is dropped behind the run, unless the user has made an Accelerator
    before: then the precision is that one's.

    Raises:
        MissingExtraError: accelerate is not installed.
        UsageError: the precision does not go with the device or with the user's Accelerator, or the launcher shards the model.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
    except ImportError as error:
        raise MissingExtraError("accelerate", "train", "Fine-tuning") from error
    theirs = bool(AcceleratorState._shared_state)
    loading = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed)
    try:
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
        accelerator = Accelerator(mixed_precision=precision, dataloader_config=loading, kwargs_handlers=handlers)
    except ValueError as error:
        raise UsageError(f"Accelerate refuses precision {precision!r}: {error}") from error
    try:
        kind = accelerator.distributed_type.value
        if kind not in PLAIN:
            raise UsageError(
                f"Accelerate was told to train with {kind}; each process must hold the whole model: choose multi-GPU or multi-CPU."
            )
        yield accelerator
    finally:
        if not theirs:
            AcceleratorState._reset_state()


def shared_value(value: float, accelerator: Any) -> float:
    """The main process's value, in every process."""
    if accelerator.num_processes == 1:
        return value
    held = torch.tensor([value], dtype=torch.float32 if accelerator.device.type == "mps" else torch.float64, device=accelerator.device)
    torch.distributed.broadcast(held, 0)
    return float(held)


def share_tensors(tensors: Iterator[Tensor], accelerator: Any) -> None:
    """Give all processes the main process's values, in place."""
    if accelerator.num_processes > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), 0)


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Leave every global generator of random numbers as it was."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def reseed(*place: int | str) -> int:
    """Start every global generator from a number that a place in the run gives, such as its seed, epoch, batch and process."""
    number = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=7).digest())
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)
    return number
