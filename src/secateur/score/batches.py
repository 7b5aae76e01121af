"""Calibration data in all its forms, as batches of the size that a graph was captured with."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from secateur.capture.capture import Capture
from secateur.capture.inputs import is_pair
from secateur.errors import FileError, MissingExtraError, ModelError, SelectionError

Data = Iterable[Any] | Tensor | Dataset[Any] | str | Path
TOGETHER = 32
"""Samples that are read or handed out at a time where nothing else says how many."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Batch:
    """Leaves of the model's inputs for one run of the graph."""

    leaves: tuple[Any, ...]
    size: int
    valid: int
    """Samples that count; the last batch may be filled up."""


def batches(data: Data, capture: Capture, *, samples: int | None) -> Iterator[Batch]:
    """Read at most ``samples`` samples and hand them out in batches of the captured size.

    ``data`` is an iterable of batches, a tensor or array of samples, a torch dataset, the path of a ``.npy`` or ``.npz`` file or
    of a folder of images, or ``module:function`` that returns any of these. A batch is a tensor, a sequence of inputs in order, or a
    mapping by the names of inputs; what the model does not take, such as labels, is left aside. Where the inputs of a model do not
    all have the samples along their first dimension, each batch counts as one sample and has the shapes of the example inputs. Images are
    brought to
    the captured size, scaled to [0, 1] and normalised by the mean and deviation customary for ImageNet.

    Raises :class:`~secateur.errors.ModelError` for samples that the model does not take: other shapes, numbers of another kind
    (pixels as whole numbers where the example inputs are real), or NaN.
    """
    if samples is not None and samples < 1:
        raise SelectionError(f"samples is {samples}; it is the largest number of calibration samples, from 1 up, or None for all.")
    example = capture.flat_inputs()
    size = batch_size(example)
    if size is None:
        yield from islice(_whole(data, capture), samples)
        return
    waiting: list[Tensor] | None = None
    left = samples
    for given in _opened(data, capture):
        leaves = _fitted(_leaves(given, capture), example)
        moving = [x for x in leaves if isinstance(x, Tensor)]
        waiting = moving if waiting is None else [torch.cat(pair) for pair in zip(waiting, moving, strict=True)]
        while len(waiting[0]) >= size and left != 0:
            count = size if left is None else min(size, left)
            left = None if left is None else left - count
            yield _batch(example, [w[:size] for w in waiting], size, count)
            waiting = [w[size:] for w in waiting]
        if left == 0:
            return
    if waiting is not None and len(waiting[0]):
        yield _filled(example, waiting, size, left)


def held(data: Data, samples: int | None) -> Data:
    """Data that can be read as often as wanted: of an iterable as many batches as so many samples need, in memory."""
    if isinstance(data, Tensor | np.ndarray | Mapping | str | Path | Dataset):
        return data
    kept, count = [], 0
    for given in _opened_iterable(data):
        kept.append(given)
        count += next((len(leaf) for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim), 1)
        if samples is not None and count >= samples:
            break
    return kept


def calibration_inputs(
    capture: Capture, data: Data, *, samples: int | None = 256, together: int = TOGETHER
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Hand the same samples out as ``(args, kwargs)`` of the model, at least ``together`` of them at a time where there are so many.

    Statistics of a batch want more samples than the example inputs that a graph was captured with.
    """
    waiting: list[Batch] = []
    for batch in batches(data, capture, samples=samples):
        waiting.append(batch)
        if sum(b.size for b in waiting) >= together or _apart(capture):
            yield _joined_inputs(capture, waiting)
            waiting = []
    if waiting:
        yield _joined_inputs(capture, waiting)


def _apart(capture: Capture) -> bool:
    """Whether batches do not join: an input is a list of tensors, such as images of different sizes, or batches are whole graphs."""
    lists = any(isinstance(value, list | tuple) for value in (*capture.args, *capture.kwargs.values()))
    return lists or batch_size(capture.flat_inputs()) is None


def _joined_inputs(capture: Capture, parts: Sequence[Batch]) -> tuple[Any, dict[str, Any]]:
    leaves = [torch.cat(x) if _moves(x, parts) else x[0] for x in zip(*(p.leaves for p in parts), strict=True)]
    args, kwargs = pytree.tree_unflatten(leaves, capture.in_spec)
    return args, kwargs


def _moves(values: Sequence[Any], parts: Sequence[Batch]) -> bool:
    """Whether an input has a sample in each place of its first dimension."""
    return all(isinstance(v, Tensor) and v.ndim > 0 and len(v) == p.size for v, p in zip(values, parts, strict=True))


def _filled(example: Sequence[Any], waiting: Sequence[Tensor], size: int, left: int | None) -> Batch:
    """The last batch, its samples repeated until it is full."""
    count = len(waiting[0])
    index = torch.arange(size) % count
    return _batch(example, [w[index.to(w.device)] for w in waiting], size, count if left is None else min(count, left))


def _batch(example: Sequence[Any], tensors: Sequence[Tensor], size: int, valid: int) -> Batch:
    supply = iter(tensors)
    return Batch(tuple(next(supply) if isinstance(x, Tensor) else x for x in example), size, valid)


def batch_size(example: Sequence[Any]) -> int | None:
    """Samples in a batch like the example; none where not all inputs have them along their first dimension, as graphs do."""
    sizes = {len(x) for x in example if isinstance(x, Tensor) and x.ndim}
    if len(sizes) != 1 or any(isinstance(x, Tensor) and not x.ndim for x in example):
        return None
    return sizes.pop()


def _whole(data: Data, capture: Capture) -> Iterator[Batch]:
    """Batches as they are given, each of which counts as one sample."""
    example = capture.flat_inputs()
    for given in _opened(data, capture):
        leaves = _fitted(_leaves(given, capture), example)
        for leaf, model in zip(leaves, example, strict=True):
            if isinstance(model, Tensor) and leaf.shape != model.shape:
                raise ModelError(
                    f"A calibration batch has the shape {tuple(leaf.shape)}, the example input {tuple(model.shape)}. The inputs of this "
                    "model do not all have samples along their first dimension, so batches are taken whole, in the shapes of the example."
                )
        yield Batch(tuple(leaf if isinstance(leaf, Tensor) else x for leaf, x in zip(leaves, example, strict=True)), 1, 1)


def _leaves(given: Any, capture: Capture) -> list[Any]:
    """The leaves of one batch, in the order in which the graph takes them."""
    if isinstance(given, Mapping):
        args, kwargs = _by_name(given, capture)
    elif is_pair(given):
        args, kwargs = given
    else:
        items = tuple(given) if isinstance(given, list | tuple) else (given,)
        args, kwargs = items[: len(capture.args)], dict(zip(capture.kwargs, items[len(capture.args) :], strict=False))
    kwargs = {name: kwargs[name] if name in kwargs else _untouched(name, value) for name, value in capture.kwargs.items()}
    leaves, spec = pytree.tree_flatten((tuple(args), kwargs))
    if spec != capture.in_spec:
        raise ModelError(f"A calibration batch does not look like the example inputs: it has {_outline(given)}.")
    return leaves


def _by_name(given: Mapping[str, Any], capture: Capture) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = list(inspect.signature(capture.model.forward).parameters)[: len(capture.args)]
    missing = [n for n in names if n not in given]
    if missing:
        raise ModelError(f"A calibration batch has no {', '.join(map(repr, missing))}: it has {_outline(given)}.")
    return tuple(given[n] for n in names), {n: v for n, v in given.items() if n in capture.kwargs}


def _untouched(name: str, value: Any) -> Any:
    if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
        raise ModelError(f"A calibration batch has no {name!r}, which the example inputs have.")
    return value


def _fitted(leaves: Sequence[Any], example: Sequence[Any]) -> list[Any]:
    """Tensors with the dtype and device of the example's; other shapes or kinds of numbers than the example's are an error."""
    return [_alike(leaf, model) if isinstance(model, Tensor) else leaf for leaf, model in zip(leaves, example, strict=True)]


def _alike(leaf: Any, model: Tensor) -> Tensor:
    try:
        tensor = torch.as_tensor(leaf)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"A calibration batch holds a {type(leaf).__name__} where the model takes a tensor {_shape(model)}.") from error
    if tensor.shape[1:] != model.shape[1:] or tensor.ndim != model.ndim:
        hint = " Put the samples along a first dimension, as a DataLoader does." if tensor.shape == model.shape[1:] else ""
        raise ModelError(f"Calibration samples have the shape {_shape(tensor)}, the example inputs {_shape(model)}.{hint}")
    if _is_real(tensor) != _is_real(model) and tensor.dtype != torch.bool:
        raise ModelError(
            f"Calibration samples are {_dtype(tensor)}, the example inputs {_dtype(model)}: give them as the model takes them, "
            "pixels scaled and normalised, token numbers as whole numbers."
        )
    if bool(tensor.isnan().any()):
        raise ModelError("The calibration samples hold NaN.")
    return tensor.to(model.device, model.dtype)


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return " x ".join(["n", *map(str, tensor.shape[1:])]) if tensor.ndim else "of a number"


def _outline(given: Any) -> str:
    if isinstance(given, Mapping):
        return "the entries " + ", ".join(map(str, given))
    return f"{len(given)} items" if isinstance(given, list | tuple) else f"one {type(given).__name__}"


def _opened(data: Data, capture: Capture) -> Iterable[Any]:
    if isinstance(data, Tensor | np.ndarray):
        return [data]
    if isinstance(data, Mapping):
        return [data]
    if isinstance(data, str | Path):
        return _from_path(str(data), capture)
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=TOGETHER)
    return _opened_iterable(data)


def _opened_iterable(data: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(data)
    except TypeError as error:
        raise SelectionError(
            f"Calibration data are batches, a tensor, a file, a folder or module:function, not {type(data).__name__!r}."
        ) from error


def _from_path(text: str, capture: Capture) -> Iterable[Any]:
    path = Path(text)
    if path.is_dir():
        return _images(path, capture)
    if path.suffix in (".npy", ".npz"):
        return [_arrays(path)]
    module, colon, function = text.partition(":")
    if colon and not path.exists():
        return _opened(_called(module, function), capture)
    raise FileError(f"Calibration data {text!r}: no such folder, .npy or .npz file, or module:function.")


def _arrays(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return torch.from_numpy(loaded)
        with loaded:
            arrays = {name: torch.from_numpy(loaded[name]) for name in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"Cannot read the calibration data {path}: {error}.") from error
    return tuple(arrays.values()) if all(name.startswith("arr_") for name in arrays) else arrays


def _called(module: str, function: str) -> Any:
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SelectionError(f"Calibration data {module}:{function}: {error}.") from error
    return found()


def _images(folder: Path, capture: Capture) -> Iterator[Tensor]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    first = capture.flat_inputs()[0]
    if not files:
        raise FileError(f"The folder {folder} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    if not isinstance(first, Tensor) or first.ndim != 4 or first.shape[1] not in (1, 3):
        raise ModelError(
            f"Images from a folder need a model that takes n x 3 x height x width (or n x 1), not {_shape(torch.as_tensor(first))}."
        )
    for file in files:
        yield read_image(file, tuple(first.shape[1:])).unsqueeze(0)


def read_image(file: Path, shape: tuple[int, ...], *, side: float = 1.0, place: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """One image brought to a shape: its middle, as large as fits, or of a part whose sides are smaller, at a place in [0, 1]."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("pillow", "vision", "Reading images") from error
    channels, height, width = shape
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB" if channels == 3 else "L")
            part = picture if side == 1.0 else picture.crop(_corners(picture.size, side, place))
            fitted = ImageOps.fit(part, (width, height), Image.Resampling.BICUBIC)
    except OSError as error:
        raise FileError(f"Cannot read the image {file}: {error}.") from error
    pixels = torch.from_numpy(np.array(fitted, dtype=np.float32) / 255).reshape(height, width, channels).permute(2, 0, 1)
    mean, std = (torch.tensor(v[:channels]).view(-1, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    return (pixels - mean) / std


def _corners(size: tuple[int, int], side: float, place: tuple[float, float]) -> tuple[int, int, int, int]:
    lengths = [max(1, round(length * side)) for length in size]
    left, top = (round((whole - length) * share) for whole, length, share in zip(size, lengths, place, strict=True))
    return left, top, left + lengths[0], top + lengths[1]
