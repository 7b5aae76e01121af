"""Latency of exported models in ONNX Runtime, measured in turns in one run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.errors import FileError, MissingExtraError, ModelError
from secateur.measure.latency import Latency, Rounds, batch_of, summarize


def onnx_latency(
    files: Mapping[str, Path],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    warmup: int = 10,
    repeats: int = 50,
    threads: int | None = None,
    budget_s: float = 60.0,
) -> dict[str, Latency]:
    """Time ONNX files on the CPU with ONNX Runtime, on the same inputs and in turns.

    The tensors among ``args`` and ``kwargs`` are the files' inputs, in order. Needs the extra ``onnx``.
    """
    runtime = runtime_module()
    rounds, used = Rounds(warmup, repeats, budget_s), threads or torch.get_num_threads()
    tensors = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs or {}))) if isinstance(leaf, Tensor)]
    calls = {name: _call(name, _session(Path(path), used), tensors) for name, path in files.items()}
    warmed, seconds = rounds(calls)
    dtype = next((str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()), "none")
    conditions: dict[str, Any] = {"runtime": f"onnxruntime {runtime.__version__}", "device": "cpu", "threads": used, "dtype": dtype}
    return {name: summarize(seconds[name], warmup=warmed, batch=batch_of(tensors), **conditions) for name in files}


def runtime_module() -> Any:
    """ONNX Runtime, or :class:`~secateur.errors.MissingExtraError`."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx", "Latency of ONNX files") from error


def _session(path: Path, threads: int) -> Any:
    if not path.is_file():
        raise FileError(f"There is no ONNX file {path}. Export the model first, or correct the path.")
    try:
        return opened(str(path), threads)
    except Exception as error:
        raise FileError(f"ONNX Runtime cannot open {path}: {error}. Export the model again.") from error


def opened(model: str | bytes, threads: int) -> Any:
    """A session on the CPU for the path of a file, or for what one holds."""
    runtime = runtime_module()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait busily after one session's call would take the cores from the next session's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _call(name: str, session: Any, tensors: list[Tensor]) -> Callable[[], object]:
    wanted = [value.name for value in session.get_inputs()]
    if len(wanted) != len(tensors):
        raise ModelError(
            f"The ONNX model {name!r} takes {len(wanted)} inputs ({', '.join(wanted)}), but {len(tensors)} tensors were given."
        )
    feeds = {key: tensor.detach().cpu().numpy() for key, tensor in zip(wanted, tensors, strict=True)}

    def call() -> object:
        try:
            return session.run(None, feeds)
        except Exception as error:
            raise ModelError(f"The ONNX model {name!r} does not run on these inputs: {error}") from error

    return call
