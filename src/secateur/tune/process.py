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

    Accelerate keeps one precision for the whole process; that of an Accelerator which was made before, by the user or by another
    library, is put back behind the run.

    Raises:
        MissingExtraError: accelerate is not installed.
        UsageError: the precision does not go with the device, or the launcher shards the model.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
    except ImportError as error:
        raise MissingExtraError("accelerate", "train", "Fine-tuning") from error
    loading = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed)
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    kept = AcceleratorState._shared_state
    before = dict(kept)
    kept.clear()
    try:
        try:
            accelerator = Accelerator(mixed_precision=precision, dataloader_config=loading, kwargs_handlers=handlers)
        except ValueError as error:
            raise UsageError(f"Accelerate refuses precision {precision!r}: {error}") from error
        kind = accelerator.distributed_type.value
        if kind not in PLAIN:
            raise UsageError(
                f"Accelerate was told to train with {kind}; each process must hold the whole model: choose multi-GPU or multi-CPU."
            )
        yield accelerator
    finally:
        kept.clear()
        kept.update(before)


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
    """Leave every global generator of random numbers as it was; that of a GPU if it is in use already."""
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state() if on_gpu else None
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


def reseed(*place: int | str) -> int:
    """Start every global generator from a number that a place in the run gives, such as its seed, epoch, batch and process."""
    number = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=7).digest())
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)
    return number
