"""Shape constants of operators, written anew: one small function a family. Importing this package registers all of them."""

from importlib import import_module
from pkgutil import iter_modules

from secateur.rewrite.constants.registry import Site, adjust, adjusts

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")

__all__ = ["Site", "adjust", "adjusts"]
