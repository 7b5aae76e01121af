"""Clean a captured graph: functional, canonical, with fused projections cut apart."""

from __future__ import annotations

import copy
from dataclasses import replace

from secateur.capture.capture import Capture
from secateur.capture.facts import observe, observe_anew
from secateur.capture.normalize.attention import pin_attention_scale
from secateur.capture.normalize.constants import mark_constants
from secateur.capture.normalize.functional import functionalise
from secateur.capture.normalize.inline import inline_wrappers
from secateur.capture.normalize.kernels import name_functions
from secateur.capture.normalize.names import canonical_names
from secateur.capture.normalize.noops import drop_copies, drop_dead, drop_expansions
from secateur.capture.normalize.probes import probe_sizes
from secateur.capture.normalize.selections import push_selections_up
from secateur.capture.normalize.shuffles import select_shuffles
from secateur.capture.normalize.weights import fold_weights, mark_stand_ins
from secateur.capture.normalize.windows import name_windows
from secateur.capture.program import as_program

__all__ = ["normalize"]


def normalize(capture: Capture) -> Capture:
    """Return the capture with a graph of the same outputs that is easier to analyse; the given one stays as it is.

    In-place operators become functional, movements of data get one name each, selections from fused projections become
    slices of the projection, channel shuffles become constant permutations, the scale of attention is written down.
    """
    program = as_program(capture.program, copy.deepcopy(capture.program.graph))
    program.meta["dynamic"] = capture.dynamic
    if inline_wrappers(program):
        observe(program, capture.flat_inputs())
    name_functions(program)
    drop_dead(program)
    if capture.dynamic:
        probe_sizes(program, capture.flat_inputs(), capture.elsewhere)
    canonical_names(program)
    if functionalise(program):
        name_windows(program)
        drop_copies(program)
        drop_expansions(program)
        push_selections_up(program)
        select_shuffles(program)
        mark_constants(program)
    pin_attention_scale(program)
    folded = fold_weights(program)
    drop_dead(program)
    mark_stand_ins(program, folded)
    program = as_program(program, program.graph)
    program.graph.lint()
    observe_anew(program, capture.flat_inputs())
    tied = {**capture.tied, **{name: (name,) for name, _ in folded}}
    notes = [f"The weight computed from {origin} holds statistics over it; its value is cut, as {name}." for name, origin in folded]
    return replace(capture, program=program, tied=tied, notes=(*capture.notes, *notes))
