"""Reading an ONNX file: its graph as nodes with Python attributes, its weights as tensors."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import CaptureError, FileError, MissingExtraError

STANDARD = ("", "ai.onnx")
OLDEST = 7
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Port:
    """An input of a file: its name, type, and sizes, of which some may be names or unknown."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str | None, ...]

    @property
    def open(self) -> bool:
        """Whether a size is left to the caller."""
        return any(not isinstance(size, int) for size in self.shape)

    def example(self) -> str:
        """A shape and a type as the command line takes them, sizes that are left open made up."""
        sizes = "x".join(str(size if isinstance(size, int) else 64 if dim else 1) for dim, size in enumerate(self.shape))
        return f"{sizes or 1}:{str(self.dtype).removeprefix('torch.')}"

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}[{sizes}]"


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph of a file, or one inside of a node."""

    proto: Any
    file: OnnxFile

    @property
    def nodes(self) -> Sequence[Any]:
        """The nodes in an order in which they can be run."""
        nodes: Sequence[Any] = self.proto.node
        return nodes

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [value.name for value in self.proto.output]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The stored tensors by name."""
        if self.proto.sparse_initializer:
            raise CaptureError(f"{self.file.path} stores a sparse tensor, which cannot be read.")
        for stored in self.proto.initializer:
            yield stored.name, self.file.tensor(stored)

    def attributes(self, node: Any) -> dict[str, Any]:
        """The attributes of a node: numbers, texts, lists, tensors, types and graphs."""
        return {attribute.name: self._attribute(attribute) for attribute in node.attribute}

    def _attribute(self, attribute: Any) -> Any:
        value = importlib.import_module("onnx").helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            return value.decode()
        if attribute.HasField("g"):
            return Graph(value, self.file)
        if attribute.HasField("t"):
            return self.file.tensor(value)
        if attribute.name in ("to", "dtype"):
            return self.file.dtype(value)
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """An ONNX file that has been opened and found to be of a kind that can be read."""

    path: Path
    proto: Any

    @classmethod
    def open(cls, path: Path) -> OnnxFile:
        """Read a file with all its weights, those stored beside it included; functions of its own are written out."""
        try:
            onnx = importlib.import_module("onnx")
        except ImportError as error:
            raise MissingExtraError("onnx", "onnx", "Reading an ONNX file") from error
        if not path.is_file():
            raise FileError(f"There is no file {path}.")
        try:
            proto = onnx.load(path)
        except FileNotFoundError as error:
            raise FileError(f"{path} keeps weights in a file beside it that is not there: {error}. Put both into one folder.") from error
        except Exception as error:
            missing = "external" in str(error).lower()
            what = "keeps weights in another file, which cannot be read" if missing else "is no readable ONNX file"
            raise FileError(f"{path} {what}: {str(error).strip() or type(error).__name__}") from error
        if not proto.graph.node and not proto.graph.output:
            raise FileError(f"{path} is no readable ONNX file: it holds no graph.")
        if len(proto.functions):
            proto = importlib.import_module("onnx.inliner").inline_local_functions(proto)
        found = cls(path, proto)
        if found.opset < OLDEST:
            raise CaptureError(
                f"{path} is of opset {found.opset}; {OLDEST} is the oldest that can be read. Convert it with onnx.version_converter."
            )
        return found

    @property
    def graph(self) -> Graph:
        """The graph."""
        return Graph(self.proto.graph, self)

    @cached_property
    def opset(self) -> int:
        """The version of the standard's operators."""
        return max((each.version for each in self.proto.opset_import if each.domain in STANDARD), default=0)

    def inputs(self) -> list[Port]:
        """What the caller gives, stored tensors that are listed as inputs left out."""
        stored = {each.name for each in self.proto.graph.initializer}
        return [self._port(value) for value in self.proto.graph.input if value.name not in stored]

    def _port(self, value: Any) -> Port:
        if not value.type.HasField("tensor_type"):
            raise CaptureError(f"The input {value.name!r} of {self.path} is no tensor, and cannot be read.")
        kind = value.type.tensor_type
        return Port(value.name, self.dtype(kind.elem_type), tuple(_size(dim) for dim in kind.shape.dim))

    def dtype(self, number: int) -> torch.dtype:
        """Torch's type for a type of the standard."""
        name = importlib.import_module("onnx").TensorProto.DataType.Name(number).lower()
        found = getattr(torch, {"float": "float32", "double": "float64"}.get(name, name), None)
        if not isinstance(found, torch.dtype):
            raise CaptureError(f"{self.path} holds tensors of type {name}, which PyTorch does not have.")
        return found

    def tensor(self, proto: Any) -> Tensor:
        """A stored tensor."""
        dtype = self.dtype(proto.data_type)
        array = np.array(importlib.import_module("onnx").numpy_helper.to_array(proto))
        try:
            return torch.from_numpy(array)
        except TypeError:  # types that numpy does not have are its raw numbers
            return torch.from_numpy(array.view(f"uint{8 * array.itemsize}")).view(dtype)

    @cached_property
    def _ranks(self) -> Mapping[str, int]:
        try:
            inferred = importlib.import_module("onnx").shape_inference.infer_shapes(self.proto)
        except ValueError:  # files of more than 2 GiB
            return {}
        told = (value for value in (*inferred.graph.value_info, *inferred.graph.input) if value.type.tensor_type.HasField("shape"))
        return {value.name: len(value.type.tensor_type.shape.dim) for value in told}

    @cached_property
    def makers(self) -> Mapping[str, Any]:
        """The node of the outermost graph that makes a value, by the value's name."""
        return {name: node for node in self.proto.graph.node for name in node.output}

    def rank(self, name: str) -> int | None:
        """The number of dimensions of a value, if the standard's inference tells, or the operators that made it."""
        if name in self._ranks or name not in self.makers:
            return self._ranks.get(name)
        node = self.makers[name]
        return 2 if node.op_type in ("Flatten", "Gemm") else self.rank(node.input[0])


def _size(dim: Any) -> int | str | None:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def scopes(node: Any) -> list[str]:
    """Paths of the modules that a node comes from, outermost first, where PyTorch's exporter wrote them down."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            found = ast.literal_eval(entry.value)
            return [str(each) for each in found]
    return []
