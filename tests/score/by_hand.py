"""Channel groups and evidence written down by hand, and captured small models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from secateur.capture.normalize import normalize
from secateur.capture.record import record
from secateur.groups import ChannelGroup, Member, Solution, build_groups, solve, walk
from secateur.groups.group import Kind
from secateur.groups.ledger import Role


def member(
    tensor: str,
    positions: Sequence[int],
    channels: Sequence[int] | None = None,
    *,
    dim: int = 0,
    role: Role = "writes",
    length: int | None = None,
    rows: int = 1,
) -> Member:
    found = np.array(positions, dtype=np.int64)
    numbers = np.arange(found.size) if channels is None else np.array(channels, dtype=np.int64)
    return Member(tensor, dim, role, found, numbers, length or int(found.max()) + 1, rows)


def group(
    name: str = "layer",
    size: int = 4,
    *,
    cells: Sequence[int] | None = None,
    take: Sequence[int] = (),
    members: Sequence[Member] | None = None,
    kind: Kind = "channels",
    aliases: Sequence[str] = (),
    reason: str | None = None,
    signature: str = "",
    first_class: int = 0,
) -> ChannelGroup:
    lying = np.array(cells if cells is not None else [0] * size, dtype=np.int64)
    return ChannelGroup(
        name=name,
        kind=kind,
        classes=np.arange(first_class, first_class + size),
        cells=lying,
        take=tuple(take) or (1,) * (int(lying.max()) + 1),
        members=tuple(members) if members is not None else (member(f"{name}.weight", range(size)),),
        aliases=tuple(aliases),
        reason=reason,
        signature=signature,
    )


def solved(model: nn.Module, *inputs: Tensor) -> tuple[Solution, list[ChannelGroup]]:
    solution = solve(walk(normalize(record(model.eval(), inputs))))
    return solution, build_groups(solution)
