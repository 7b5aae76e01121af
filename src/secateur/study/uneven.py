"""Widths that runtimes dislike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from secateur.groups import ChannelGroup
from secateur.plan import Plan

EVEN, WIDE, SHOWN = 4, 32, 3
"""Kernels of convolutions that work on blocks of channels take multiples of 4 at least; narrow layers matter little."""


def uneven_widths(groups: Sequence[ChannelGroup], weights: Mapping[str, Tensor], plan: Plan) -> Iterator[str]:
    """A note where wide convolutions keep numbers of channels for which a runtime may leave its fast kernels."""
    convolved = {group.name for group in groups if group.rows == 1 and _is_convolved(group, weights)}
    kept = {edit.group: edit.size - len(edit.remove) for edit in plan.prunes if edit.group in convolved and edit.size >= WIDE}
    odd = {name: width for name, width in kept.items() if width % EVEN}
    if odd:
        shown = ", ".join(f"{name}: {width}" for name, width in list(odd.items())[:SHOWN]) + (", ..." if len(odd) > SHOWN else "")
        yield (
            f"{len(odd)} of {len(kept)} wide convolutions keep a number of channels that is no multiple of {EVEN} ({shown}); ONNX Runtime "
            "may run such ones slower than the dense ones: time it, or round with step_size=8"
        )


def _is_convolved(group: ChannelGroup, weights: Mapping[str, Tensor]) -> bool:
    return any(member.role == "writes" and member.tensor in weights and weights[member.tensor].ndim > 2 for member in group.members)
