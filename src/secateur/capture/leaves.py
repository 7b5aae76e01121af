"""The stored tensors of a model by name: parameters, buffers, and which of them are one tensor under several names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

Place = tuple[object, ...]


@dataclass(frozen=True)
class Leaves:
    """Parameters and buffers of a model, each under the first of its names."""

    tensors: Mapping[str, Tensor]
    tied: Mapping[str, tuple[str, ...]]
    _by_identity: Mapping[int, str]
    _by_place: Mapping[Place, str]
    _by_address: Mapping[int, list[Tensor]]

    @classmethod
    def of(cls, model: nn.Module) -> Leaves:
        """Collect the leaves of a model; tensors that share memory and layout count as one."""
        tensors: dict[str, Tensor] = {}
        names: dict[str, list[str]] = {}
        by_identity: dict[int, str] = {}
        by_place: dict[Place, str] = {}
        by_address: dict[int, list[Tensor]] = {}
        for name, tensor in chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
            first = by_identity.get(id(tensor)) or by_place.get(place(tensor), name)
            if first not in tensors:
                tensors[first] = tensor
                by_address.setdefault(address(tensor), []).append(tensor)
            names.setdefault(first, []).append(name)
            by_identity[id(tensor)] = first
            by_place[place(tensor)] = first
        return cls(tensors, {first: tuple(all_names) for first, all_names in names.items()}, by_identity, by_place, by_address)

    def __contains__(self, name: object) -> bool:
        return any(name in names for names in self.tied.values())

    def name(self, tensor: Tensor) -> str | None:
        """Return the name of a stored tensor, or of the one whose memory and layout it has."""
        return self._by_identity.get(id(tensor)) or self._by_place.get(place(tensor))

    def first_name(self, name: str) -> str:
        """Return the name that stands for all names of the tensor called ``name``."""
        return next((first for first, names in self.tied.items() if name in names), name)

    def sharing(self, tensor: Tensor) -> list[Tensor]:
        """Return the leaves whose memory a tensor lies in."""
        return self._by_address.get(address(tensor), [])


def address(tensor: Tensor) -> int:
    """Return where the memory of a tensor begins, or 0 if it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def place(tensor: Tensor) -> Place:
    """Return where and how a tensor lies: equal for two tensors only if they are the same numbers in memory."""
    begin = address(tensor)
    if not begin:
        return (id(tensor),)
    return (begin, tensor.device, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
