"""The result as an exported program, which plain PyTorch opens; its input sizes are open where the model's are."""

from __future__ import annotations

import inspect
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from secateur.capture.execution import plain_execution
from secateur.capture.export import longest, open_dims
from secateur.capture.flat import FlatModel, flatten_inputs, tensors_of
from secateur.capture.limit import time_limit
from secateur.capture.quietly import quietly
from secateur.capture.sizes import OpenSizes, open_sizes
from secateur.capture.states import starts_from_inputs
from secateur.capture.trees import copied, flatten_outputs
from secateur.capture.untouched import untouched
from secateur.capture.verify import check_equal
from secateur.errors import CaptureError, FileError
from secateur.export.outputs import output_names, plain, without_names

Sizes = Sequence[Mapping[int, Any]]


@dataclass(frozen=True, eq=False)
class Exported:
    """An exported program that has been compared with its model, and on what."""

    program: ExportedProgram
    inputs: tuple[list[Any], ...]
    """Flat inputs on which the program gave what the model gives: the example inputs, then others of other sizes."""
    open_dims: Mapping[str, tuple[int, ...]]
    """Which dimensions of which input may vary."""
    outputs: tuple[str, ...]
    """A name for each tensor that the model returns."""
    notes: tuple[str, ...] = ()
    """What torch said to freer sizes, and where the program returns something else than the model."""


@dataclass(frozen=True, eq=False)
class _Example:
    """A model with its flattened example inputs."""

    model: nn.Module
    flat: list[Any]
    spec: pytree.TreeSpec

    def with_tensors(self, tensors: Sequence[Tensor]) -> list[Any]:
        remaining = iter(tensors)
        return [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in self.flat]

    def call(self, function: Any, flat: Sequence[Any]) -> list[Any]:
        args, kwargs = pytree.tree_unflatten(copied(flat), self.spec)
        with torch.no_grad():
            return flatten_outputs(function(*args, **kwargs))[0]

    def outputs(self) -> Any:
        """What the model returns, as it returns it."""
        args, kwargs = pytree.tree_unflatten(copied(self.flat), self.spec)
        with untouched(self.model, self.flat), plain_execution(self.model, self.flat):
            return self.model(*args, **kwargs)


class _Opened(nn.Module):
    """A model under its own names that returns tuples in place of what a stored program has no name for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers

        def forward(*args: Any, **kwargs: Any) -> Any:
            return plain(model(*args, **kwargs))

        forward.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]
        self.forward = forward


def export_program(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Exported:
    """Export a model as it is called by its user, in eval mode, with the batch size and other sizes open where it takes them.

    Raises :class:`CaptureError` if torch.export cannot export it at all.
    """
    flat, spec = flatten_inputs(args, kwargs)
    example = _Example(model, flat, spec)
    run = FlatModel(model, flat, spec)
    fixed = starts_from_inputs(model)
    open_ones = OpenSizes([], [], []) if fixed else open_sizes(run, tensors_of(flat))
    returned = example.outputs()
    nameless, names = without_names(returned), tuple(output_names(returned))
    notes = [f"model.pt2 returns the tensors of {kind} in a tuple, where the model returns the object" for kind in nameless]
    exporting = _Opened(model) if nameless else model
    failures: list[str] = []
    for what, tensors, sizes in _attempts(run, tensors_of(flat), open_ones.places, fixed=fixed):
        try:
            with time_limit(longest(open_ones)) if any(dim for free in sizes for dim in free) else nullcontext():
                program = _traced(exporting, example, tensors, sizes)
            others = [] if fixed else [_one_more(tensors_of(flat)), *open_ones.witnesses, *open_ones.doubts]
            checked = _checked(program, example, [example.with_tensors(each) for each in others])
        except Exception as error:  # noqa: BLE001 - torch.export fails in many ways, and each only means to try the next one
            failures.append(f"torch.export with {what}: {first_line(error)}")
        else:
            free = {name: dims for name, dims in open_dims(program).items() if dims}
            return Exported(program, (flat, *checked), free, names, (*failures, *notes))
    raise CaptureError("; ".join(dict.fromkeys(reason.partition(": ")[2] for reason in failures)))


def with_open_batch(exported: Exported) -> Exported | None:
    """The same program with no size open but the batch's; none where no other is open."""
    if not any(dim for dims in exported.open_dims.values() for dim in dims):
        return None
    alike = tuple(flat for flat in exported.inputs if _without_batch(flat) == _without_batch(exported.inputs[0]))
    flat = next((each for each in alike if all(x.shape[0] > 1 for x in tensors_of(each) if x.dim())), alike[0])
    module, spec = exported.program.module(check_guards=False), exported.program.call_spec.in_spec
    tensors = tensors_of(flat)
    program = _traced(module, _Example(module, flat, spec), tensors, _sizes(tensors, []))
    free = {name: dims for name, dims in open_dims(program).items() if dims}
    return Exported(program, alike, free, exported.outputs, exported.notes)


def _without_batch(flat: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(x.shape[1:]) for x in tensors_of(flat)]


def write_program(program: ExportedProgram, path: Path) -> str | None:
    """Write an exported program without its example inputs, which torch would pickle; returns why not if torch cannot store it."""
    kept, program.example_inputs = program.example_inputs, None
    with _Sink(path, "wb") as sink:
        try:
            with quietly():
                torch.export.save(program, sink)
            reason = None
        except Exception as error:  # noqa: BLE001 - torch has no one error for what it cannot store
            reason = f"torch.export cannot store this program: {first_line(error)}"
        finally:
            program.example_inputs = kept
    if sink.failure is not None:
        raise FileError(f"Cannot write {path.name}: {sink.failure}.") from sink.failure
    if reason is not None:
        path.unlink()
    return reason


class _Sink(io.FileIO):
    """A file that remembers why it could not be written, and lets torch's writer come to its end all the same."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of the data, unless writing failed before."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while len(left) and self.failure is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.failure = error
        return size


def read_program(path: Path, *, trust_pickle: bool = False) -> ExportedProgram:
    """Open an exported program; one that holds pickled objects only with ``trust_pickle``."""
    if not path.is_file():
        raise FileError(f"There is no file {path}.")
    try:
        pickled = _pickled_parts(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FileError(f"{path} is damaged or no exported program: {error}.") from error
    if pickled and not trust_pickle:
        what = f"pickled objects ({', '.join(pickled)}), which may run any code of whoever wrote it"
        raise FileError(f"{path} holds {what}. If you trust the file, load it with trust_pickle=True.")
    try:
        with quietly():
            return torch.export.load(path)
    except Exception as error:
        raise FileError(f"{path} cannot be opened as an exported program: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _attempts(
    run: FlatModel, tensors: list[Tensor], places: Sequence[tuple[int, int]], *, fixed: bool
) -> Iterator[tuple[str, list[Tensor], Sizes]]:
    """Ways of exporting, the freest first. A size of 1 counts as a constant, so single examples go in twice where the model runs so."""
    ranked = [tensor for tensor in tensors if tensor.dim() and not fixed]
    doubled = _doubled(run, tensors) if ranked and all(tensor.shape[0] == 1 for tensor in ranked) else None
    if ranked and places:
        yield "batch and input sizes open", doubled or tensors, _sizes(doubled or tensors, places)
    if ranked:
        yield "batch size open", doubled or tensors, _sizes(doubled or tensors, [])
    if places and doubled:
        yield "input sizes open", tensors, _sizes(tensors, places)
    yield "fixed sizes", tensors, [{} for _ in tensors]


def _sizes(tensors: Sequence[Tensor], places: Sequence[tuple[int, int]]) -> Sizes:
    free: list[dict[int, Any]] = [{0: Dim.AUTO} if tensor.dim() and tensor.shape[0] > 1 else {} for tensor in tensors]
    for position, dim in places:
        free[position][dim] = Dim.AUTO
    return free


def _doubled(run: FlatModel, tensors: list[Tensor]) -> list[Tensor] | None:
    twice = [torch.cat([tensor, tensor]) if tensor.dim() else tensor for tensor in tensors]
    try:
        run.outputs_on(twice)
    except Exception:  # noqa: BLE001 - a model may refuse another batch size in any way it likes
        return None
    return twice


def _one_more(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat([tensor, tensor[:1]]) if tensor.dim() else tensor for tensor in tensors]


def _traced(model: nn.Module, example: _Example, tensors: Sequence[Tensor], sizes: Sizes) -> ExportedProgram:
    flat = example.with_tensors(tensors)
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor, free in zip(tensors, sizes, strict=True):
        shapes[tensor] = dict(free)
    args, kwargs = pytree.tree_unflatten(flat, example.spec)
    with quietly(), untouched(example.model, flat), plain_execution(example.model, flat):
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def _checked(program: ExportedProgram, example: _Example, others: Sequence[list[Any]]) -> list[list[Any]]:
    """Compare program and model on the example inputs, and on the other sizes that both take, which are returned."""
    again = program.module()
    with untouched(example.model, example.flat), plain_execution(example.model, example.flat), quietly():
        check_equal(example.call(again, example.flat), example.call(example.model, example.flat))
        taken = []
        for flat in others:
            try:
                expected, found = example.call(example.model, flat), example.call(again, flat)
            except Exception:  # noqa: BLE001 - sizes that one of them refuses tell nothing
                continue
            check_equal(found, expected)
            taken.append(flat)
    return taken


def _pickled_parts(path: Path) -> list[str]:
    """Parts of an exported program's archive that torch would unpickle."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        configs = [name for name in names if name.endswith(("_weights_config.json", "_constants_config.json"))]
        parts = [entry for name in configs for entry, meta in json.loads(archive.read(name))["config"].items() if meta["use_pickle"]]
        return parts + [name for name in names if "sample_inputs/" in name and archive.getinfo(name).file_size]
