"""The circumstances under which a model is run to be captured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from secateur.capture.facts import cuda_devices


@contextmanager
def plain_execution(model: nn.Module, flat_inputs: list[Any]) -> Iterator[None]:
    """Run without gradients, without the caller's autocast, and without compiling."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device_type in {"cuda" for _ in cuda_devices(model, flat_inputs)} | {"cpu"}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
