"""The ONNX operators that can be read, one family a file. Importing this registers them."""

from secateur.capture.onnx.operators import (
    activation,
    attention,
    control,
    convolution,
    creation,
    elementwise,
    indexing,
    linear,
    normalisation,
    padding,
    pooling,
    recurrent,
    reduction,
    shapes,
    slicing,
)

__all__ = [
    "activation",
    "attention",
    "control",
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "linear",
    "normalisation",
    "padding",
    "pooling",
    "recurrent",
    "reduction",
    "shapes",
    "slicing",
]
