"""Training data in all their forms, as batches that are the same again for the same seed, epoch and place."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from secateur.errors import SelectionError, UsageError
from secateur.tune.process import reseed

TrainingData = Iterable[Any] | Dataset[Any] | Callable[[], Any] | str
"""A data loader, a dataset, a tuple of tensors of all samples, batches, a function that returns any of these, or its name."""


def opened(data: TrainingData, *, batch_size: int, shuffle: bool = True) -> Iterable[Any]:
    """Training data as something that gives batches each time it is iterated over.

    A dataset, or a tuple of tensors whose first dimension are the samples, becomes a data loader with ``batch_size``; a function,
    given itself or as ``module:function``, is called; loaders and lists of batches are taken as they are.

    Raises:
        SelectionError: there is no such function.
        UsageError: the data can be read only once.
    """
    if isinstance(data, str):
        return opened(function_of(data, "Training data")(), batch_size=batch_size, shuffle=shuffle)
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, tuple) and data and all(isinstance(part, Tensor) and part.ndim for part in data):
        data = TensorDataset(*data)
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=batch_size, shuffle=shuffle and not isinstance(data, IterableDataset))
    if isinstance(data, Iterator):
        raise UsageError("Training data that can be read only once are no use for several epochs. Give a list, a loader, or a function.")
    if callable(data) and not isinstance(data, Iterable):
        return opened(data(), batch_size=batch_size, shuffle=shuffle)
    return data


def function_of(text: str, what: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; the working directory is searched too."""
    module, colon, name = text.partition(":")
    if not (module and colon and name) or Path(text).exists():
        raise SelectionError(f"{what} {text!r}: give module:function.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SelectionError(f"{what} {text}: {error}.") from error
    if not callable(found):
        raise SelectionError(f"{what} {text} is a {type(found).__name__}, no function.")
    return found  # type: ignore[no-any-return]


class Batches:
    """One epoch after the other, in this process's share, on its device."""

    def __init__(self, data: Iterable[Any], accelerator: Any, seed: int) -> None:
        self._accelerator, self._seed = accelerator, seed
        self._alone = accelerator.num_processes == 1
        self._loader = data if self._alone or not isinstance(data, DataLoader) else accelerator.prepare_data_loader(data)
        self._turns = not self._alone and not isinstance(data, DataLoader)

    @property
    def count(self) -> int | None:
        """Batches in an epoch, where that is known."""
        try:
            length = len(self._loader) if isinstance(self._loader, Sized) else None
        except TypeError:
            return None
        return length if length is None or not self._turns else length // self._accelerator.num_processes

    def epoch(self, number: int, skip: int = 0) -> Iterator[Any]:
        """The batches of one epoch from one on; those before are read as well, so that random augmentation stays the same."""
        self._shuffle(number)
        process = self._accelerator.process_index
        reseed(self._seed, "data", number, 0, process)
        for place, batch in enumerate(self._own(self._loader)):
            if place >= skip:
                yield self._moved(batch)
            reseed(self._seed, "data", number, place + 1, process)

    def _own(self, batches: Iterable[Any]) -> Iterator[Any]:
        """All batches, or one of as many as there are processes; the last ones are left out where they do not go round."""
        if not self._turns:
            yield from batches
            return
        waiting: list[Any] = []
        for batch in batches:
            waiting.append(batch)
            if len(waiting) == self._accelerator.num_processes:
                yield waiting[self._accelerator.process_index]
                waiting = []

    def _shuffle(self, number: int) -> None:
        """Let whatever shuffles start from the seed and the epoch."""
        sampler: Any = getattr(self._loader, "sampler", None)
        for owner in (self._loader, sampler):
            set_epoch = getattr(owner, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(number)
        if self._alone:
            for generator in {id(g): g for g in (getattr(self._loader, "generator", None), getattr(sampler, "generator", None))}.values():
                if generator is not None:
                    generator.manual_seed(reseed(self._seed, "shuffle", number))

    def _moved(self, batch: Any) -> Any:
        from accelerate.utils import send_to_device

        return send_to_device(batch, self._accelerator.device)
