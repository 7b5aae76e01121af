"""Complex numbers, and Fourier transforms, which mix all positions that they run over."""

from __future__ import annotations

from itertools import product

from secateur.groups.fields import Field
from secateur.groups.meeting import flattened
from secateur.groups.rules.indexing import hold
from secateur.groups.rules.registry import Call, Outcome, rule
from secateur.groups.rules.sliding import slide

TRANSFORMS = [f"aten.fft_{kind}fft{size}" for kind, size in product(("", "i", "r", "ir", "h", "ih"), ("", "2", "n"))]
TRANSFORMS += ["aten.fft_fftshift", "aten.fft_ifftshift"]


@rule(*TRANSFORMS, pliant=True)
def transform(call: Call) -> Outcome:
    """Every result along a transformed dimension depends on all positions, where zeros count for those that went."""
    x = call["self"]
    return slide(call, x, call.dims(call.args.get("dim"), len(x.shape)), "a Fourier transform runs over it")


@rule("aten.stft")
def windows(call: Call) -> Outcome:
    """Windows along the last dimension are transformed; a batch in front passes."""
    x, window = call["self"], call["window"]
    last = len(x.shape) - 1
    call.ledger.freeze_fields(() if window is None else window.fields, "a window of a Fourier transform")
    fields = hold(call, x, frozenset({last}), "a Fourier transform runs over it")
    return tuple(f.laid(f.labels.reshape(*f.labels.shape[:last], *[1] * (len(call.shape) - last))) for f in fields)


@rule("aten.view_as_complex")
def paired(call: Call) -> Outcome:
    """The real and the imaginary part, two positions of the last dimension, go together."""
    x = call["self"]
    last = len(x.shape) - 1
    fields = []
    for field in x.fields:
        if field.dims == {last}:
            call.ledger.freeze(field.labels, "is a real or an imaginary part")
        else:
            fields.append(flattened(call.ledger, field, frozenset({last})))
    units = {f.dims for f in fields if not f.block}
    kept = (f for f in fields if not (f.block and f.dims in units))
    return tuple(Field(f.labels.reshape(f.labels.shape[:-1]), f.block) for f in kept)


@rule("aten.view_as_real")
def parts(call: Call) -> Outcome:
    """A last dimension of two parts, along which the labels are the same."""
    return tuple(Field(f.labels[..., None], f.block) for f in call["self"].fields)
