"""What the rest of Secateur knows of a model: one flat graph of ATen calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

How = Literal["export", "trace", "record", "given"]


@dataclass(frozen=True)
class Fact:
    """What one run told of one tensor: its shape and dtype, and its value where inputs have no say in it.

    ``value`` is kept for tensors that depend on constants alone (index tables, masks, buffers), never for
    floating-point parameters.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    value: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Capture:
    """A model as a flat ATen graph, with what one run of it told.

    The graph of ``program`` holds only these nodes:

    * ``placeholder``: one for each leaf of the flattened ``(args, kwargs)``, in pytree order (leaves that are no tensors too);
    * ``get_attr``: a parameter, buffer or constant tensor, by the user's own qualified name (tied ones by one name);
    * ``call_function``: an ATen overload before dispatch (``aten.conv2d.default``, ``aten.linear.default``, ``aten.view.default``, ...),
      ``operator.getitem``, or arithmetic on sizes;
    * ``output``: one flat tuple, which ``out_spec`` folds back into what the user's model returns.

    Each node carries ``node.meta["fact"]``: a :class:`Fact` for a tensor, a list of such for several, the plain value
    for numbers; and ``node.meta["module"]``: the path of the user's module that made the call (``""`` for the root).
    """

    program: fx.GraphModule
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    how: How
    tied: Mapping[str, tuple[str, ...]]
    """Every name of each leaf tensor, by the one name that the graph uses."""
    dynamic: bool = False
    """Whether sizes of the inputs stayed symbolic in the graph."""
    elsewhere: Sequence[Any] | None = None
    """Flat inputs at which all sizes differ that are open, where the model was recorded at these too."""
    decided: bool = False
    """Whether the recorded run looked at values that depend on the inputs, so that others may make other calls."""
    notes: tuple[str, ...] = ()
    """What was tried and did not work on the way, for the report."""

    @property
    def graph(self) -> fx.Graph:
        """The graph of ``program``."""
        return self.program.graph

    def leaf(self, name: str) -> Tensor:
        """The parameter, buffer or constant of that name; ``AttributeError`` where the program has none."""
        *path, last = name.split(".")
        owner: Any = self.program
        for part in path:
            owner = owner._modules.get(part)
        tensor = getattr(owner, last)
        assert isinstance(tensor, Tensor)
        return tensor

    def flat_inputs(self) -> list[Any]:
        """The example inputs as the graph's placeholders take them."""
        return pytree.tree_leaves((self.args, dict(self.kwargs)))
