"""One rule a family of operators. Importing this package registers all of them."""

from importlib import import_module
from pkgutil import iter_modules

from secateur.groups.rules.registry import Call, Operand, Outcome, Rule, find, rule, takes_pliant

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")

__all__ = ["Call", "Operand", "Outcome", "Rule", "find", "rule", "takes_pliant"]
