from __future__ import annotations

import pytest
import torch

from report.seen import FASTER, HOSTILE, TIMED, Seen, SideWay
from secateur.measure import compare_outputs, measure
from secateur.rewrite import rewrite
from secateur.study import study


@pytest.fixture(scope="session")
def result() -> Seen:
    """A real model, really cut; only its times and its task figures are made up."""
    torch.manual_seed(0)
    found = study(SideWay().eval().requires_grad_(False), torch.randn(2, 3, 8, 8))
    plan = found.plan(ratios={HOSTILE: 0.375})
    done = rewrite(found.cut(plan))
    return Seen(
        model=done.model,
        kind=done.kind,
        plan=plan,
        proof=done.proof,
        before=measure(found.capture),
        after=measure(done.capture),
        layers=found.layers,
        args=found.capture.args,
        kwargs=found.capture.kwargs,
        attributes=done.attributes,
        notes=("rounded up to keep 10", f"{HOSTILE}: a note"),
        latency={"dense": TIMED, "compressed": FASTER},
        fidelity=compare_outputs(found.model, done.model, [torch.randn(3, 3, 8, 8)]),
        metrics={"accuracy before": 0.8125, "accuracy <b>after</b>": 0.7875},
    )
