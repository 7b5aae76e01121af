"""Sizes of reshapes, expansions, normalised shapes, and numbers of groups."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.groups.fields import row_along
from secateur.groups.rules.convolution import mixed_dims
from secateur.groups.rules.pooling import UPSAMPLE
from secateur.rewrite.constants.registry import Site, adjusts


@adjusts("aten.reshape", "aten.view", "aten._unsafe_view", "aten.view_copy")
def reshape(site: Site) -> None:
    """Every size that changed; a single computed size that no longer fits becomes ``-1``."""
    name = "shape" if "shape" in site.names else "size"
    entries, new = list(site.get(name)), site.shape
    sizes = []
    for entry, dense, wanted in zip(entries, site.dense, new, strict=True):
        sizes.append(-1 if entry == -1 else site.size(entry, dense, wanted))
    site.set(name, sizes)


@adjusts("aten.expand")
def expand(site: Site) -> None:
    """Sizes of dimensions that are not repeated follow the input."""
    entries, new = list(site.get("size")), site.shape
    _, source = site.source()
    lead = len(new) - len(source)
    sizes = []
    for dim, (entry, dense, wanted) in enumerate(zip(entries, site.dense, new, strict=True)):
        if entry == -1 or (dim >= lead and source[dim - lead] == dense and dense != wanted):
            sizes.append(-1)
        else:
            sizes.append(site.size(entry, dense, wanted))
    site.set("size", sizes)


@adjusts("aten.repeat", "aten.tile")
def repeat(site: Site) -> None:
    """As many repeats of a dimension of size 1 as positions stay."""
    times: list[Any] = list(site.new.args[1])  # type: ignore[arg-type]
    _, source = site.source()
    for place in range(-len(times), 0):
        if site.shape[place] != site.dense[place] and (source[place] if -place <= len(source) else 1) == 1:
            times[place] = site.shape[place]
    site.new.update_arg(1, times)


@adjusts("aten.layer_norm", "aten.rms_norm")
def layer_norm(site: Site) -> None:
    """The normalised shape is the end of the new shape."""
    site.set("normalized_shape", list(site.shape[-len(site.get("normalized_shape")) :]))


@adjusts("aten.group_norm")
def group_norm(site: Site) -> None:
    """Groups of which something is left."""
    _living_groups(site, "num_groups")


@adjusts(
    "aten.conv1d",
    "aten.conv2d",
    "aten.conv3d",
    "aten.conv_transpose1d",
    "aten.conv_transpose2d",
    "aten.conv_transpose3d",
    "aten.convolution",
)
def convolution(site: Site) -> None:
    """Groups of which something is left; spatial dimensions that were cut are as wide as before while the kernel slides."""
    if site.get("groups") > 1:
        _living_groups(site, "groups")
    fields, dense = site.source("input")
    mixed = mixed_dims(site.source("weight")[1], dense, site.dense, site.get("stride"))
    for dim in mixed:
        if not (kept := site.cut.along(fields, dim, dense[dim])).all():
            site.new.update_arg(0, site.spread(site.new.args[0], dim, kept, len(dense)))
    made = {dim: kept for dim in mixed if not (kept := site.cut.along(site.fields, dim, site.dense[dim])).all()}
    if made:
        site.select(made)


def _living_groups(site: Site, name: str) -> None:
    fields, _ = site.source("input")
    groups = site.get(name)
    field = row_along(fields, 1)
    if field is not None:
        groups = site.cut.living_rows(field.labels.ravel(), groups)
    site.set(name, groups)


@adjusts("aten.constant_pad_nd", "aten.pad")
def pad(site: Site) -> None:
    """Padded places of a labelled dimension that stay."""
    pads: list[Any] = list(site.new.args[1])  # type: ignore[arg-type]
    _, source = site.source()
    rank = len(source)
    for field in site.fields:
        for dim in field.dims:
            place = (rank - 1 - dim) * 2
            before, after = pads[place : place + 2] or (0, 0)
            if len(field.dims) == 1 and (before or after) and not any(isinstance(each, fx.Node) for each in (before, after)):
                kept = site.cut.keeps(field.labels.ravel())
                size = source[dim]
                if before >= 0 and after >= 0:
                    pads[place], pads[place + 1] = int(kept[:before].sum()), int(kept[before + size :].sum())
                else:
                    _cropped(site, pads, place, dim)
    site.set("pad", pads)


def _cropped(site: Site, pads: list[int], place: int, dim: int) -> None:
    """Negative padding takes positions away: count those of the taken ones that stay."""
    fields, source = site.source()
    before, after = pads[place : place + 2]
    kept = site.cut.along(fields, dim, source[dim])
    if before < 0:
        pads[place] = -int(kept[:-before].sum())
    if after < 0:
        pads[place + 1] = -int(kept[after:].sum())


@adjusts(*UPSAMPLE)
def resample(site: Site) -> None:
    """New sizes of dimensions that are not resampled are those that they now have."""
    if isinstance(site.new.args[1], list | tuple):
        sizes = zip(site.new.args[1], site.dense[2:], site.shape[2:], strict=True)
        site.new.update_arg(1, [size if old == new else new for size, old, new in sizes])


@adjusts("aten.unflatten")
def unflatten(site: Site) -> None:
    """Sizes of the dimensions that one dimension is split into."""
    sizes = list(site.get("sizes"))
    dim = site.get("dim") % len(site.source()[1])
    site.set("sizes", [-1 if s == -1 else site.size(s, site.dense[dim + i], site.shape[dim + i]) for i, s in enumerate(sizes)])
