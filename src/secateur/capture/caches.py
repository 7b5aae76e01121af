"""Models that hand out what they computed for their next call: asked not to while they are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

SWITCH = "use_cache"
"""What the configs of language models call it: keys, values and states are outputs too, for the token that comes next."""


@contextmanager
def without_caches(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switch caches off in the configs of these modules for a while; a caller who asks for one in so many words still gets it.

    A cache is read by nobody but the model itself, so its widths need not stay as those of an output must.
    """
    switched = switches(modules)
    try:
        for config in switched:
            setattr(config, SWITCH, False)
        yield
    finally:
        for config in switched:
            setattr(config, SWITCH, True)


def switches(modules: Iterable[nn.Module]) -> list[Any]:
    """The configs of these modules in which caches are on."""
    configs = {id(config): config for module in modules if (config := vars(module).get("config")) is not None}
    return [config for config in configs.values() if getattr(config, "__dict__", {}).get(SWITCH) is True]
