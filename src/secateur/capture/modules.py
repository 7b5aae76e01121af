"""Which of the user's modules is executing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


@dataclass
class ModulePath:
    """The path of the innermost module of ``model`` that is executing, ``""`` for the model itself."""

    names: dict[int, str]
    stack: list[str] = field(default_factory=lambda: [""])

    @property
    def current(self) -> str:
        """The path as it stands."""
        return self.stack[-1]

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """Note that a module begins; one that is not in the model counts as part of its caller."""
        self.stack.append(self.names.get(id(module), self.current))

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Note that a module has ended, with or without an exception."""
        if len(self.stack) > 1:
            self.stack.pop()


@contextmanager
def module_path(model: nn.Module) -> Iterator[ModulePath]:
    """Follow the execution of a model's modules."""
    path = ModulePath({id(module): name for name, module in model.named_modules()})
    handles = [register_module_forward_pre_hook(path.enter), register_module_forward_hook(path.leave, always_call=True)]
    try:
        yield path
    finally:
        for handle in handles:
            handle.remove()
