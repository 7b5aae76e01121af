"""Random numbers drawn for a tensor: fewer of them would be other ones."""

from __future__ import annotations

from secateur.groups.rules.registry import Call, Outcome, rule


@rule("aten.rand_like", "aten.randn_like", "aten.randint_like", "aten.bernoulli", "aten.exponential", "aten.multinomial", "aten.poisson")
def drawn(call: Call) -> Outcome:
    """No labels; what the numbers are drawn for stays, since no smaller model could draw the same ones."""
    return call.refuse("random numbers are drawn in its shape")
