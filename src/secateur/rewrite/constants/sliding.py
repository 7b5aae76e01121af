"""Operators that mix positions along a dimension: they get zeros where something went, and of what they make the rest is taken."""

from __future__ import annotations

from secateur.rewrite.constants.registry import Site, adjusts

_FOURIER = [f"aten.fft_{kind}fft{size}" for kind in ("", "i", "r", "ir", "h", "ih") for size in ("", "2", "n")]


@adjusts("aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d", "aten.roll", "aten.diff")
@adjusts(*_FOURIER, "aten.fft_fftshift", "aten.fft_ifftshift")
def slide(site: Site) -> None:
    """As wide as before along dimensions whose labels end there; all others are cut as they are."""
    fields, dense = site.source()
    passing = {id(f.labels) for f in site.fields}
    for field in fields:
        if id(field.labels) not in passing and len(field.dims) == 1:
            (dim,) = field.dims
            if not (kept := site.cut.along(fields, dim, dense[dim])).all():
                site.new.update_arg(0, site.spread(site.new.args[0], dim, kept, len(dense)))
    pliant = (dim for field in site.fields if field.pliant for dim in field.dims)
    made = {dim: kept for dim in pliant if not (kept := site.cut.along(site.fields, dim, site.dense[dim])).all()}
    if made:
        site.select(made)
