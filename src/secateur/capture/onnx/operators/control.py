"""Branches."""

from __future__ import annotations

from secateur.capture.onnx.registry import Call, operator
from secateur.capture.onnx.values import Value


@operator("If")
def branch(call: Call) -> tuple[Value, ...]:
    """One of two blocks; a condition that depends on the values of inputs is looked at, which ties the run to these inputs."""
    assert call.run is not None
    (condition,) = call.numbers(0)
    return call.run(call.attribute("then_branch" if condition else "else_branch"))
