"""How long single operators and whole models take in ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.capture.quietly import quietly
from secateur.errors import MissingExtraError, ModelError
from secateur.measure.evaluation import evaluating
from secateur.measure.latency import Latency
from secateur.measure.layer_times import Machine, Repeats, Timer, processor_name
from secateur.measure.onnx_runtime import onnx_latency, opened, runtime_module
from secateur.measure.operation import Operation, Shaped

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOGETHER, LARGEST = 64, 1 << 24
"""So many operators are exported at once, or as many as have so many numbers in their tensors: what an export takes by itself is shared."""


@dataclass(frozen=True)
class OnnxTimer:
    """Times operators as ONNX Runtime runs them on the CPU, each in a model of its own with its weights inside.

    What the runtime does across operators, such as folding a batch norm into the convolution before it, is not in these times. Needs the
    extra ``onnx``.
    """

    threads: int | None = None
    repeats: Repeats = field(default_factory=Repeats)

    @property
    def machine(self) -> Machine:
        """Where, with what and with how many threads it measures."""
        return Machine(f"onnxruntime {runtime_module().__version__}", f"cpu {processor_name()}", self._threads)

    def __call__(self, operation: Operation) -> float | None:
        """Milliseconds of the fastest call; ``None`` for an operator that cannot be exported, or that computes with weights alone."""
        return self.prepared([operation])(operation)

    def prepared(self, operations: Sequence[Operation]) -> Timer:
        """The same timer, which exports these operators a bundle at a time."""
        require_onnx()
        return _Prepared(self, self._threads, list(operations))

    @property
    def _threads(self) -> int:
        return self.threads or torch.get_num_threads()


@dataclass(eq=False)
class _Prepared:
    """A timer of operators that are exported together."""

    timer: OnnxTimer
    threads: int
    waiting: list[Operation]
    files: dict[str, bytes | None] = field(default_factory=dict)

    @property
    def machine(self) -> Machine:
        return self.timer.machine

    def __call__(self, operation: Operation) -> float | None:
        while operation.key not in self.files:
            bundle = _first(self.waiting)
            self.waiting = self.waiting[len(bundle) :]
            self.files |= dict(zip((each.key for each in bundle), _exported(bundle), strict=True))
        file = self.files.pop(operation.key)
        return None if file is None else self._ms(file, operation)

    def _ms(self, file: bytes, operation: Operation) -> float | None:
        try:
            session = opened(file, self.threads)
            values = [leaf.tensor(torch.device("cpu")).numpy() for leaf in _inputs(operation)]
            feeds = dict(zip((port.name for port in session.get_inputs()), values, strict=True))
            return self.timer.repeats.fastest_ms(lambda: session.run(None, feeds))
        except Exception:  # noqa: BLE001 - ONNX Runtime raises errors of its own for each kind of failure
            return None


def _first(operations: Sequence[Operation]) -> Sequence[Operation]:
    """As many operators as are exported at once, one at least."""
    numbers = 0
    for count, operation in enumerate(operations[:TOGETHER]):
        numbers += sum(leaf.tensor(torch.device("meta")).numel() for leaf in operation.leaves if isinstance(leaf, Shaped))
        if count and numbers > LARGEST:
            return operations[:count]
    return operations[:TOGETHER]


def _exported(operations: Sequence[Operation]) -> list[bytes | None]:
    """An ONNX model of each operator; where the exporter fails on several, of each half of them."""
    try:
        return list(_apart(_Bundle(operations)))
    except Exception:  # noqa: BLE001 - the exporter fails in many ways
        if len(operations) == 1:
            return [None]
        middle = len(operations) // 2
        return [*_exported(operations[:middle]), *_exported(operations[middle:])]


class _Bundle(nn.Module):
    """Operators side by side, each with inputs and outputs of its own."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        super().__init__()
        self.operations = operations
        for number, operation in enumerate(operations):
            for place, leaf in enumerate(operation.leaves):
                if isinstance(leaf, Shaped) and leaf.stored:
                    self.register_buffer(f"stored_{number}_{place}", leaf.tensor(torch.device("cpu")))

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        given = iter(inputs)
        return [output for number in range(len(self.operations)) for output in self.called(number, given)]

    def called(self, number: int, given: Iterator[Tensor]) -> list[Tensor]:
        """What one of the operators returns, for its share of the inputs."""
        operation = self.operations[number]
        leaves = [
            (getattr(self, f"stored_{number}_{place}") if leaf.stored else next(given)) if isinstance(leaf, Shaped) else leaf
            for place, leaf in enumerate(operation.leaves)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, operation.spec)
        return [leaf for leaf in pytree.tree_leaves(operation.target(*args, **kwargs)) if isinstance(leaf, Tensor)]


def _inputs(operation: Operation) -> list[Shaped]:
    return [leaf for leaf in operation.leaves if isinstance(leaf, Shaped) and not leaf.stored]


def _apart(bundle: _Bundle) -> Iterator[bytes | None]:
    """The ONNX model of each operator of a bundle; none of those without inputs, which the runtime computes once."""
    from onnx.utils import Extractor

    inputs = [[leaf.tensor(torch.device("cpu")) for leaf in _inputs(operation)] for operation in bundle.operations]
    with torch.no_grad():
        counts = [len(bundle.called(number, iter(given))) for number, given in enumerate(inputs)]
    takes = [[f"input_{number}_{i}" for i in range(len(given))] for number, given in enumerate(inputs)]
    gives = [[f"output_{number}_{i}" for i in range(count)] for number, count in enumerate(counts)]
    tensors, names, results = [*chain(*inputs)], [*chain(*takes)], [*chain(*gives)]
    whole = Extractor(_proto(bundle, tensors, names, results))
    for taken, given in zip(takes, gives, strict=True):
        yield whole.extract_model(taken, given).SerializeToString() if taken and given else None


def _proto(model: nn.Module, inputs: Sequence[Tensor], takes: Sequence[str], gives: Sequence[str]) -> Any:
    with quietly(), torch.no_grad():
        found = torch.onnx.export(
            model.eval(), tuple(inputs), dynamo=True, verbose=False, optimize=False, input_names=takes, output_names=gives
        )
    assert found is not None
    return found.model_proto


@dataclass(eq=False)
class OnnxComparison:
    """Times models in turns as :func:`~secateur.measure.compare_latency` does, in ONNX Runtime; each model is exported once."""

    threads: int | None = None
    _files: WeakKeyDictionary[nn.Module, Path] = field(default_factory=WeakKeyDictionary)

    @cached_property
    def _folder(self) -> Path:
        folder = Path(mkdtemp(prefix="secateur-"))
        finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def __call__(
        self, models: Mapping[str, Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, **rounds: Any
    ) -> dict[str, Latency]:
        """Latencies by name; :class:`~secateur.errors.ModelError` for a model that cannot be exported."""
        files = {name: self._file(name, model, args, dict(kwargs or {})) for name, model in models.items()}
        return onnx_latency(files, args, kwargs, threads=self.threads, **rounds)

    def _file(self, name: str, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Path:
        require_onnx()
        if model not in self._files:
            path = self._folder / f"{len(list(self._folder.iterdir()))}.onnx"
            try:
                with quietly(), evaluating([model]), torch.no_grad():
                    exported = torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)
                    assert exported is not None
                    exported.save(path)
            except Exception as error:
                raise ModelError(f"The {name} model cannot be timed in ONNX Runtime: it does not export ({_reason(error)}).") from error
            self._files[model] = path
        return self._files[model]


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require_onnx() -> None:
    """Raise :class:`~secateur.errors.MissingExtraError` unless the packages for ONNX are installed."""
    missing = next((name for name in PACKAGES if find_spec(name) is None), None)
    if missing is not None:
        raise MissingExtraError(missing, "onnx", "Latency in ONNX Runtime")
