"""An end to runs of a model that may take forever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` where a model begins one of its modules after so many seconds: tracers take an error there in good order."""
    end = time.monotonic() + seconds

    def look(module: nn.Module, inputs: Any) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"it took longer than {seconds:g} seconds")

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
