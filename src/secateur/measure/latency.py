"""Latency of dense and compressed models, measured in turns in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import ModelError, UsageError
from secateur.measure.evaluation import evaluating

Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Latency:
    """How long one call of a model takes, and under what conditions that was found."""

    median_ms: float
    lower_ms: float
    """A quarter of the calls were at least as fast."""
    upper_ms: float
    """A quarter of the calls were at least as slow."""
    fastest_ms: float
    repeats: int
    warmup: int
    runtime: str
    device: str
    threads: int
    batch: int | None
    dtype: str

    @property
    def spread_ms(self) -> float:
        """Width of the middle half of the calls."""
        return self.upper_ms - self.lower_ms

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"{self.median_ms:.3g} ms (middle half {self.lower_ms:.3g} to {self.upper_ms:.3g}) in {self.repeats} calls, "
            f"{self.runtime}, {self.device}, {threads}, batch {self.batch or '?'}, {self.dtype}"
        )

    def to_json(self) -> dict[str, Any]:
        """The latency as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Rounds:
    """How many times to go round the models: ``repeats`` timed rounds after ``warmup`` others, within about ``budget_s`` seconds.

    Warming up takes a quarter of the budget at most. One round of each kind is always done, however long it takes.
    """

    warmup: int = 10
    repeats: int = 50
    budget_s: float = 60.0
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        if self.warmup < 1 or self.repeats < 1:
            raise UsageError(f"warmup and repeats must be 1 or more; they are {self.warmup} and {self.repeats}.")

    def __call__(self, calls: Calls) -> tuple[int, dict[str, list[float]]]:
        """Call the models in turns (A B A B ...); give the rounds of warm-up and each model's seconds."""
        start = self.clock()
        warmed = sum(1 for _ in self._until(start + self.budget_s / 4, self.warmup, calls))
        timed = list(self._until(start + self.budget_s, self.repeats, calls))
        return warmed, {name: [seconds[name] for seconds in timed] for name in calls}

    def _until(self, end: float, most: int, calls: Calls) -> Iterator[dict[str, float]]:
        for done in range(most):
            if done and self.clock() >= end:
                return
            yield {name: self._time(call) for name, call in calls.items()}

    def _time(self, call: Callable[[], object]) -> float:
        begin = self.clock()
        call()
        return self.clock() - begin


def compare_latency(
    models: Mapping[str, Callable[..., Any]],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    warmup: int = 10,
    repeats: int = 50,
    threads: int | None = None,
    budget_s: float = 60.0,
) -> dict[str, Latency]:
    """Time models on the same inputs, in turns, so that whatever else the machine does meets all of them alike.

    Modules run in evaluation mode and without gradients. Accelerators are waited for before the clock is read.

    >>> compare_latency({"dense": model, "compressed": result.model}, (images,), threads=1)  # doctest: +SKIP
    """
    rounds = Rounds(warmup, repeats, budget_s)
    calls = {name: _eager_call(name, model, args, dict(kwargs or {})) for name, model in models.items()}
    with evaluating(models.values()), torch_threads(threads) as used:
        warmed, seconds = rounds(calls)
    return {
        name: summarize(
            seconds[name],
            warmup=warmed,
            runtime=f"torch {torch.__version__}",
            device=_device_name(_device(model, args, kwargs)),
            threads=used,
            batch=batch_of((args, kwargs)),
            dtype=_dtype(model, args, kwargs),
        )
        for name, model in models.items()
    }


def summarize(seconds: list[float], *, warmup: int, runtime: str, device: str, threads: int, batch: int | None, dtype: str) -> Latency:
    """Median and quartiles of timed calls, with the conditions they were timed under."""
    lower, median, upper = (float(value) for value in np.percentile(np.asarray(seconds) * 1e3, [25, 50, 75]))
    return Latency(median, lower, upper, min(seconds) * 1e3, len(seconds), warmup, runtime, device, threads, batch, dtype)


def slower_than_dense(timed: Mapping[str, Latency]) -> tuple[str, ...]:
    """A note where the model ``compressed`` measured slower than ``dense``; nothing where it did not."""
    dense, small = timed["dense"].median_ms, timed["compressed"].median_ms
    if small <= dense:
        return ()
    return (f"the compressed model measured slower than the dense one: {small:.3g} ms against {dense:.3g} ms",)


def batch_of(inputs: Any) -> int | None:
    """Size of the first dimension of the first input tensor that has one."""
    return next((len(tensor) for tensor in _tensors(inputs) if tensor.dim()), None)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Let torch work with so many threads for a while (as many as before if None), and say how many those are."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _eager_call(name: str, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], object]:
    device = _device(model, args, kwargs)

    def call() -> object:
        try:
            outputs = model(*args, **kwargs)
        except Exception as error:
            raise ModelError(
                f"The model {name!r} does not run on these inputs: {error}. Give inputs that all compared models take."
            ) from error
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return outputs

    return call


def _device(model: Callable[..., Any], args: Any, kwargs: Any) -> torch.device:
    return next((tensor.device for tensor in chain(_weights(model), _tensors((args, kwargs)))), torch.device("cpu"))


def _dtype(model: Callable[..., Any], args: Any, kwargs: Any) -> str:
    tensors = chain(_weights(model), _tensors((args, kwargs)))
    return next((str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()), "none")


def _weights(model: Callable[..., Any]) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else iter(())


def _tensors(inputs: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
