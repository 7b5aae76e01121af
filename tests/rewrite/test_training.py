"""A graph trains as the user's class does, and at sizes that it was not captured at it still computes the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cases import CASES, call, image, studied
from secateur.rewrite import rewrite
from secateur.rewrite.execute import Double
from secateur.rewrite.graph import rewrite_graph
from secateur.study import study

BY_NAME = {case.name: case for case in CASES}
TRAINED = (
    "residual",
    "dense_block",
    "grouped",
    "separable",
    "decoder_2d",
    "squeeze_excite",
    "flatten",
    "group_norm",
    "prelu",
    "layer_scale",
    "mixer",
    "reused",
)


def both(name: str) -> tuple[nn.Module, nn.Module]:
    """The two outcomes of one plan, in double precision, without dropout."""
    found = studied(BY_NAME[name])
    cut = found.cut(found.plan(ratio=0.5))
    models = [copy.deepcopy(rewrite(cut, prefer=p).model).double() for p in ("module", "graph")]  # type: ignore[arg-type]
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return models[0], models[1]


def step(model: nn.Module, inputs: Tensor) -> float:
    """One step of gradient descent towards zero; returns the loss before it."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_step_of_a_graph_is_that_of_the_users_class(name: str) -> None:
    module, graph = both(name)
    inputs = BY_NAME[name].inputs(4).double()
    start = {n: t.clone() for n, t in module.state_dict().items()}
    for _ in range(2):
        losses = step(module, inputs), step(graph, inputs)
        torch.testing.assert_close(losses[1], losses[0])
    after = dict(module.state_dict())
    torch.testing.assert_close(dict(graph.state_dict()), after)
    assert not [n for n, t in start.items() if torch.equal(t, after[n]) and not n.endswith("bias")]
    torch.testing.assert_close(graph.eval()(inputs), module.eval()(inputs))


@pytest.mark.parametrize("name", ["fused_qkv", "language_model", "channel_shuffle", "class_token", "rotary"])
def test_training_a_graph_lowers_the_loss(name: str) -> None:
    found = studied(BY_NAME[name])
    model = copy.deepcopy(rewrite(found.cut(found.plan(ratio=0.5)), prefer="graph").model)
    inputs = BY_NAME[name].inputs(4)
    losses = [step(model, inputs) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_dropout_drops_in_training_alone() -> None:
    found = studied(BY_NAME["flatten"])
    model = copy.deepcopy(rewrite(found.cut(found.plan(ratio=0.5)), prefer="graph").model)
    inputs = BY_NAME["flatten"].inputs()
    assert torch.equal(model.eval()(inputs), model(inputs))
    assert not torch.equal(model.train()(inputs), model(inputs))


LARGER: dict[str, Callable[[int], Any]] = {
    **dict.fromkeys(("residual", "padded_shortcut", "grouped", "channel_shuffle", "squeeze_excite", "pixel_shuffle"), image(3, 12, 16)),
    **dict.fromkeys(("coordinate_attention", "neighbouring_channels", "convolutional_memory", "blurred"), image(3, 12, 16)),
    **dict.fromkeys(("decoder_2d",), image(2, 12, 16)),
    **dict.fromkeys(
        ("fused_qkv", "head_major_qkv", "chunked_qkv", "einsum_attention", "rotary", "expanded_keys", "library_attention"), image(9, 10)
    ),
    **dict.fromkeys(("pooling_token", "linear_attention", "talking_heads", "channel_attention"), image(9, 10)),
    **dict.fromkeys(("positions", "latent_attention", "aligned_features", "experts"), image(9, 10)),
    "patch_merging": image(3, 12, 6),
    "language_model": lambda batch: torch.randint(0, 18, (batch, 11)),
}


@pytest.mark.parametrize("name", LARGER)
def test_a_graph_computes_the_same_at_other_sizes(name: str) -> None:
    torch.manual_seed(5)
    inputs = LARGER[name](3)
    captured_there, captured_here = study(BY_NAME[name].model(), inputs), studied(BY_NAME[name])
    expected = Double(rewrite_graph(captured_there.cut(captured_there.plan(ratio=0.5)))).outputs([inputs])
    small = rewrite(captured_here.cut(captured_here.plan(ratio=0.5)), prefer="graph").model
    torch.testing.assert_close(pytree.tree_leaves(call(small, inputs)), [x.to(torch.float32) for x in expected])
