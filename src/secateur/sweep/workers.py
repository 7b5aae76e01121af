"""Independent pieces of work: one after the other in this process, or as tasks of Ray."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from secateur.errors import MissingExtraError, SelectionError, UsageError
from secateur.score.progress import with_progress

T = TypeVar("T")
U = TypeVar("U")
Workers = Literal["ray"] | None
"""Where points are worked on: in this process, or wherever Ray runs its tasks."""


def each(work: Callable[[T], U], items: Sequence[T], what: str, *, workers: Workers = None, gpus: int = 0) -> list[U]:
    """The work done on each item, in the order of the items.

    Args:
        what: what the progress bar says.
        gpus: how many of them a task of Ray has to itself.
    """
    if workers is None:
        return [work(item) for item in with_progress(items, what, len(items))]
    return _on_ray(work, items, what, gpus)


def check_workers(workers: Workers, *, latency: bool = False) -> None:
    """Raise an error before any work is done where Ray is missing, or is asked to time models."""
    if workers is None:
        return
    if latency:
        raise SelectionError("Models that share a machine with others cannot be timed. Leave out latency, or workers.")
    if workers != "ray":
        raise UsageError(f"There are no workers {workers!r}. Leave them out, or ask for 'ray'.")
    _ray()


def _on_ray(work: Callable[[T], U], items: Sequence[T], what: str, gpus: int) -> list[U]:
    ray = _ray()
    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        shared = _sent(ray, work)
        task = ray.remote(_called).options(num_cpus=1, num_gpus=gpus)
        tasks = [task.remote(shared, item) for item in items]
        for _ in with_progress(_ended(ray, tasks), what, len(tasks)):
            pass
        results: list[U] = ray.get(tasks)
        return results
    finally:
        if own:
            ray.shutdown()


def _called(work: Callable[[T], U], item: T) -> U:
    return work(item)


def _sent(ray: Any, work: Callable[[T], U]) -> Any:
    try:
        return ray.put(work)
    except Exception as error:
        why = str(error.__cause__ or error).rstrip(".").splitlines()[-1]
        raise UsageError(f"The model, its data or the metric cannot be sent to Ray's workers: {why}. Leave workers out.") from error


def _ended(ray: Any, tasks: Sequence[Any]) -> Iterator[Any]:
    """Tasks as they end."""
    waiting = list(tasks)
    while waiting:
        ended, waiting = ray.wait(waiting, num_returns=1)
        yield from ended


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "A sweep by workers='ray'") from error
