"""The settings that decide how scores become a selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from secateur.errors import SelectionError
from secateur.score.combine import GroupPolicy, Policy
from secateur.score.normalize import LayerNorm

StepOp = Literal["round", "round_up", "round_down", "none"]
_CHOICES = {"policy": Policy, "layer_norm": LayerNorm, "group_policy": GroupPolicy, "step_op": StepOp}


@dataclass(frozen=True)
class Options:
    """How scores are combined and compared, and how counts are rounded."""

    policy: Policy = "average"
    """How the scores of coupled producers become one; with ``backward`` what they add up to is scored, which takes feature maps."""
    layer_norm: LayerNorm = "standard_score"
    """How the scores of a layer are scaled before they are combined or compared with those of other layers."""
    group_policy: GroupPolicy = "none"
    """Which channels go from heads and groups: the same of each, by their summed or average score; each its own worst
    (``none``); or each its own worst, but only as many as all of them have among the worst of the layer (``count``)."""
    reshape_channel_axis: int = -1
    """Where heads are: thin every head (-1 or 1), or remove whole heads (-2 or 0)."""
    step_size: int | None = 1
    """What stays of a layer, or of each of its heads, is rounded to multiples of this; with none given to those that processors like: of 8,
    or in narrow layers of 4 or 2."""
    step_op: StepOp = "round"
    """Round half up, up, down, or not at all."""
    reverse: bool = False
    """Remove the most important first: a control."""
    minimum: int = 1
    """At least so many channels of each group stay."""
    uniform: bool = False
    """Keep the same widths in all layers of a stack, such that the model's config, where it has one, describes the result."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise SelectionError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(choices))}.")
        if self.reshape_channel_axis not in (0, 1, -1, -2):
            raise SelectionError(f"reshape_channel_axis is {self.reshape_channel_axis!r}; it must be 0, 1, -1 or -2.")
        for name in ("step_size", "minimum"):
            value = getattr(self, name)
            if name == "step_size" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SelectionError(f"{name} is {value!r}; it must be a whole number from 1 up.")

    def step(self, width: int) -> int:
        """The multiple to which what stays of a layer, or of a head, of this width is rounded."""
        return even_step(width) if self.step_size is None else self.step_size

    @property
    def whole_heads(self) -> bool:
        """Whether ratios of layers with heads remove whole heads."""
        return self.reshape_channel_axis in (0, -2)


def even_step(width: int) -> int:
    """The multiple that a processor likes: 8 in widths that have eight of them, else 4, 2 or 1 where a width has four of them."""
    return next((step for step, least in ((8, 64), (4, 16), (2, 8)) if width >= least), 1)
